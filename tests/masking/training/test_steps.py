"""A training step of a segmenter, and its evaluation by simulated clicks."""

import math

import numpy as np
import pytest
import torch

from masking.segmenter.mini import Mini, MiniConfig
from masking.segmenter.official import Official
from masking.segmenter.sam import Masks, Segmenter
from masking.training.measure import measure, summarize
from masking.training.noise import noise
from masking.training.pair import Pair
from masking.training.steps import Batch, PromptConfig, Rounds, Trainee, gradients, mask_loss
from tests.masking.segmenter.networks import small_sam


def squares(images, objects, side, seed=0):
    """Images with bright squares, and their masks."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 90, (images, 3, side, side), dtype=np.uint8)
    masks = np.zeros((images, objects, side, side), bool)
    for image in range(images):
        for number in range(objects):
            x, y = draw.integers(0, side // 2, 2)
            masks[image, number, y : y + side // 2, x : x + side // 2] = True
        pixels[image][:, masks[image].any(axis=0)] += 120
    return Batch(
        torch.from_numpy(pixels),
        torch.from_numpy(masks),
        torch.zeros(images, side, side, dtype=torch.bool),
        torch.arange(images),
        images,
    )


@pytest.fixture
def trainee():
    torch.manual_seed(0)
    return Trainee(Mini(MiniConfig(side=64)))


def step(model, batch, config=None, rounds=3, graded=(0, 2)):
    return gradients(model, batch, config or PromptConfig(), Rounds(rounds, graded), "float32")


def grads(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_a_step_is_repeatable_and_depends_on_the_seeds(trainee):
    batch = squares(2, 2, 64)
    first = step(trainee, batch)
    one = grads(trainee)
    trainee.zero_grad()
    assert torch.equal(step(trainee, batch), first)
    assert all(torch.equal(one[name], grad) for name, grad in grads(trainee).items())
    trainee.zero_grad()
    other = Batch(batch.images, batch.masks, batch.ignore, batch.seeds + 7, 2)
    assert not torch.equal(step(trainee, other), first)


def test_two_halves_are_the_whole(trainee):
    """The prompts of an image are the same, and its loss weighs the same, in any batch."""
    batch = squares(4, 2, 64)
    whole = step(trainee, batch)
    one = grads(trainee)
    trainee.zero_grad()
    parts = [
        Batch(batch.images[s], batch.masks[s], batch.ignore[s], batch.seeds[s], 4)
        for s in (slice(0, 1), slice(1, 4))
    ]
    sums = sum(step(trainee, part) for part in parts)
    torch.testing.assert_close(sums, whole, rtol=1e-4, atol=1e-4)
    for name, grad in grads(trainee).items():
        torch.testing.assert_close(grad, one[name], rtol=1e-3, atol=1e-4)


def test_it_learns(trainee):
    batch = squares(4, 2, 64)
    optimizer = torch.optim.AdamW(trainee.parameters(), lr=1e-3)
    losses, ious = [], []
    for number in range(30):
        again = Batch(batch.images, batch.masks, batch.ignore, batch.seeds + 4 * number, 4)
        loss, _, last, _, images = step(trainee, again).tolist()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss / images)
        ious.append(last / images)
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert np.mean(ious[-5:]) > 0.5


def test_a_frozen_trunk_gets_no_gradient(trainee):
    trainee.network.encoder.trunk.requires_grad_(False)
    step(trainee, squares(2, 1, 64))
    assert not any("trunk" in name for name in grads(trainee))
    assert any("decoder" in name for name in grads(trainee))


@pytest.mark.parametrize("start", ["click", "box", "stale"])
def test_the_single_mask_learns_nothing_from_a_single_click(trainee, start):
    """It could mean several things; a box or an earlier mask says which."""
    shares = {"boxes": float(start == "box"), "stale": float(start == "stale")}
    batch = squares(2, 2, 64)
    step(trainee, batch, PromptConfig(**shares), rounds=1, graded={0})
    of_outputs = trainee.network.decoder.head.weight.grad.abs().sum(dim=(1, 2, 3))
    assert (of_outputs[0] > 0) == (start != "click")
    assert of_outputs[1:].sum() > 0
    trainee.zero_grad()
    step(trainee, batch, PromptConfig(**shares), rounds=2, graded={1})  # with a correction
    assert trainee.network.decoder.head.weight.grad[0].abs().sum() > 0


def test_metas_sam_is_trained_too():
    """Every weight that learns gets a gradient, as data parallelism needs."""
    model = Trainee(Official(small_sam(side=64)))
    sums = step(model, squares(2, 2, 64))
    assert torch.isfinite(sums).all()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == grads(model).keys()
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert len(still) == 3  # biases that softmax does not see
    assert all(name.endswith("token_to_image.k_proj.bias") for name in still)


def test_loss_of_a_hand_made_mask():
    """Logits are 0 everywhere; the mask is one cell in four."""
    target = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    config = PromptConfig(focal=20, dice=0, bce=0)
    zero = torch.zeros(1, 2, 2, 2)
    every = torch.ones(1, 2, 2)
    focal = mask_loss(zero, target, every, config)
    torch.testing.assert_close(
        focal, torch.full((1, 2), 20 * 0.25 * math.log(2)), rtol=2e-3, atol=0
    )
    dice = mask_loss(zero, target, every, PromptConfig(focal=0, dice=1, bce=0))
    torch.testing.assert_close(dice, torch.full((1, 2), 1 - (2 * 0.5 + 1) / (2 + 1 + 1)))
    bce = mask_loss(zero, target, every, PromptConfig(focal=0, dice=0, bce=1))
    torch.testing.assert_close(bce, torch.full((1, 2), math.log(2)), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("balance", "ratio"), [(1, 3), (0, 1), (0.5, math.sqrt(3))])
def test_balance_says_how_much_more_a_cell_of_a_small_object_counts(balance, ratio):
    """One cell of four is the object: a missed one against one too many."""
    target = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    right = torch.where(target > 0, 9.0, -9.0)
    logits = torch.stack([right, right], dim=1)
    logits[0, 0, 0, 0], logits[0, 1, 1, 1] = -2.0, 2.0
    config = PromptConfig(dice=0, bce=0, balance=balance)
    missed, excess = mask_loss(logits, target, torch.ones(1, 2, 2), config)[0]
    assert missed / excess == pytest.approx(ratio, rel=0.01)


def test_ignored_cells_do_not_count():
    target = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    weight = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    logits = torch.tensor([[[[3.0, -2.0], [-1.0, 0.0]]]])
    changed = logits.clone()
    changed[..., 1, 1] = 9
    for one, other in zip(
        mask_loss(logits, target, weight, PromptConfig()),
        mask_loss(changed, target, weight, PromptConfig()),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_noise_is_uniform_and_stateless():
    some = noise(torch.arange(50), 40, 50)
    assert some.min() >= 0
    assert some.max() < 1
    assert abs(float(some.mean()) - 0.5) < 0.005
    assert abs(float(some.std()) - 12**-0.5) < 0.005
    assert torch.equal(noise(torch.tensor([7]), 40, 50)[0], some[7])
    assert len(some.unique()) > 0.99 * some.numel() * (1 - some.numel() / 2**25)


class Perfect:
    """A segmenter that knows the truth, and after a number of clicks gives it away."""

    def __init__(self, pair, after):
        self.pair, self.after, self.calls, self.seen = pair, after, 0, []

    def encode(self, frames):
        assert np.array_equal(frames[0], self.pair.image)
        return type("Embeddings", (), {"frame_size": frames.shape[1:3]})()

    def decode(self, embeddings, prompts, outputs):
        self.calls += 1
        self.seen.append((outputs, (prompts.labels >= 0).sum(dim=1).tolist(), prompts.mask_input))
        rows = [self._row(x, y) for x, y in prompts.points[:, 0].tolist()]
        truth = torch.from_numpy(self.pair.masks[rows])
        if self.calls < self.after:
            truth = torch.zeros_like(truth)
        return Masks(truth[:, None], torch.ones(len(rows), 1), torch.zeros(len(rows), 1, 4, 4))

    def _row(self, x, y):
        return int(np.flatnonzero(self.pair.masks[:, int(y), int(x)])[0])


@pytest.mark.parametrize("after", [1, 3, 7])
def test_clicks_are_counted(after):
    masks = np.zeros((2, 20, 30), bool)
    masks[0, 2:9, 2:9], masks[1, 10:19, 12:28] = True, True
    pair = Pair(np.zeros((20, 30, 3), np.uint8), masks, np.zeros((20, 30), bool), "pair", False)
    perfect = Perfect(pair, after)
    ious = measure(perfect, pair, 10)
    assert ious.shape == (2, 10)
    assert (ious[:, : after - 1] == 0).all()
    assert (ious[:, after - 1 :] == 1).all()
    one, three, five, clicks, count = summarize(ious).tolist()
    assert (one, three, five) == (2 * (after == 1), 2 * (after <= 3), 2 * (after <= 5))
    assert (clicks, count) == (2 * after, 2)
    assert perfect.calls == after  # nothing is wrong any more: no further clicks
    assert [outputs for outputs, _, _ in perfect.seen] == ["best", *["single"] * (after - 1)]
    assert [counts for _, counts, _ in perfect.seen] == [[n, n] for n in range(1, after + 1)]
    assert perfect.seen[0][2] is None
    assert all(mask is not None for _, _, mask in perfect.seen[1:])


def test_never_good_enough_counts_as_all_clicks():
    assert summarize(np.full((3, 10), 0.5)).tolist() == [1.5, 1.5, 1.5, 30, 3]


def test_measure_runs_a_real_segmenter():
    torch.manual_seed(0)
    segmenter = Segmenter(Mini(MiniConfig(side=64)), torch.device("cpu"), "float32")
    masks = np.zeros((1, 30, 50), bool)
    masks[0, 5:20, 9:30] = True
    image = np.where(masks[0][..., None], 200, 30).astype(np.uint8).repeat(3, axis=2)
    ious = measure(segmenter, Pair(image, masks, np.zeros((30, 50), bool), "", False), 6)
    assert ((ious >= 0) & (ious <= 1)).all()
