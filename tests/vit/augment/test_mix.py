"""Erasing, mixup and CutMix against torchvision's and one sample after the other."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomErasing, v2

from vit.augment import augment as module
from vit.augment.augment import erase, mix
from vit.config import AugmentConfig

MIXES = {
    "mixup": AugmentConfig(mixup=0.8),
    "cutmix": AugmentConfig(cutmix=1.0),
    "both": AugmentConfig(mixup=0.2, cutmix=1.0, mix_prob=0.7),
}


def erased_boxes(n, size, config):
    """(m, 4) top, left, height, width of those that were erased, read off the pixels."""
    hit = erase(torch.ones(n, 1, size, size), config, 0, 0, torch.arange(n))[:, 0] == 0
    rows, columns = hit.any(2), hit.any(1)
    sides = torch.stack([rows.sum(1), columns.sum(1)], 1)
    assert torch.equal(hit, rows[:, :, None] & columns[:, None])  # rectangles
    corners = torch.stack([rows.byte().argmax(1), columns.byte().argmax(1)], 1)
    return torch.cat([corners, sides], 1)[hit.flatten(1).any(1)]


def test_erasing_is_distributed_as_torchvisions():
    ours = erased_boxes(10_000, 32, AugmentConfig(erasing=1.0)).double().T
    torch.manual_seed(0)
    image = torch.empty(1, 32, 32)
    draws = (RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0]) for _ in range(5000))
    theirs = torch.tensor([draw[:4] for draw in draws]).double().T
    for a, b in [*zip(ours, theirs, strict=True), (ours[2] * ours[3], theirs[2] * theirs[3])]:
        assert stats.ks_2samp(a, b).pvalue > 1e-4


@pytest.mark.parametrize("chance", [0, 0.25])
def test_erasing_comes_with_its_probability(chance):
    count = len(erased_boxes(20_000, 16, AugmentConfig(erasing=chance)))
    assert abs(count - chance * 20_000) <= 5 * math.sqrt(20_000 * chance * (1 - chance))


def test_erasing_is_a_samples_own_and_leaves_the_input():
    inputs, samples, config = torch.randn(20, 3, 16, 16), torch.arange(20), AugmentConfig(erasing=1)
    kept, whole = inputs.clone(), erase(inputs, config, 1, 2, samples)
    assert torch.equal(inputs, kept)
    order = torch.arange(19, -1, -2)
    assert torch.equal(erase(inputs[order], config, 1, 2, samples[order]), whole[order])
    rest = whole != 0
    assert torch.equal(whole[rest], inputs[rest])
    assert rest[:, :1].expand_as(rest).equal(rest)


def lone_mix(own, other, config, draws):
    """One sample by hand: torchvision's MixUp and CutMix with these draws."""
    size = own.shape[-1]
    mixed, which, u, y, x = draws
    if mixed >= config.mix_prob:
        return own, 1.0
    cut = config.cutmix > 0 and (config.mixup == 0 or which < 0.5)
    alpha = config.cutmix if cut else config.mixup
    share = float(stats.beta(alpha, alpha).ppf(u))
    if not cut:
        return own * share + other * (1 - share), share
    half = int(0.5 * math.sqrt(1 - share) * size)
    (top, bottom), (left, right) = (
        (max(int(c * size) - half, 0), min(int(c * size) + half, size)) for c in (y, x)
    )
    result = own.clone()
    result[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    return result, 1 - (bottom - top) * (right - left) / size**2


@pytest.mark.parametrize("name", MIXES)
def test_mixing_is_that_of_one_sample_after_the_other(name):
    config, inputs, samples = MIXES[name], torch.randn(60, 3, 16, 16), torch.arange(60) * 3
    ours, share = mix(inputs, config, 4, 5, samples)
    draws = module.uniform(samples, 5, 4, "mix", 5).tolist()
    assert share.dtype == torch.float32
    assert share.shape == (60,)
    for i in range(60):
        expected, own = lone_mix(inputs[i], inputs[i ^ 1], config, draws[i])
        torch.testing.assert_close(ours[i], expected)
        assert share[i].item() == pytest.approx(own, abs=1e-6)


@pytest.mark.parametrize("name", MIXES)
def test_a_pair_does_not_depend_on_its_batch(name):
    config, inputs, samples = MIXES[name], torch.randn(40, 3, 8, 8), torch.arange(40)
    whole, share = mix(inputs, config, 1, 2, samples)
    order = torch.tensor([6, 7, 31, 30, 0, 1])  # whole pairs, one the other way round
    part, part_share = mix(inputs[order], config, 1, 2, samples[order])
    assert torch.equal(part, whole[order])
    assert torch.equal(part_share, share[order])


def test_torchvisions_mixup_and_cutmix_agree_at_their_own_draws(monkeypatch):
    """For a pair, torchvision's neighbour is ours: its draws, put in place of ours."""
    inputs, labels = torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    torch.manual_seed(0)
    for transform, config in ((v2.MixUp, MIXES["mixup"]), (v2.CutMix, MIXES["cutmix"])):
        theirs = transform(alpha=config.mixup or config.cutmix, num_classes=2)
        for lam, y, x in torch.rand(20, 3).tolist():
            distribution = SimpleNamespace(sample=lambda _, lam=lam: lam)
            monkeypatch.setattr(theirs, "_dist", distribution)
            centre = iter([int(x * 16), int(y * 16)])
            expected, targets = with_randint(monkeypatch, centre, theirs, inputs, labels)
            numbers = torch.tensor([[0, 0, lam, y, x]] * 2, dtype=torch.float64)
            monkeypatch.setattr(module, "uniform", lambda *_, numbers=numbers: numbers)
            monkeypatch.setattr(module, "betaincinv", lambda a, b, u: u)
            ours, share = mix(inputs, config, 0, 0, torch.arange(2))
            torch.testing.assert_close(ours, expected)
            torch.testing.assert_close(share, targets[:, 0] * (1 - labels) + targets[:, 1] * labels)


def with_randint(monkeypatch, values, function, *args):
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", lambda *_, **__: torch.tensor([next(values)]))
        return function(*args)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_beta_distributed(alpha):
    n = 20_000
    _, share = mix(torch.zeros(n, 1, 1, 1), AugmentConfig(mixup=alpha), 0, 0, torch.arange(n))
    cells = torch.histc(share, 20, 0, 1)
    expected = n * torch.from_numpy(stats.beta(alpha, alpha).cdf(torch.linspace(0, 1, 21))).diff()
    assert ((cells - expected).abs() < 5 * expected.sqrt()).all()
    if alpha == 1:
        assert torch.equal(share, module.uniform(torch.arange(n), 5, 0, "mix", 0)[:, 2])


def test_kinds_and_probabilities_of_mixing():
    n, inputs = 20_000, torch.zeros(20_000, 1, 2, 2)
    inputs[1::2] = 1
    mixed, share = mix(inputs, MIXES["both"], 0, 0, torch.arange(n))
    kept = (mixed == inputs).flatten(1).all(1) & (share == 1)
    fractional = ((mixed > 0) & (mixed < 1)).flatten(1).any(1)
    assert fractional.float().mean() == pytest.approx(0.35, abs=0.02)
    assert 0.3 < kept.float().mean() < 0.7  # small boxes of CutMix vanish at two pixels
    _, never = mix(inputs, dataclasses.replace(MIXES["both"], mix_prob=0), 0, 0, torch.arange(n))
    assert (never == 1).all()


@pytest.mark.parametrize(
    ("batch", "config", "message"),
    [
        (3, MIXES["mixup"], "a batch of 3 cannot be mixed in pairs"),
        (2, AugmentConfig(), "mixup and augment.cutmix are both 0"),
    ],
)
def test_what_cannot_be_mixed_is_named(batch, config, message):
    with pytest.raises(ValueError, match=message):
        mix(torch.zeros(batch, 3, 4, 4), config, 0, 0, torch.arange(batch))


def test_mixing_keeps_the_type_and_an_empty_batch():
    half = torch.randn(4, 3, 8, 8).to(torch.bfloat16)
    mixed, share = mix(half, MIXES["both"], 0, 0, torch.arange(4))
    assert mixed.dtype == torch.bfloat16
    assert share.dtype == torch.float32
    mixed, share = mix(half[:0], MIXES["both"], 0, 0, torch.arange(0))
    assert len(mixed) == len(share) == 0
