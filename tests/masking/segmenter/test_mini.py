"""The small segmenter's network: its trunk against timm's, its prompts, its ImageNet start."""

import pytest
import timm
import torch

from jobs.segmenter.network import imagenet
from masking.segmenter.lite0 import Trunk, fold
from masking.segmenter.mini import Decoder, Mini, MiniConfig
from masking.segmenter.prompt_maps import CLICK_DEPTHS, Prompt, PromptMaps, click_depths

TAPS = (1, 2, 4, 6)


def timm_features(model, images):
    x, found = model.bn1(model.conv_stem((images - 127) / 128)), []
    for number, stage in enumerate(model.blocks):
        x = stage(x)
        if number in TAPS:
            found.append(x)
    return found


@pytest.fixture(scope="module")
def lite0():
    """timm's EfficientNet-Lite0 with statistics that are not 0 and 1."""
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0").double().eval()
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "running_var", "bias")):
            value.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("size", [(64, 96), (224, 224)])
def test_trunk_equals_timms(lite0, size):
    trunk = Trunk().double().eval()  # in float32, folding rounds otherwise than timm does
    trunk.load_state_dict(fold(lite0.state_dict()))
    images = torch.rand(2, 3, *size, dtype=torch.float64) * 255
    with torch.no_grad():
        for ours, theirs in zip(trunk(images), timm_features(lite0, images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_imagenet_start_is_lite0():
    Trunk().load_state_dict(fold(imagenet()))


def test_fold_refuses_another_network():
    other = timm.create_model("tf_efficientnet_lite1").state_dict()
    with pytest.raises(ValueError, match=r"not the weights of EfficientNet-Lite0: layer 1"):
        fold({"a": torch.zeros(8, 3, 3, 3), **other})


def random_prompts(n, p, side=64, boxes=None, logits=None):
    points = torch.rand(n, p, 2) * side
    if boxes is None:
        boxes = torch.full((n, 4), torch.nan)
    return points, torch.ones(n, p, dtype=torch.int64), boxes, logits


@pytest.fixture(scope="module")
def mini():
    torch.manual_seed(0)
    return Mini(MiniConfig(side=64)).eval()


@torch.no_grad()
def test_decode_does_not_mix_prompt_sets(mini):
    """Sets decoded together give what each gives by itself; filler changes nothing."""
    features = mini.encode(torch.rand(2, 3, 64, 32) * 255)
    points, labels, boxes, logits = random_prompts(3, 2, 32, logits=torch.randn(3, 16, 8))
    labels[0, 1], labels[1, 1] = 0, -1
    boxes[2] = torch.tensor([3.0, 4.0, 20.0, 30.0])
    logits[1] = torch.nan
    frames = torch.tensor([0, 1, 1])
    masks, scores = mini.decode(features, frames, points, labels, boxes, logits)
    assert masks.shape == (3, 4, 16, 8)
    assert scores.shape == (3, 4)
    for row in range(3):
        some = [x[row : row + 1] for x in (frames, points, labels, boxes, logits)]
        single = mini.decode(features, *some)
        torch.testing.assert_close(single[0], masks[row : row + 1], rtol=1e-4, atol=1e-4)
    points[1, 1] = 7  # where filler lies does not matter, nor does it whether it is there
    short = mini.decode(features, frames[1:2], points[1:2, :1], labels[1:2, :1], boxes[1:2], None)
    torch.testing.assert_close(short[0], masks[1:2], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["point", "box", "mask"])
def test_each_prompt_counts(mini, kind):
    features = mini.encode(torch.rand(1, 3, 64, 64) * 255)
    frames, base = torch.zeros(1, dtype=torch.int64), random_prompts(1, 1)
    points, labels, boxes, _ = (None if x is None else x.clone() for x in base)
    logits = None
    if kind == "point":
        points += 9
    elif kind == "box":
        boxes[:] = torch.tensor([1.0, 1.0, 30.0, 30.0])
    else:
        logits = torch.randn(1, 16, 16)
    one = mini.decode(features, frames, *base)[0]
    assert not torch.allclose(one, mini.decode(features, frames, points, labels, boxes, logits)[0])


def test_maps_lie_where_the_prompts_are():
    """Maximum of the disc at the click, inside of a box in the box, at every stride."""
    keys = torch.nn.functional.normalize(torch.randn(1, 4, 16, 16), dim=1)
    boxes = torch.tensor([[8.0, 16.0, 24.0, 40.0]])
    prompt = Prompt(torch.tensor([[[42.0, 10.0]]]), torch.tensor([[1]]), boxes, None)
    maps = PromptMaps()(keys, prompt, 4)[0]
    assert maps.shape == (PromptMaps.CHANNELS, 16, 16)
    y, x = divmod(int(maps[1].argmax()), 16)
    assert (x, y) == (10, 2)  # the narrowest of the soft distances
    assert maps[0, 2, 10] == 1
    assert not maps[4:8].isnan().any()
    inside = (maps[8] > 0).nonzero()
    assert inside.min(dim=0).values.tolist() == [4, 2]
    assert inside.max(dim=0).values.tolist() == [9, 5]


def test_click_depths_say_how_deep_clicks_lie():
    """A square of 8 x 8 cells of stride 8, as one of four masks; the others are empty."""
    p = torch.zeros(3, 4, 64, 32)
    p[:, 2, 16:32, 8:24] = 1
    points = torch.tensor([[[64.0, 96]], [[36.0, 68]], [[64.0, 96]]]).repeat(1, 2, 1)
    points[0, 1] = points[1, 0]  # the middle and a corner; a corner; nothing but a negative
    labels = torch.tensor([[1, 1], [1, -1], [0, 0]])
    nowhere = torch.full((3, 4), torch.nan)
    found = click_depths(p, Prompt(points, labels, nowhere, None))
    assert found.shape == (3, 4, CLICK_DEPTHS)
    torch.testing.assert_close(found[0, 2], torch.tensor([1, 1 / 4, 4 / 32]))
    torch.testing.assert_close(found[1, 2], torch.tensor([1 / 4, 1 / 4, 4 / 32]))
    torch.testing.assert_close(found[2, 2], torch.tensor([0, 1, 4 / 32]))
    assert not found[:2, 0].any()


@pytest.mark.parametrize(
    ("frame", "canvas"),
    [
        ((270, 480), (288, 480)),
        ((480, 270), (480, 288)),
        ((100, 100), (480, 480)),
        ((5, 999), (32, 480)),
    ],
)
def test_canvas_holds_the_frame(frame, canvas):
    mini = Mini()
    assert mini.canvas(frame) == canvas
    scale = mini.scale(frame)
    assert all(side * scale <= edge + 0.5 for side, edge in zip(frame, canvas, strict=True))


def test_small_enough_to_ship():
    count = sum(p.numel() for p in Mini().parameters())
    assert 2 * count < 12_000_000  # bytes, in float16
    assert sum(p.numel() for p in Decoder(MiniConfig()).parameters()) < count / 3
