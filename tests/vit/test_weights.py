"""Reading and fitting weights: held against timm, both ways, and against all that does not fit."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer as TimmViT
from timm.models.vision_transformer import checkpoint_filter_fn

from jobs.classifier.task import TrainConfig, VitTask, load
from jobs.run.config import parse
from jobs.storage.location import Location
from jobs.train import main
from jobs.training.ranks import Ranks
from jobs.weights.classifier import load_weights
from tests.tasks import small_config
from vit import classifier, weights
from vit.config import DatasetConfig, ModelConfig
from vit.model import build
from vit.numerics import Numerics
from vit.weights import WeightsError, fit, read, resample_positions

SMALL = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def timm_model(side, classes=10, **changes):
    torch.manual_seed(0)
    model = TimmViT(img_size=side, num_classes=classes, **(SMALL | changes)).eval()
    torch.nn.init.normal_(model.pos_embed)
    if classes:
        torch.nn.init.normal_(model.head.weight)
    return model


def saved(model, folder):
    save_file(model.state_dict(), folder / "timm.safetensors")
    return read(folder / "timm.safetensors")


VARIANTS = {
    "token": ({}, {}),
    "average": ({"global_pool": "avg", "class_token": False}, {"global_pool": "avg"}),
    "registers": ({"reg_tokens": 4}, {"reg_tokens": 4}),
    "bare prefix": ({"reg_tokens": 2, "no_embed_class": True}, {"reg_tokens": 2}),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("side", [16, 32, 24, 20])
def test_timm_weights_of_another_size_give_timms_logits(name, side, tmp_path):
    theirs, ours = VARIANTS[name]
    source = timm_model(32, **theirs)
    target = timm_model(side, **theirs)  # timm resamples by itself as it loads
    target.load_state_dict(checkpoint_filter_fn(source.state_dict(), target))
    model = build(ModelConfig(image_size=side, **SMALL, **ours), 10, seed=1).eval()
    model.load_state_dict(fit(saved(source, tmp_path), model, None).tensors)
    images = torch.randn(3, 3, side, side)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), target(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sides", [(8, 5), (5, 8), (8, 8), (1, 3)])
def test_positions_are_timms_to_the_bit(sides):
    old, new = sides
    positions = torch.randn(1, 1 + old * old, 32)
    config = ModelConfig(image_size=4 * new, **SMALL)
    expected = resample_abs_pos_embed(positions, [new, new])
    assert torch.equal(resample_positions(positions, config), expected)
    assert torch.equal(resample_positions(positions, config)[:, 0], positions[:, 0])


def test_half_precision_becomes_float32(tmp_path):
    source = timm_model(32).half()
    model = build(ModelConfig(image_size=32, **SMALL), 10, seed=1)
    fitted = fit(saved(source, tmp_path), model, None).tensors
    assert {tensor.dtype for tensor in fitted.values()} == {torch.float32}


def test_a_head_for_other_classes_is_initialised(trained, tmp_path):
    config = trained.config.model
    digits = [str(digit) for digit in range(10)]
    found = read(trained.out)
    model = build(config, 10, seed=1)
    same = fit(found, model, digits)
    assert torch.equal(same.tensors["head.weight"], found.tensors["head.weight"])
    assert "32 of 32 tensors" in same.notes[0]
    for classes in (["zero", *digits[1:]], [*digits, "ten"]):
        fresh = build(config, len(classes), seed=1)
        other = fit(found, fresh, classes)
        assert torch.equal(other.tensors["head.weight"], fresh.head.weight)
        assert torch.equal(other.tensors["norm.weight"], found.tensors["norm.weight"])
        assert "head is initialised" in other.notes[1]
    headless = timm_model(8, classes=0)
    assert "have none" in fit(saved(headless, tmp_path), model, digits).notes[1]


def test_what_does_not_fit_is_listed_with_its_shapes(tmp_path):
    found = saved(timm_model(32, qk_norm=True), tmp_path)
    model = build(ModelConfig(image_size=32, **(SMALL | {"embed_dim": 48, "depth": 3})), 10, 1)
    with pytest.raises(WeightsError) as caught:
        fit(found, model, None)
    message = str(caught.value)
    assert "blocks.2.norm1.weight: missing, expected (48,)" in message
    assert "patch_embed.proj.weight: (32, 3, 4, 4), expected (48, 3, 4, 4)" in message
    assert "blocks.0.attn.q_norm.weight: (16,), not expected" in message
    assert "timm.safetensors" in message


def test_the_number_of_heads_shows_in_no_shape(trained):
    config = trained.config.model
    changed = ModelConfig(**(vars(config) | {"num_heads": 4}))
    with pytest.raises(WeightsError, match=r"--model\.num-heads is 4; the weights have 2"):
        fit(read(trained.out), build(changed, 10, 1), None)


def test_pickles_and_damage_are_refused(tmp_path, trained):
    pickled = tmp_path / "model.pth"
    pickled.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(WeightsError, match=r"model\.pth .*pickle, which .* is never opened"):
        read(pickled)
    whole = (trained.out / "export/model.safetensors").read_bytes()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"broken\.safetensors is not a safetensors"):
        read(broken)
    with pytest.raises(WeightsError, match=r"neither model\.safetensors"):
        read(tmp_path)
    with pytest.raises(WeightsError, match="no such file"):
        read(tmp_path / "nowhere")


def test_a_model_json_of_another_version_is_refused(tmp_path, trained):
    about = json.loads((trained.out / "export" / weights.ABOUT).read_text())
    (tmp_path / weights.FILE).write_bytes((trained.out / "export" / weights.FILE).read_bytes())
    (tmp_path / weights.ABOUT).write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(WeightsError, match="format 99"):
        read(tmp_path)
    (tmp_path / weights.ABOUT).write_text(json.dumps(about | {"model": {"depht": 3}}))
    with pytest.raises(WeightsError, match="depht"):
        read(tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.", "a.encoder.", "_orig_mod."])
@pytest.mark.parametrize("depth", [2, 12])
def test_prefixes_of_names_are_named_and_how_to_take_them_off(prefix, depth, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = {prefix + name: x for name, x in timm_model(32).state_dict().items()}
    save_file(state | {"decode_head.weight": torch.ones(2)}, tmp_path / "timm.safetensors")
    config = ModelConfig(image_size=32, **(SMALL | {"depth": depth}))
    with pytest.raises(WeightsError) as caught:
        fit(read(tmp_path / "timm.safetensors"), build(config, 10, seed=0), None)
    first, *code = str(caught.value).splitlines()
    assert f"32 of its 33 names begin with {prefix!r}" in first
    assert ("--model.depth 2" in code.pop()) if depth == 12 else True
    exec("\n".join(line.strip() for line in code))
    model = build(ModelConfig(image_size=32, **SMALL), 10, seed=0)
    assert fit(read(tmp_path / "weights.safetensors"), model, None)


def test_weights_without_layer_scale_say_so(tmp_path):
    weights = saved(timm_model(32), tmp_path)
    with pytest.raises(
        WeightsError, match=r"try --model.init-values None .*\n.*ls1.gamma: missing"
    ):
        fit(weights, build(ModelConfig(image_size=32, init_values=0.1, **SMALL), 10, 0), None)


def test_layer_scale_of_an_export_is_a_setting_that_differs(trained):
    config = ModelConfig(**(vars(trained.config.model) | {"init_values": 0.1}))
    with pytest.raises(WeightsError, match=r"init-values is 0.1; the weights have None"):
        fit(read(trained.out), build(config, 10, 1), None)


def test_a_git_lfs_pointer_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")
    with pytest.raises(WeightsError, match=r"model.safetensors is a Git LFS pointer.*git lfs pull"):
        read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 10**9}, "says depth 1000000000; the weights beside it have 2 blocks"),
        ({"image_size": 10**6, "patch_size": 1}, "so 1,000,000,000,000 patches; the weights"),
        ({"classes": 3}, r"names 3 classes; the head of the weights beside it has a bias of shape"),
        ({"mlp_ratio": float("nan")}, "was not written by an export"),
        ({"depth": "x"}, "was not written by an export"),
        ({"image_size": 1e300, "patch_size": 1}, "image_size is not a whole number"),
    ],
)
def test_a_model_json_of_another_size_is_refused_before_a_model_is_built(
    change, message, tmp_path, trained
):
    about = json.loads((trained.out / "export" / weights.ABOUT).read_text())
    (tmp_path / weights.FILE).write_bytes((trained.out / "export" / weights.FILE).read_bytes())
    about["classes"] = about["classes"][: change.pop("classes", None)]
    about["model"] |= change
    (tmp_path / weights.ABOUT).write_text(json.dumps(about))
    with pytest.raises(WeightsError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    "odd",
    [
        {"pos_embed": torch.ones(())},
        {"pos_embed": torch.ones(1, 65)},
        {"pos_embed": torch.ones(1, 17, 5)},
        {"pos_embed": torch.ones(1, 17, 32, dtype=torch.complex64)},
        {"head.bias": torch.ones(())},
        {"head.bias": torch.ones(10, 2)},
        {"reg_token": torch.ones(())},
        {"norm.bias": torch.ones(32, dtype=torch.complex64)},
        {
            "patch_embed.proj.weight": torch.ones(0, 0, 0, 0),
            "blocks.0.mlp.fc1.weight": torch.ones(0, 0),
        },
    ],
)
def test_tensors_of_odd_shapes_are_listed(odd, tmp_path):
    save_file(timm_model(32).state_dict() | odd, tmp_path / "timm.safetensors")
    with pytest.raises(WeightsError, match=next(iter(odd))):
        fit(
            read(tmp_path / "timm.safetensors"),
            build(ModelConfig(image_size=32, **SMALL), 10, 0),
            None,
        )


@pytest.mark.parametrize("change", [{"head.weight": None}, {"head.bias": torch.ones(())}])
def test_half_a_head_is_none(change, tmp_path):
    state = {k: x for k, x in (timm_model(32).state_dict() | change).items() if x is not None}
    save_file(state, tmp_path / "timm.safetensors")
    found, config = read(tmp_path / "timm.safetensors"), ModelConfig(image_size=32, **SMALL)
    numerics = Numerics("float32", fused_attention=True, channels_last=False)
    with pytest.raises(WeightsError, match="has no head, so it names no class"):
        classifier.load(found, config, DatasetConfig(), numerics, torch.device("cpu"))


def test_a_training_starts_from_them(tmp_path, trained):
    task_of = lambda **changes: VitTask(  # noqa: E731
        config := small_config(tmp_path, **changes), load(config), torch.device("cpu"), Ranks(0, 1)
    )
    model = task_of(init_weights=str(trained.out)).build()
    stored = load_file(trained.out / "export/model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


def test_bad_init_weights_end_before_anything_starts(tmp_path, trained, capsys):
    small = ["--model.image-size", "8", "--model.patch-size", "4", "--model.embed-dim", "48"]
    flags = ["--out", str(tmp_path / "run"), *small, "--init-weights"]
    assert main([*flags, str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main([*flags, str(trained.out)]) == 2
    error = capsys.readouterr().err
    assert "--model.embed-dim is 48; the weights have 32" in error
    assert "head" not in error.replace("num-heads", "").replace("num_heads", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["run", "run/export", "run/export/model.safetensors"])
def test_from_s3_only_the_export_is_copied(what, trained, s3, cache):
    place = Location.parse(s3)
    (place / "run/export").upload(trained.out / "export")
    (place / "run/checkpoints/large").write_bytes(b"never wanted")
    found = load_weights(f"{s3}/{what}")
    assert found.about == read(trained.out).about
    assert not list(cache.glob("mirrors/**/large"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"global_pool": "avg", "class_token": False, "qk_norm": True},
        {"reg_tokens": 4, "mlp_ratio": 2.5, "qkv_bias": False},
        {"reg_tokens": 2},
        {"reg_tokens": 2, "no_embed_class": True},
        {"init_values": 1e-6},
    ],
)
def test_weights_of_another_shape_say_by_which_flags_they_fit(changes, tmp_path):
    shape = {"patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2} | changes
    weights = saved(timm_model(64, classes=7, **shape), tmp_path)
    with pytest.raises(WeightsError) as caught:
        fit(weights, build(ModelConfig(), 10, seed=0), None)
    line = next(x for x in str(caught.value).splitlines() if "try --model" in x)
    flags = line.partition("try ")[2].partition(" (")[0].split()
    settings = parse(TrainConfig, [*flags, "--dataset.store-size", "64", "--out", "x"], "test", "")
    config = settings.model
    assert config.image_size == 64
    found = fit(weights, build(config, 10, seed=0), None)
    build(config, 10, seed=0).load_state_dict(found.tensors, strict=True)
