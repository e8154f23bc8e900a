"""Weights of models with a memory: folders of transformers, Meta's checkpoints, what is neither."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import masking
from masking.sam2 import meta
from masking.sam2.build import _model, refuse_sizes
from masking.sam2.network import VideoNetwork
from masking.sam2.weights import check, load, read
from masking.segmenter.mini import Mini
from masking.segmenter.sam import Prompts, SegmenterWeightsError
from tests.masking.sam2.meta_names import PAIRS
from tests.masking.sam2.tiny import KINDS, tiny, tiny_config
from tests.masking.segmenter.networks import photographs

CPU = torch.device("cpu")
INDEXED = re.compile(
    r"(blocks|transformer\.layers|memory_attention\.layers|fuser\.layers|convs|mlps)\.(\d+)"
)


@pytest.fixture(scope="module")
def state():
    """Weights of a tiny SAM 2, by transformers' names; two are the same, as in those published."""
    state = dict(tiny().model.state_dict())
    shared = "shared_embedding.positional_embedding"
    state["shared_image_embedding.positional_embedding"] = state["prompt_encoder." + shared].clone()
    return state


@pytest.fixture
def folder(state, tmp_path):
    """The folder that transformers would write."""
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("sam2_video")))
    return tmp_path


def in_metas_names(state):
    """Return a state dict of transformers as Meta would have saved it."""
    back = {new: old for old, new in PAIRS.items()}
    found = {}
    for name, tensor in state.items():
        if name == "shared_image_embedding.positional_embedding":
            continue  # the same as the prompt encoder's
        if name == "prompt_encoder.point_embed.weight":
            for i, row in enumerate(tensor):
                found[f"sam_prompt_encoder.point_embeddings.{i}.weight"] = row[None]
            continue
        stem, dot, last = name.rpartition(".")
        if last not in ("weight", "bias"):
            stem, dot, last = name, "", ""
        numbers = iter(INDEXED.findall(stem))
        old = back[INDEXED.sub(r"\1.N", stem)]
        found[re.sub(r"\bN\b", lambda _, n=numbers: next(n)[1], old) + dot + last] = tensor
    return found


@pytest.fixture
def checkpoint(state, tmp_path, monkeypatch):
    """A .pt as Meta's, of the tiny SAM 2; its encoder is known as those of the published sizes."""
    encoder = tiny_config("sam2_video")["vision_config"]["backbone_config"]
    known = ("num_attention_heads_per_stage", "global_attention_blocks", "window_size_per_stage")
    trunk = {name: encoder[name] for name in known}
    monkeypatch.setitem(meta.TRUNKS, (8, 5), trunk)
    found = meta._config
    rest = {k: v for k, v in tiny_config("sam2_video").items() if k != "vision_config"}
    vision = {
        k: v
        for k, v in tiny_config("sam2_video")["vision_config"].items()
        if k in ("fpn_hidden_size", "backbone_feature_sizes")
    }

    def small(tensors, file):
        """The config that is read from the shapes, with what is the same in all published sizes."""
        config = found(tensors, file)
        config["vision_config"] |= vision
        config["vision_config"]["backbone_config"]["image_size"] = encoder["image_size"]
        return rest | config

    monkeypatch.setattr(meta, "_config", small)
    torch.save({"model": in_metas_names(state)}, tmp_path / "sam2.1_hiera_small.pt")
    return tmp_path / "sam2.1_hiera_small.pt"


def masks_of(segmenter):
    frames = photographs(1, (60, 90))
    embeddings = segmenter.encode(frames)
    prompts = Prompts.of((60, 90), [[(30, 20)], [(60, 40), (10, 10)]], [[1], [1, 0]])
    return segmenter.logits(embeddings, prompts)[0]


@pytest.mark.parametrize("path", [".", "model.safetensors", "config.json"])
def test_a_folder_of_transformers_and_its_files(folder, state, path):
    segmenter = masking.load(folder / path, CPU, "float32")
    found = segmenter.network.model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_saves_itself(kind, tmp_path):
    """It saves SAM 3's tracker under the names of SAM 3, and all that it knows of an encoder."""
    network = tiny(kind)
    network.model.save_pretrained(tmp_path)
    check(tmp_path)
    found, state = load(tmp_path, CPU, "float32").network.model.state_dict(), network.state_dict()
    assert all(torch.equal(found[name], state["model." + name]) for name in found)


