"""Segmenters against the segment-anything package: embeddings, masks, precision."""

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, build_sam_vit_b
from torch import nn

from masking.segmenter import sam as ours
from masking.segmenter.mini import Mini
from masking.segmenter.official import Official
from masking.segmenter.sam import PromptError, Prompts, Segmenter, load
from tests.masking.segmenter.networks import CPU, photographs, small_sam

SIZES = [(57, 101), (128, 128), (211, 90), (300, 517), (3, 64)]


def questions(size, low):
    """Return prompts of every kind as arguments of `SamPredictor.predict`, each with its frame."""
    h, w = size
    a, b, c = (0.3 * w, 0.4 * h), (0.8 * w, 0.7 * h), (0, h - 0.5)
    box = np.array([0.1 * w, 0.2 * h, 0.7 * w, 0.9 * h])
    return [
        (0, {"point_coords": [a], "point_labels": [1]}),
        (2, {"point_coords": [a, b, c], "point_labels": [1, 0, 1]}),
        (1, {"box": box}),
        (1, {"point_coords": [b], "point_labels": [0], "box": box}),
        (0, {"mask_input": low}),
        (2, {"point_coords": [a, c], "point_labels": [1, 1], "mask_input": low}),
        (0, {"point_coords": [a], "point_labels": [1], "box": box, "mask_input": low}),
    ]


def predicted(predictor, frames, asked, multimask):
    """Return the masks, scores and logits that the package predicts for each prompt."""
    found = []
    for frame, arguments in asked:
        predictor.set_image(frames[frame])
        arrays = {name: np.array(value) for name, value in arguments.items()}
        if "mask_input" in arrays:
            arrays["mask_input"] = arrays["mask_input"][None]
        found.append(predictor.predict(**arrays, multimask_output=multimask))
    return found


def prompts_of(size, asked):
    """Return the same prompts as one `Prompts`."""
    return Prompts.of(
        size,
        [arguments.get("point_coords", []) for _, arguments in asked],
        [arguments.get("point_labels", []) for _, arguments in asked],
        boxes=[arguments.get("box") for _, arguments in asked],
        mask_input=[arguments.get("mask_input") for _, arguments in asked],
        frames=[frame for frame, _ in asked],
    )


def low_logits(seed=0, side=64):
    return np.random.default_rng(seed).normal(scale=5, size=(side, side)).astype(np.float32)


def same(found, expected, tolerance=1e-5):
    """Check equality to rounding, relative to the largest value (scores near 0 are sums near 1)."""
    expected = torch.as_tensor(expected)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(scale, 0.1))


@pytest.mark.parametrize("size", SIZES)
def test_embeddings_equal_set_image(sam, segmenter, size):
    frames = photographs(3, size)
    embeddings = segmenter.encode(frames)
    predictor = SamPredictor(sam)
    assert len(embeddings) == 3
    for frame, found in zip(frames, embeddings.features[0], strict=True):
        predictor.set_image(frame)
        same(found, predictor.features[0])


@pytest.mark.parametrize("outputs", ["single", "three"])
@pytest.mark.parametrize("size", SIZES)
def test_one_call_equals_the_predictor_prompt_by_prompt(sam, segmenter, size, outputs):
    frames, asked = photographs(3, size), questions(size, low_logits())
    found = segmenter.decode(segmenter.encode(frames), prompts_of(size, asked), outputs)
    answers = predicted(SamPredictor(sam), frames, asked, outputs == "three")
    for row, (masks, scores, logits) in enumerate(answers):
        same(found.low_res_logits[row], logits)
        same(found.scores[row], scores)
        differ = found.masks[row].numpy() != masks
        assert differ.mean() < 1e-3  # places where the logit is 0 to rounding
    assert found.masks.shape == (len(asked), 3 if outputs == "three" else 1, *size)


def test_prompts_without_a_mask_share_the_frames_part(sam, segmenter):
    """Without mask_input another path is taken: with more prompts than frames, and with fewer."""
    size = (57, 101)
    frames = photographs(3, size)
    plain = [(f, a) for f, a in questions(size, None) if "mask_input" not in a]
    for asked in (plain, plain[:2], plain[:1]):
        logits = segmenter.decode(
            segmenter.encode(frames), prompts_of(size, asked), "single"
        ).low_res_logits
        for row, answer in enumerate(predicted(SamPredictor(sam), frames, asked, False)):
            same(logits[row], answer[2])


def test_best_is_the_predictors_highest_score(sam, segmenter):
    size = (90, 70)
    frames, asked = photographs(3, size), questions(size, low_logits())
    found = segmenter.decode(segmenter.encode(frames), prompts_of(size, asked))
    for row, answer in enumerate(predicted(SamPredictor(sam), frames, asked, True)):
        best = answer[1].argmax()
        same(found.scores[row, 0], answer[1][best])
        same(found.low_res_logits[row, 0], answer[2][best])
        assert (found.masks[row, 0].numpy() != answer[0][best]).mean() < 1e-3


