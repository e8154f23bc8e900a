import math

import pytest
import torch
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, RandAugment, TrivialAugmentWide

from vit.augment import policies
from vit.augment.operations import OPS
from vit.augment.policies import AUTOAUGMENT_CIFAR10, AUTOAUGMENT_IMAGENET, SIGNED
from vit.config import AugmentConfig
from vit.rng import uniform

TABLES = {
    "autoaugment-cifar10": (AUTOAUGMENT_CIFAR10, AutoAugmentPolicy.CIFAR10),
    "autoaugment-imagenet": (AUTOAUGMENT_IMAGENET, AutoAugmentPolicy.IMAGENET),
}
N = 50_000


def drawn(config, size=32, n=N):
    numbers = uniform(torch.arange(n), policies.draws(config), 0, "test", 0).double()
    return policies.choose(config, size, numbers)


def near(counts, expected):
    """Within five standard deviations, and none where none is expected."""
    expected = torch.as_tensor(expected, dtype=torch.float32)
    assert (counts[expected == 0] == 0).all()
    assert ((counts - expected).abs() <= 5 * expected.sqrt() + 1e-3).all()


@pytest.mark.parametrize("policy", TABLES)
def test_the_policy_is_torchvisions(policy):
    ours, theirs = TABLES[policy]
    assert list(ours) == AutoAugment()._get_policies(theirs)


@pytest.mark.parametrize("size", [32, 45, 224])
@pytest.mark.parametrize(
    ("levels", "wide", "space"),
    [
        (10, False, lambda size: AutoAugment()._augmentation_space(10, (size, size))),
        (31, False, lambda size: RandAugment()._augmentation_space(31, (size, size))),
        (31, True, lambda size: TrivialAugmentWide()._augmentation_space(31)),
    ],
)
def test_magnitudes_and_signs_are_torchvisions(size, levels, wide, space):
    table = policies._magnitudes(levels, size, wide)
    for op, (magnitudes, signed) in space(size).items():
        assert (op in SIGNED) == signed
        assert table[OPS.index(op)].tolist() == magnitudes.expand(levels).tolist(), op


def test_randaugment_and_trivialaugment_draw_from_torchvisions_operations():
    assert list(OPS[: policies._SPACE]) == list(RandAugment()._augmentation_space(31, (32, 32)))
    assert list(OPS[: policies._SPACE]) == list(TrivialAugmentWide()._augmentation_space(31))


@pytest.mark.parametrize("policy", TABLES)
def test_sub_policies_come_with_their_probabilities(policy):
    """Pairs of operations, counted, against the table: 1/25 a row, two independent coins."""
    ops, _ = drawn(AugmentConfig(policy=policy))
    pairs = ops[:, 0] * len(OPS) + ops[:, 1]
    counts = torch.bincount(pairs, minlength=len(OPS) ** 2).view(len(OPS), len(OPS))
    expected = torch.zeros(len(OPS), len(OPS))
    for (first, p, _), (second, q, _) in TABLES[policy][0]:
        for a, share_a in ((OPS.index(first), p), (0, 1 - p)):
            for b, share_b in ((OPS.index(second), q), (0, 1 - q)):
                expected[a, b] += share_a * share_b / 25
    near(counts, N * expected)


@pytest.mark.parametrize("count", [1, 3])
def test_randaugment_draws_each_operation_alike_at_one_magnitude(count):
    config = AugmentConfig(policy="randaugment", randaugment_ops=count, randaugment_magnitude=7)
    ops, magnitudes = drawn(config, size=40)
    assert ops.shape == magnitudes.shape == (N, count)
    space = RandAugment()._augmentation_space(31, (40, 40))
    for step in range(count):
        near(torch.bincount(ops[:, step], minlength=len(OPS)), [N / 14] * 14 + [0])
    for code, (levels, _) in enumerate(space.values()):
        expected = float(levels[7]) if levels.ndim else 0.0
        assert (magnitudes[ops == code].abs() == expected).all()
    if count > 1:
        near(torch.bincount(ops[:, 0] * 14 + ops[:, 1], minlength=196), [N / 196] * 196)


def test_trivialaugment_draws_operations_and_levels_alike():
    ops, magnitudes = drawn(AugmentConfig(policy="trivialaugment"))
    assert ops.shape == (N, 1)
    near(torch.bincount(ops[:, 0], minlength=len(OPS)), [N / 14] * 14 + [0])
    for code, (levels, _) in enumerate(TrivialAugmentWide()._augmentation_space(31).values()):
        found = magnitudes[ops == code].abs()
        values, expected = levels.expand(31).float().unique(return_counts=True)
        counts = (found[:, None] == values).sum(0)
        assert counts.sum() == len(found)
        near(counts, expected * len(found) / 31)


@pytest.mark.parametrize("policy", [*TABLES, "randaugment", "trivialaugment"])
def test_signs_are_fair_and_only_where_they_mean_something(policy):
    ops, magnitudes = drawn(AugmentConfig(policy=policy))
    for step in range(ops.shape[1]):
        for code in ops[:, step].unique().tolist():
            signed = magnitudes[ops[:, step] == code, step]
            signed = signed[signed != 0]
            if OPS[code] in SIGNED:
                assert abs((signed < 0).sum() - len(signed) / 2) <= 2.5 * math.sqrt(len(signed))
            else:
                assert (signed > 0).all()


@pytest.mark.parametrize("policy", ["none", *TABLES, "randaugment", "trivialaugment"])
@pytest.mark.parametrize("draw", [0.0, 1 - 2.0**-24])
def test_the_largest_and_smallest_draw_stay_in_range(policy, draw):
    config = AugmentConfig(policy=policy)
    numbers = torch.full((3, policies.draws(config)), draw, dtype=torch.float64)
    ops, magnitudes = policies.choose(config, 32, numbers)
    assert ops.shape == magnitudes.shape
    assert ((ops >= 0) & (ops < len(OPS))).all()