def test_an_encoder_of_timm_that_has_no_classes():
    """transformers itself cannot do without their number; the config stays as it was read."""
    config = tiny_config("edgetam_video")
    encoder = config["vision_config"]["backbone_config"]
    del encoder["num_classes"]
    encoder["pretrained_cfg"] = {"num_classes": 1000}
    before = copy.deepcopy(config)
    assert isinstance(_model(config, Path("config.json")), torch.nn.Module)
    assert config == before


def test_weights_in_several_files(folder, state):
    whole = masks_of(load(folder, CPU, "float32"))
    names = sorted(state)
    parts = {f"model-{i + 1:05}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, some in parts.items():
        save_file({name: state[name] for name in some}, folder / file)
    places = {name: file for file, some in parts.items() for name in some}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()
    assert torch.equal(masks_of(load(folder, CPU, "float32")), whole)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(SegmenterWeightsError, match=r"missing beside it:\n  model-00002-of-00003"):
        load(folder, CPU)


def test_a_weight_that_two_modules_share_may_be_saved_once(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["prompt_encoder.shared_embedding.positional_embedding"]
    whole = masks_of(load(folder, CPU, "float32"))
    save_file(tensors, folder / "model.safetensors")
    assert torch.equal(masks_of(load(folder, CPU, "float32")), whole)


def test_metas_checkpoint(folder, checkpoint):
    assert torch.equal(
        masks_of(load(checkpoint, CPU, "float32")), masks_of(load(folder, CPU, "float32"))
    )


def test_metas_names_of_each_are_known_once(state):
    names = in_metas_names(state)
    assert {meta.renamed(name) for name in names if "point_embeddings" not in name} == (
        state.keys()
        - {"prompt_encoder.point_embed.weight", "shared_image_embedding.positional_embedding"}
    )


def test_published_encoders():
    """Widths, blocks and windows of the four, from the shapes that their configs give."""
    stages = {
        (96, 12): [1, 2, 7, 2], (96, 16): [1, 2, 11, 2], (112, 24): [2, 3, 16, 3],
        (144, 48): [2, 6, 36, 4],
    }  # fmt: skip
    assert stages.keys() == meta.TRUNKS.keys()
    for (width, _), counts in stages.items():
        widths = [width << stage for stage, count in enumerate(counts) for _ in range(count)]
        trunk = "image_encoder.trunk."
        tensors = {
            trunk + "patch_embed.proj.weight": torch.empty(width, 3, 7, 7),
            trunk + "pos_embed": torch.empty(1, width, 7, 7),
        }
        for i, each in enumerate(widths):
            tensors[f"{trunk}blocks.{i}.attn.proj.weight"] = torch.empty(each, each, device="meta")
        found = meta._config(tensors, None)["vision_config"]
        assert found["backbone_config"]["blocks_per_stage"] == counts
        assert found["backbone_channel_list"] == [width << stage for stage in (3, 2, 1, 0)]


def test_sam3_has_a_detector_too(tmp_path):
    state = tiny("sam3_tracker_video").model.state_dict()
    named = {"detector_model.text_encoder.weight": torch.ones(3)}
    for name, tensor in state.items():
        if name.startswith("vision_encoder.backbone."):
            named["detector_model." + name] = tensor
        elif name.startswith("vision_encoder.neck."):
            named["tracker_neck." + name.removeprefix("vision_encoder.neck.")] = tensor
        else:
            named["tracker_model." + name] = tensor
    save_file({name: x.contiguous() for name, x in named.items()}, tmp_path / "model.safetensors")
    parts = {"tracker_config": tiny_config("sam3_tracker_video"), "detector_config": {}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3_video", **parts}))
    found = load(tmp_path, CPU, "float32").network.model.state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)


def without_a_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["no_object_pointer"]
    save_file(tensors, folder / "model.safetensors")


def of_an_image_model(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "sam2"}))


def cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