def test_many_prompts_go_in_parts(segmenter, monkeypatch):
    monkeypatch.setattr(ours, "DECODED", 2)
    size = (57, 101)
    embeddings = segmenter.encode(photographs(3, size))
    prompts = prompts_of(size, questions(size, low_logits()))
    found = segmenter.logits(embeddings, prompts)
    monkeypatch.setattr(ours, "DECODED", 100)
    for part, whole in zip(found, segmenter.logits(embeddings, prompts), strict=True):
        same(part, whole)


@pytest.mark.parametrize("size", [*SIZES, (1, 1), (256, 256), (255, 256), (1000, 999)])
def test_upsampling_equals_the_packages(sam, segmenter, size):
    logits = torch.randn(2, 3, 64, 64)
    resized = SamPredictor(sam).transform.get_preprocess_shape(*size, 256)
    if 0 in resized:
        pytest.skip("the package cannot resize this")
    expected = sam.postprocess_masks(logits, resized, size)
    same(segmenter.upsample(logits, size), expected, 1e-6)
    same(segmenter.upsample(logits[0, 0], size), expected[0, 0], 1e-6)


def test_at_sams_own_size():
    """A canvas of 1024 pixels: windows are padded from 64 to 70, as in the real models."""
    sam = small_sam(1024)
    segmenter, predictor = Segmenter(Official(sam), CPU, "float32"), SamPredictor(sam)
    frame = photographs(1, (180, 317))
    embeddings = segmenter.encode(frame)
    predictor.set_image(frame[0])
    same(embeddings.features[0], predictor.features)
    found = segmenter.decode(embeddings, Prompts.of((180, 317), [[(50, 60)]], [[1]]), "three")
    _, scores, logits = predictor.predict(np.array([[50, 60]]), np.array([1]))
    same(found.low_res_logits[0], logits)
    same(found.scores[0], scores)
    assert segmenter.mask_scale((180, 317)) == pytest.approx(1024 / 317 / 4)


