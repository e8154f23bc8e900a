import dataclasses

import pytest
import timm.data.mixup
import timm.loss
import torch
from torch.nn.parallel import DistributedDataParallel

import vit.steps
from jobs.training.ranks import Ranks
from jobs.training.steps import shard
from tests.ranks import on_ranks
from vit.config import AugmentConfig, DatasetConfig, ModelConfig, OptimConfig
from vit.model import build
from vit.numerics import Numerics, choose_numerics
from vit.packing import Planned
from vit.steps import Batch, StepConfig, gradients

SHAPE = ModelConfig(image_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, stem="conv")
MIXED = AugmentConfig(crop_padding=1, erasing=0.5, mixup=0.8, cutmix=1.0, mix_prob=0.8)
CLASSES = 5


def batch(size=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (size,), generator=generator)
    return Batch(images, labels, torch.arange(size) + 100, size)


def step(model, part, optim=None, shape=SHAPE, world=1):
    optim = optim or OptimConfig()
    config = StepConfig(shape, MIXED, DatasetConfig(), optim, "float32", seed=3, world=world)
    return gradients(model, part, config, epoch=1, step=7, mixing=True)


def grads(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_mixed_loss_is_the_cross_entropy_of_timms_soft_targets(monkeypatch):
    """timm smooths the one-hot labels first, then mixes them."""
    part, model = batch(), build(SHAPE, CLASSES, seed=1)
    seen = {}
    forward = model.forward

    def spy(inputs, draws=None):
        seen["logits"] = forward(inputs, draws)
        return seen["logits"]

    monkeypatch.setattr(model, "forward", spy)
    share = torch.linspace(0, 1, 12)
    plan = Planned((share,), lambda inputs, own: (inputs, own))
    monkeypatch.setattr("vit.steps.plan_mix", lambda *_: plan)
    loss, correct, count = step(model, part).tolist()
    partners = part.labels.view(-1, 2).flip(1).flatten()
    smooth = [
        timm.data.mixup.one_hot(x, CLASSES, 0.9 + 0.02, 0.02) for x in (part.labels, partners)
    ]
    target = share[:, None] * smooth[0] + (1 - share[:, None]) * smooth[1]
    expected = timm.loss.SoftTargetCrossEntropy()(seen["logits"], target) * 12
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    named = seen["logits"].argmax(1)
    right = share * (named == part.labels) + (1 - share) * (named == partners)
    assert (correct, count) == (pytest.approx(right.sum().item(), abs=1e-5), 12)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_accumulated_gradients_are_those_of_the_whole(parts):
    shape = dataclasses.replace(SHAPE, drop_path_rate=0.3)
    results = []
    for accumulate in (1, parts):
        model = build(shape, CLASSES, seed=1)
        sums = step(model, batch(), optim=OptimConfig(accumulate=accumulate), shape=shape)
        results.append((sums, grads(model)))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)


def accumulate_on_a_rank():
    ranks = Ranks.here()
    model = DistributedDataParallel(build(SHAPE, CLASSES, seed=1))
    whole = batch()
    rows = shard(torch.arange(12), ranks.rank, ranks.world, unit=2)
    part = Batch(whole.images[rows], whole.labels[rows], whole.samples[rows], 12)
    step(model, part, optim=OptimConfig(accumulate=2), world=ranks.world)
    return grads(model.module)


def test_accumulation_on_two_ranks_is_one_batch(tmp_path):
    """Also: a sample and the one that it is mixed with stay on one rank."""
    first, second = on_ranks(2, accumulate_on_a_rank, folder=tmp_path)
    model = build(SHAPE, CLASSES, seed=1)
    step(model, batch())
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.testing.assert_close(first, grads(model), rtol=1e-4, atol=1e-6)


def test_numerics_change_rounding_only():
    part = batch()
    expected = None
    for fused in (True, False):
        for last in (True, False):
            model = build(SHAPE, CLASSES, seed=1)
            Numerics("float32", fused, last).prepare(model)
            step(model, part)
            expected = expected or grads(model)
            torch.testing.assert_close(grads(model), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_given_precision_needs_no_probe(precision, monkeypatch):
    monkeypatch.setattr("vit.numerics._probe", None)
    numerics, reason = choose_numerics(None, torch.zeros(4, 3, 8, 8), precision)
    assert (numerics.precision, numerics.fused_attention) == (precision, precision == "float32")
    assert reason == "set by --precision"


def test_the_probe_decides_and_leaves_no_gradient(monkeypatch):
    """Plain attention is made the fastest by far, channels last a little worse."""
    model, seen = build(SHAPE, CLASSES, seed=1), []
    probe = vit.numerics._probe

    def timed(model, inputs, numerics):
        seen.append((numerics, probe(model, inputs, numerics)))
        return (5.0 if numerics.fused_attention else 1.0) + 0.1 * numerics.channels_last

    monkeypatch.setattr("vit.numerics._probe", timed)
    numerics, reason = choose_numerics(model, torch.zeros(4, 3, 8, 8), "auto")
    assert numerics == Numerics("float32", fused_attention=False, channels_last=False)
    assert reason.startswith("5.00 times as fast as float32, fused attention, channels first")
    assert all(seconds > 0 for _, seconds in seen)
    assert all(p.grad is None for p in model.parameters())