FAULTS = {
    without_a_weight: r"1 missing: no_object_pointer",
    of_an_image_model: r"config\.json is of the model 'sam2', which follows nothing",
    cut: r"model\.safetensors is not a complete safetensors file",
    lambda folder: (folder / "model.safetensors").unlink(): r"neither model\.safetensors nor",
    lambda folder: (folder / "config.json").unlink(): r"config\.json is missing beside it",
    lambda folder: (folder / "config.json").write_text("[1"): r"config\.json cannot be read",
    lambda folder: (folder / "config.json").write_text(
        json.dumps(tiny_config("sam2_video") | {"image_size": "wide"})
    ): r"no sam2_video can be built of its configuration",
}


@pytest.mark.parametrize("damage", FAULTS)
def test_faults_of_a_folder(folder, damage):
    check(folder)
    damage(folder)
    for use in (check, lambda path: load(path, CPU)):
        with pytest.raises(SegmenterWeightsError, match=FAULTS[damage]):
            use(folder)


@pytest.mark.parametrize(
    "change", [{"image_size": 256}, {"memory_attention_rope_feat_sizes": [4, 4]}]
)
def test_sizes_that_do_not_fit_are_found_without_computing(folder, change):
    """The configuration was edited by hand; no tensor of the weights contradicts it."""
    (folder / "config.json").write_text(json.dumps(tiny_config("sam2_video") | change))
    with pytest.raises(SegmenterWeightsError, match=r"do not fit one another: .*; image_size is"):
        check(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_as_published_fit(kind):
    """Those of transformers' defaults; EdgeTAM's encoder is timm's repvit_m1."""
    config = {"model_type": kind, "vision_config": None}
    if kind == "edgetam_video":
        taken = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
        encoder = {"model_type": "timm_wrapper", "architecture": "repvit_m1", "model_args": taken}
        config["vision_config"] = {"model_type": "edgetam_vision_model", "backbone_config": encoder}
    with torch.device("meta"):
        refuse_sizes(VideoNetwork(_model(config, Path("config.json"))), Path("config.json"))


def test_faults_of_a_checkpoint(checkpoint, state, tmp_path):
    whole = in_metas_names(state)
    old = {n: x for n, x in whole.items() if n != "no_obj_embed_spatial"}
    wide = whole | {"image_encoder.trunk.patch_embed.proj.weight": torch.ones(9, 3, 7, 7)}
    edge = whole | {"spatial_perceiver.latents": torch.ones(1)}
    for content, message in [
        (old, r"is not a checkpoint of SAM 2\.1:\n.* one of SAM 2\.0"),
        (wide, r"a width of 9 and 5 blocks; expected 96 and 12"),
        (edge, r"is EdgeTAM as its authors save it"),
    ]:
        torch.save({"model": content}, tmp_path / "x.pt")
        with pytest.raises(SegmenterWeightsError, match=message):
            load(tmp_path / "x.pt", CPU)
    (tmp_path / "x.pt").write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(SegmenterWeightsError, match=r"x\.pt is not a complete checkpoint"):
        load(tmp_path / "x.pt", CPU)


def test_no_code_in_a_checkpoint_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": {"a": Evil()}}, tmp_path / "x.pt")
    with pytest.raises(SegmenterWeightsError, match="is not a complete checkpoint"):
        load(tmp_path / "x.pt", CPU)
    assert not (tmp_path / "ran").exists()


def test_other_segmenters_are_loaded_as_before(tmp_path):
    save_file(Mini().state_dict(), tmp_path / "model.safetensors", {"architecture": "mini"})
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "mini.safetensors")
    assert isinstance(masking.load(tmp_path / "mini.safetensors", CPU).network, Mini)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit", "num_classes": 3}))
    assert isinstance(masking.load(tmp_path, CPU).network, Mini)
    assert read(tmp_path).metadata == {"architecture": "mini"}


def test_the_config_is_part_of_what_masks_depend_on(folder):
    before = read(folder).metadata
    (folder / "config.json").write_text(
        json.dumps(tiny_config("sam2_video") | {"sigmoid_bias_for_mem_enc": -9.0})
    )
    assert read(folder).metadata != before


def test_mask_video_knows_the_names():
    click = {"object_id": 1, "frame": 0, "x": 1, "y": 1}
    with pytest.raises(
        SegmenterWeightsError, match=r"sam2\.1_tiny: .*, perhaps you meant sam2\.1-tiny"
    ):
        masking.mask_video("x.mp4", [click], "sam2.1_tiny")
