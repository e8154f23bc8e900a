"""Files of weights: which network they hold, and files that hold none."""

import zipfile

import pytest
import torch
from safetensors.torch import save_file

from masking.segmenter.mini import Mini
from masking.segmenter.sam import SegmenterWeightsError, load
from masking.segmenter.weights import read
from tests.masking.segmenter.networks import CPU, photographs


def test_the_architecture_is_found_by_shapes(sam, segmenter, tmp_path):
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    save_file(sam.state_dict(), tmp_path / "model.safetensors")
    frames = photographs(1, (20, 30))
    expected = segmenter.encode(frames).features[0]
    for path in (tmp_path / "sam.pth", tmp_path / "model.safetensors", tmp_path):
        assert torch.equal(load(path, CPU, "float32").encode(frames).features[0], expected)


def without(state, part):
    return {name: tensor for name, tensor in state.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"conv1.weight": torch.ones(3)}, r"pos_embed|patch_embed.* is missing; it has"),
        (lambda s: {}, "it is empty"),
        (lambda s: without(s, "iou_token"), "1 missing: mask_decoder.iou_token.weight"),
        (lambda s: s | {"extra": torch.ones(1)}, "1 unexpected: extra"),
        (
            lambda s: s | {"image_encoder.neck.2.weight": torch.ones(256, 256, 1, 1)},
            r"1 of another shape: image_encoder.neck.2.weight is \(256, 256, 1, 1\), not \(256,",
        ),
        (lambda s: without(s, "image_encoder.blocks"), "shapes do not fit"),
    ],
)
def test_another_architecture(sam, tmp_path, change, message):
    torch.save(change(sam.state_dict()), tmp_path / "x.pth")
    with pytest.raises(SegmenterWeightsError, match=message) as caught:
        load(tmp_path / "x.pth", CPU)
    assert str(caught.value).startswith(f"{tmp_path / 'x.pth'} is not a checkpoint of SAM")


def test_files_that_are_no_checkpoints(sam, tmp_path):
    torch.save(sam.state_dict(), tmp_path / "whole.pth")
    save_file(sam.state_dict(), tmp_path / "whole.safetensors")
    for suffix in ("pth", "safetensors"):
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        for name, content in (("cut", data[: len(data) // 2]), ("text", b"hello"), ("empty", b"")):
            file = tmp_path / f"{name}.{suffix}"
            file.write_bytes(content)
            with pytest.raises(SegmenterWeightsError, match=rf"{name}\.{suffix} is not a complete"):
                load(file, CPU)


@pytest.mark.parametrize("found", [{"model": {}, "epoch": 3}, [1, 2]])
def test_something_else_in_a_checkpoint(tmp_path, found):
    torch.save(found, tmp_path / "x.pth")
    with pytest.raises(SegmenterWeightsError, match=r"x\.pth holds a (dict of 'model'|list)"):
        load(tmp_path / "x.pth", CPU)


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"a": Evil()}, tmp_path / "x.pth")
    with pytest.raises(SegmenterWeightsError, match=r"x\.pth is not a complete checkpoint"):
        load(tmp_path / "x.pth", CPU)
    assert not (tmp_path / "ran").exists()


def test_a_mini_that_is_not_one(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1)}, file, {"architecture": "mini"})
    with pytest.raises(
        SegmenterWeightsError, match=r"(?s)x\.safetensors is not .*`mini`:.*unexpected: a"
    ):
        load(file, CPU)


@pytest.mark.parametrize("folder", [True, False])
def test_nothing_there(tmp_path, folder):
    path = tmp_path if folder else tmp_path / "x.pth"
    with pytest.raises(
        SegmenterWeightsError, match="neither model.safetensors" if folder else "no such"
    ):
        load(path, CPU)


@pytest.mark.parametrize("prefix", ["module.", "model.sam.", "_orig_mod."])
@pytest.mark.parametrize(
    ("kind", "suffix"), [("sam", ".pth"), ("sam", ".safetensors"), ("mini", ".safetensors")]
)
def test_prefixes_of_names_are_named_and_how_to_take_them_off(
    prefix, suffix, kind, sam, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    file, network = tmp_path / f"x{suffix}", Mini() if kind == "mini" else sam
    state = {prefix + name: x for name, x in network.state_dict().items()}
    if suffix == ".pth":
        torch.save(state, file)
    else:
        save_file(state, file, {"architecture": kind})
    with pytest.raises(SegmenterWeightsError) as caught:
        load(file, CPU)
    first, *code = str(caught.value).splitlines()
    assert f"has names that begin with {prefix!r}" in first
    exec("\n".join(line.strip() for line in code))
    assert load(tmp_path / f"weights{suffix}", CPU)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_git_lfs_pointer_is_named(suffix, tmp_path):
    file = tmp_path / f"x{suffix}"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")
    with pytest.raises(SegmenterWeightsError, match=r"is a Git LFS pointer.*git lfs pull"):
        load(file, CPU)


ODD = {
    "of stride 0": (
        lambda: torch.zeros(1).expand(3 << 30),
        r"iou_token is of shape \(3221225472,\), of which only 4 bytes are in the file",
    ),
    "overlapping": (
        lambda: torch.zeros(99).as_strided((90, 10), (1, 1)),
        "of which only 396 bytes",
    ),
    "sparse": (lambda: torch.eye(3).to_sparse(), "iou_token is sparse"),
    "sparse rows": (lambda: torch.eye(3).to_sparse_csr(), "iou_token is sparse"),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        "iou_token is nested",
    ),
    "meta": (lambda: torch.zeros(3, device="meta"), r"iou_token is without values \(device meta\)"),
    "conjugate": (lambda: torch.zeros(3, dtype=torch.complex64).conj(), "iou_token is complex"),
    "negative": (lambda: torch._neg_view(torch.zeros(3)), "iou_token is a view that is computed"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8),
        "iou_token is quantized",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD)
def test_odd_tensors_are_refused_by_name_before_their_values_are_read(name, tmp_path):
    make, message = ODD[name]
    torch.save({"iou_token": make(), "b": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(SegmenterWeightsError, match=message) as caught:
        read(tmp_path / "x.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'x.pth'} holds tensors that are not read")


def test_names_that_are_numbers_are_refused(tmp_path):
    torch.save({7: torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(SegmenterWeightsError, match="the name 7 is of type int; expected text"):
        read(tmp_path / "x.pth")


def test_one_tensor_under_many_names_is_refused(tmp_path):
    shared = torch.ones(10_000)
    torch.save({f"a{n}": shared for n in range(20)}, tmp_path / "x.pth")
    with pytest.raises(SegmenterWeightsError, match=r"they have 800,000 bytes in a file of"):
        read(tmp_path / "x.pth")
    torch.save({"a": shared, "b": shared}, tmp_path / "x.pth")
    assert len(read(tmp_path / "x.pth")[0]) == 2


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "whole.pth")
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as whole,
        zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
    with pytest.raises(SegmenterWeightsError, match=r"x\.pth is a compressed archive"):
        read(tmp_path / "x.pth")


def test_parameters_and_weights_in_a_training_state(sam, tmp_path):
    torch.save(dict(sam.named_parameters()), tmp_path / "x.pth")
    assert not any(x.requires_grad for x in read(tmp_path / "x.pth")[0].values())
    torch.save({"epoch": 3, "net": sam.state_dict()}, tmp_path / "x.pth")
    with pytest.raises(
        SegmenterWeightsError, match=r"torch.load\(OLD, weights_only=True\)\['net'\]"
    ):
        read(tmp_path / "x.pth")
