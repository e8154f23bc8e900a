"""Files of weights: which network they hold, and files that hold none."""

import pytest
import torch
from safetensors.torch import save_file

from masking.segmenter.sam import SegmenterWeightsError, load
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