@pytest.mark.slow
def test_vit_b(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam = build_sam_vit_b().eval()
        for name, parameter in sam.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                nn.init.normal_(parameter, std=0.1)
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    segmenter = load(tmp_path / "sam.pth", CPU, "float32")
    frame, predictor = photographs(1, (270, 480)), SamPredictor(sam)
    predictor.set_image(frame[0])
    exact = segmenter.encode(frame)
    same(exact.features[0], predictor.features, 1e-4)
    fast = load(tmp_path / "sam.pth", CPU, "bfloat16").encode(frame)
    error = (fast.features[0] - exact.features[0]).norm() / exact.features[0].norm()
    assert error < 0.03


def test_bfloat16_is_close(sam, segmenter):
    size = (57, 101)
    frames = photographs(2, size)
    network = Official(small_sam())
    network.lower()
    fast = Segmenter(network, CPU, "bfloat16")
    exact, found = segmenter.encode(frames).features[0], fast.encode(frames).features[0]
    assert found.dtype == torch.float32
    assert (found - exact).norm() / exact.norm() < 0.02


def test_encoding_is_one_graph(sam, segmenter):
    """torch.compile needs a graph without breaks; its compiler is too slow for a test."""
    frames = photographs(1, (57, 101))
    encode = torch.compile(
        segmenter.network.encode, dynamic=False, fullgraph=True, backend="aot_eager"
    )
    images = segmenter._images(segmenter.prepare(frames).canvases[0], (57, 101))
    with torch.no_grad():
        same(encode(images)[0], segmenter.encode(frames).features[0])


def test_mini_goes_through_the_same_functions():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        segmenter = Segmenter(Mini(), CPU, "float32")
    size = (57, 101)
    embeddings = segmenter.encode(photographs(3, size))
    h, w = segmenter.network.canvas(size)
    low = np.resize(low_logits(), (h // 4, w // 4))
    asked = questions(size, low)
    prompts = prompts_of(size, asked)
    found = segmenter.decode(embeddings, prompts, "three")
    assert found.masks.shape == (len(asked), 3, *size)
    assert segmenter.mask_scale(size) == pytest.approx(480 / 101 / 4)
    for row, question in enumerate(asked):
        single = segmenter.decode(embeddings, prompts_of(size, [question, asked[1]]), "three")
        same(found.low_res_logits[row], single.low_res_logits[0])
        same(found.scores[row], single.scores[0])


def test_mini_kept_in_bfloat16_answers_as_under_autocast():
    size, network, found = (57, 101), Mini(), []
    for _ in range(2):
        segmenter = Segmenter(network, CPU, "bfloat16")
        asked = prompts_of(size, questions(size, None)[:4])
        found.append(segmenter.decode(segmenter.encode(photographs(3, size)), asked, "three"))
        network.lower()
    assert network.encoder.trunk.stem.weight.dtype == torch.bfloat16
    same(found[1].low_res_logits, found[0].low_res_logits)
    same(found[1].scores, found[0].scores)


def test_masks_lie_where_the_frame_is():
    """Frame to canvas to low-resolution logits: half the canvas is the frame's right half."""
    segmenter = Segmenter(Mini(), CPU, "float32")
    size = (50, 100)
    low = torch.zeros(1, 1, *(side // 4 for side in segmenter.network.canvas(size))) - 1
    scale = segmenter.mask_scale(size)
    low[..., round(50 * scale) :] = 1
    mask = segmenter.upsample(low, size)[0, 0] > 0
    assert not mask[:, :50].any()
    assert mask[:, 50:].all()


def test_no_prompts_give_no_masks(segmenter):
    for each in (segmenter, Segmenter(Mini(), CPU, "float32")):
        found = each.decode(each.encode(photographs(1, (20, 30))), Prompts.of((20, 30), [], []))
        assert found.masks.shape == (0, 1, 20, 30)
        assert found.scores.shape == (0, 1)


def test_more_prompts_than_are_decoded_at_a_time(segmenter, monkeypatch):
    embeddings = segmenter.encode(photographs(1, (20, 30)))
    prompts = Prompts.of((20, 30), [[(x, 5)] for x in range(5)], [[1]] * 5)
    whole = segmenter.decode(embeddings, prompts)
    monkeypatch.setattr(ours, "DECODED", 2)
    parts = segmenter.decode(embeddings, prompts)
    same(parts.low_res_logits, whole.low_res_logits)
    assert (parts.masks == whole.masks).float().mean() > 0.999


def test_embeddings_are_indexed_and_moved(segmenter):
    embeddings = segmenter.encode(photographs(3, (20, 30)))
    assert len(embeddings[1:]) == 2
    picked = embeddings[torch.tensor([2, 0])]
    assert torch.equal(picked.features[0][0], embeddings.features[0][2])
    assert picked.frame_size == (20, 30)
    half = embeddings.to(dtype=torch.bfloat16)
    prompts = Prompts.of((20, 30), [[(3, 4)]], [[1]])
    exact = segmenter.decode(embeddings, prompts).low_res_logits
    assert half.features[0].dtype == torch.bfloat16
    same(segmenter.decode(half, prompts).low_res_logits, exact, 0.05)


def test_frames_may_be_a_tensor(segmenter):
    frames = photographs(1, (20, 30))
    found = segmenter.encode(torch.from_numpy(frames)).features[0]
    assert torch.equal(found, segmenter.encode(frames).features[0])


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((20, 30, 3), np.uint8),
        np.zeros((1, 20, 30, 4), np.uint8),
        np.zeros((1, 20, 30, 3), np.float32),
        np.zeros((0, 20, 30, 3), np.uint8),
        np.zeros((1, 0, 30, 3), np.uint8),
    ],
)
def test_frames_of_another_shape_or_type(segmenter, frames):
    with pytest.raises(ValueError, match=r"expected uint8 RGB of shape \(height, width"):
        segmenter.encode(frames)


@pytest.mark.parametrize("shape", [(32, 32), (128, 128), (64, 65)])
def test_logits_of_another_size_are_refused(segmenter, shape):
    embeddings = segmenter.encode(photographs(1, (40, 60)))
    asked = Prompts.of((40, 60), [[(5, 5)]], [[1]], mask_input=[np.zeros(shape).tolist()])
    with pytest.raises(PromptError, match=r"mask_input has shape .*expected \(64, 64\)"):
        segmenter.decode(embeddings, asked)


def test_a_frame_that_is_not_embedded(segmenter):
    embeddings = segmenter.encode(photographs(2, (20, 30)))
    with pytest.raises(PromptError, match="frames 0 to 2; expected 0 to 1, since 2 frames"):
        segmenter.decode(embeddings, Prompts.of((20, 30), [[(1, 1)]] * 2, [[1]] * 2, frames=[0, 2]))


def test_auto_casts_only_the_encoder(sam, tmp_path, monkeypatch):
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    segmenter = load(tmp_path / "sam.pth", CPU)
    assert segmenter.precision == "bfloat16"
    dtypes = {name.split(".")[1]: p.dtype for name, p in segmenter.network.named_parameters()}
    assert dtypes == {
        "image_encoder": torch.bfloat16,
        "prompt_encoder": torch.float32,
        "mask_decoder": torch.float32,
    }
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert load(tmp_path / "sam.pth", CPU).precision == "float32"
