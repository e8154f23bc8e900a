"""The samples of every batch, whatever the number of ranks; and the averaged weights."""

import pytest
import torch

from jobs.training.steps import batch, shard, start_average, steps_per_epoch, update_average
from vit import rng
from vit.config import ModelConfig
from vit.data.decode import DataError
from vit.model import build

SHAPE = ModelConfig(image_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2)


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (12, 4), (7, 7), (5, 1), (1001, 64)])
def test_an_epoch_is_a_permutation(n, batch_size):
    steps = steps_per_epoch(n, batch_size)
    assert steps == n // batch_size
    for epoch in (0, 1):
        order = torch.cat([batch(n, batch_size, 7, epoch, step) for step in range(steps)])
        assert order.dtype == torch.int64
        assert len(order.unique()) == steps * batch_size
        assert order.min() >= 0
        assert order.max() < n
        assert torch.equal(order, rng.permutation(n, 7, "order", epoch)[: steps * batch_size])


def test_order_depends_only_on_seed_epoch_and_step():
    first = batch(1000, 50, 0, 3, 5)
    assert not torch.equal(first, batch(1000, 50, 1, 3, 5))
    assert not torch.equal(first, batch(1000, 50, 0, 4, 5))
    again = batch(1000, 50, 0, 3, 5)
    assert torch.equal(first, again)
    again.zero_()
    assert torch.equal(first, batch(1000, 50, 0, 3, 5))


def test_an_order_out_of_range():
    with pytest.raises(DataError, match="batch_size is 11, the training set has 10 images"):
        steps_per_epoch(10, 11)
    with pytest.raises(DataError, match="batch_size is 0"):
        batch(10, 0, 0, 0, 0)
    with pytest.raises(IndexError, match="step 3 of an epoch of 3 steps"):
        batch(10, 3, 0, 0, 3)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 31, 64, 10_007])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_shards_make_the_global_batch(n, world):
    indices = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    parts = [shard(indices, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat(parts), indices)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("size", [10, 50])
def test_the_average_forgets_half_in_a_half_life(size):
    """Late in a run, from weights 1 to weights 0: whatever the batch, half is left after 500."""
    net = build(SHAPE, 5, seed=0)
    average = start_average(net, 500)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.fill_(1.0)
        for parameter in net.parameters():
            parameter.zero_()
    for step in range(500 // size):
        update_average(average, net, 500, size, step + 10**6)
    left = torch.cat([p.flatten() for p in average.parameters()])
    torch.testing.assert_close(left, torch.full_like(left, 0.5))


def test_the_average_warms_up_and_does_not_change_the_model():
    net = build(SHAPE, 5, seed=0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    average = start_average(net, 500)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.zero_()
    update_average(average, net, 1e9, 1, step=0)
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, before[name] * 0.9)
        assert torch.equal(net.state_dict()[name], before[name])
    assert not any(p.requires_grad for p in average.parameters())
