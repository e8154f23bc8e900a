"""Clips to train tracking, real and made ones, and the step that learns to follow objects."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from masking.images.decode import ImageError
from masking.segmenter.mini import Mini
from masking.training.clips import VOID, ClipConfig, clip, films
from masking.training.follow import ClipBatch, ClipTrainee, follow, gradients
from masking.training.pair import NothingToLearnError, Pair
from masking.training.steps import PromptConfig

SIZE = ClipConfig(frames=3, size=64)


def pair(seed=0, side=60):
    draw = np.random.default_rng(seed)
    masks = np.zeros((2, side, side), bool)
    masks[0, 10:30, 8:30] = True
    masks[1, 35:55, 30:50] = True
    picture = draw.integers(0, 255, (side, side, 3), np.uint8)
    return Pair(picture, masks, np.zeros((side, side), bool), "pair", regions=False)


def film(root, name="a", frames=5, objects=2, side=60):
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / name).mkdir(parents=True)
    for t in range(frames):
        labels = np.zeros((side, side), np.uint8)
        for number in range(objects):
            labels[10 + 20 * number : 25 + 20 * number, 5 + 4 * t : 20 + 4 * t] = number + 1
        labels[-4:] = VOID
        image = Image.fromarray(np.stack([labels * 80, labels * 40, labels], axis=2))
        image.save(root / "JPEGImages" / name / f"{t:05d}.jpg")
        palette = Image.fromarray(labels, "P")
        palette.putpalette(list(range(256)) * 3)
        palette.save(root / "Annotations" / name / f"{t:05d}.png")
    return films(root)


def batch(count=2, seed=0, **config):
    made = [clip([pair(1), pair(2)], [], replace(SIZE, **config), seed, 0, i) for i in range(count)]
    images = torch.from_numpy(np.stack([one.images for one in made])).permute(0, 1, 4, 2, 3)
    labels = torch.from_numpy(np.stack([one.labels for one in made]))
    return ClipBatch(images, labels, torch.arange(count) + 5, count)


def test_a_clip_depends_on_seed_epoch_and_index_alone(tmp_path):
    source, found = [pair(1), pair(2)], film(tmp_path)
    for index in range(6):
        one, same = (clip(source, found, SIZE, 3, 1, index) for _ in range(2))
        assert (one.images == same.images).all()
        assert (one.labels == same.labels).all()
        assert (one.images.shape, one.labels.shape) == ((3, 64, 64, 3), (3, 64, 64))
        numbers = set(np.unique(one.labels).tolist()) - {0, VOID}
        shown = set(np.unique(one.labels[0]).tolist()) - {0, VOID}
        assert shown == set(range(1, len(shown) + 1))
        assert numbers <= shown
        assert shown
    other = clip(source, found, SIZE, 3, 2, 0)
    assert (other.images != clip(source, found, SIZE, 3, 1, 0).images).any()


def test_labels_of_a_real_clip_follow_its_picture(tmp_path):
    """Pixels of the film have a colour for each label; what lies beyond it is void."""
    plain = replace(SIZE, real=1.0, actors=0.0)
    found = film(tmp_path)
    checked = 0
    for index in range(8):
        one = clip([pair()], found, plain, 0, 0, index)
        red = one.images[..., 0].astype(int)
        object_ = np.isin(one.labels, (1, 2))
        if object_.sum() > 50 and (one.labels == 0).sum() > 50:
            assert np.median(red[object_]) > np.median(red[one.labels == 0])
            checked += 1
    assert checked > 4


def test_a_picture_without_objects_is_passed_over_and_only_such_are_refused():
    class Broken(list):
        def __getitem__(self, index):
            if index != 1:
                raise NothingToLearnError("nothing")
            return super().__getitem__(index)

    still = replace(SIZE, real=0.0, actors=0.0)
    assert clip(Broken([pair(), pair(1), pair()]), [], still, 0, 0, 0).labels.max() > 0
    empty = Broken([pair()])
    with pytest.raises(ImageError, match="none of 8 clips shows an object"):
        clip(empty, [], still, 0, 0, 0)


def test_films_are_found_by_name(tmp_path):
    film(tmp_path, "a")
    assert [one.name for one in film(tmp_path, "b")] == ["a", "b"]
    image, labels = films(tmp_path, ["b"])[0].frame(0)
    assert image.shape == (60, 60, 3)
    assert set(np.unique(labels)) == {0, 1, 2, VOID}


@pytest.mark.parametrize(
    "wrong", [{"frames": 1}, {"size": 100}, {"objects": 0}, {"real": 1.5}, {"strides": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        ClipConfig(**wrong)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    mini = Mini(remembers=True)
    mini.memory.start_from(mini.encoder, mini.decoder, mini.config)
    for part in (mini.encoder, mini.decoder):
        part.requires_grad_(False)
    return mini


def test_the_part_for_clips_learns_and_nothing_else(network):
    trainee, before = ClipTrainee(network), network.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    optimizer = torch.optim.AdamW(network.memory.parameters(), 1e-3)
    given, losses = batch(), []
    for _ in range(6):
        optimizer.zero_grad()
        sums = gradients(trainee, given, PromptConfig(), "float32")
        losses.append(float(sums[0]))
        optimizer.step()
    assert losses[-1] < losses[0]
    assert sums[-1] == 2
    assert torch.isfinite(sums).all()
    changed = {n for n, t in network.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert all(name.startswith("memory.") for name in changed)
    assert {"memory.matching.coarse.weight", "memory.matching.middle.weight"} <= changed


@torch.no_grad()
def test_ranks_share_a_batch(network):
    """The loss of a batch is the sum of its parts', whichever rank computes them."""
    whole = batch(3)
    total, _ = follow(network, whole, PromptConfig())
    parts = [
        follow(
            network,
            ClipBatch(whole.images[at], whole.labels[at], whole.seeds[at], 3),
            PromptConfig(),
        )[0]
        for at in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), total, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_object_that_leaves_costs_no_more_than_one_that_stays(network):
    given = batch(1, actors=0.0)
    gone = given.labels.clone()
    gone[:, 1:] = 0
    total, sums = follow(network, replace(given, labels=gone), PromptConfig())
    assert torch.isfinite(total)
    assert float(total) < 100
    assert torch.isfinite(sums).all()
