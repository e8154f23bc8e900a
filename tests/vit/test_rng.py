import math

import pytest
import torch

from vit.rng import fold, permutation, uniform

KEY = (0, "augment", 0)


def test_values_stay_the_same_for_good():
    """Runs that are resumed by a later version rely on these."""
    assert fold() == 6510301506637419378
    assert fold(0, "augment", 0) == 1372955305941615083
    assert fold("a", 1) == 2990713671386263668
    draws = uniform(torch.tensor([0, 1, 49_999, 2**32 - 1]), 3, *KEY)
    assert (draws * 2**24).long().tolist() == [
        [11815956, 813155, 6900983],
        [10973093, 224609, 16155848],
        [1302797, 11606687, 15044248],
        [10371885, 1223615, 13862780],
    ]
    assert permutation(10, 0, "order", 3).tolist() == [1, 9, 7, 0, 4, 6, 2, 5, 3, 8]


def test_fold_distinguishes_its_parts():
    keys = [
        (),
        (0,),
        ("0",),
        (0, 0),
        (0, "0"),
        ("0", 0),
        (1, 23),
        (12, 3),
        ("ab", "c"),
        ("a", "bc"),
    ]
    values = [fold(*key) for key in keys]
    assert len(set(values)) == len(keys)
    assert all(0 <= value < 2**63 for value in values)
    torch.Generator().manual_seed(max(values))


def test_more_draws_begin_with_the_same():
    samples = torch.arange(50)
    assert torch.equal(uniform(samples, 20, *KEY)[:, :7], uniform(samples, 7, *KEY))


def test_a_row_depends_only_on_its_sample():
    samples = torch.tensor([5, 5, 9, 0, 2**31, 2**32 - 1])
    rows = uniform(samples, 4, *KEY)
    assert torch.equal(rows[0], rows[1])
    for i in range(6):
        assert torch.equal(uniform(samples[i : i + 1], 4, *KEY)[0], rows[i])


def test_range_and_type():
    draws = uniform(torch.arange(100_000), 4, *KEY)
    assert draws.dtype == torch.float32
    assert draws.shape == (100_000, 4)
    assert 0 <= draws.min() < 1e-4
    assert 1 - 1e-4 < draws.max() < 1
    assert uniform(torch.arange(0), 4, *KEY).shape == (0, 4)
    assert uniform(torch.arange(3), 0, *KEY).shape == (3, 0)


@pytest.mark.parametrize("key", [KEY, (0, "augment", 1), (1, "augment", 0), (123_456, "x", 10**6)])
def test_draws_are_uniform(key):
    """Chi-square of 64 cells, for each column: mean 63, sigma 11.2."""
    n = 64_000
    cells = (uniform(torch.arange(n), 6, *key) * 64).long()
    for column in cells.T:
        counts = torch.bincount(column, minlength=64).double()
        chi_square = ((counts - n / 64) ** 2 / (n / 64)).sum()
        assert abs(chi_square - 63) < 5 * math.sqrt(2 * 63)


def test_nothing_is_correlated():
    """Columns, neighbouring samples, epochs, seeds and streams; sigma is 1 / sqrt(n)."""
    n = 50_000
    samples = torch.arange(n)
    columns = torch.cat(
        [
            uniform(samples, 4, *KEY),
            uniform(samples + 1, 2, *KEY),
            uniform(samples, 2, 0, "augment", 1),
            uniform(samples, 2, 1, "augment", 0),
            uniform(samples, 2, 0, "mix", 0),
        ],
        dim=1,
    )
    correlation = torch.corrcoef(columns.T.double()) - torch.eye(12)
    assert correlation.abs().max() < 5 / math.sqrt(n)


def test_one_bit_of_the_sample_changes_half_the_bits():
    samples = torch.arange(20_000)
    before = (uniform(samples, 1, *KEY) * 2**24).long()
    for bit in range(32):
        after = (uniform(samples ^ (1 << bit), 1, *KEY) * 2**24).long()
        changed = torch.stack([((before ^ after) >> i) & 1 for i in range(24)]).double().mean()
        assert changed == pytest.approx(0.5, abs=0.02), bit


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_a_permutation_is_one(n):
    assert permutation(n, *KEY).sort().values.tolist() == list(range(n))


def test_a_permutation_depends_on_its_key():
    orders = [permutation(1000, *key) for key in (KEY, (0, "augment", 1), (1, "augment", 0))]
    assert torch.equal(orders[0], permutation(1000, *KEY))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (orders[first] == orders[second]).sum() < 10
