import copy
import itertools

import pytest
import timm.optim
import torch

from vit.config import ModelConfig, OptimConfig
from vit.model import build
from vit.optim import Optimizer, orthogonal, parameter_groups, rate

SHAPE = ModelConfig(image_size=8, patch_size=4, embed_dim=16, depth=3, num_heads=2, reg_tokens=1)
MUON = OptimConfig(optimizer="muon", lr=2e-3, muon_lr=0.01, muon_weight_decay=0.3)


def model():
    return build(SHAPE, 5, seed=0)


def set_gradients(net, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def by_name(net, groups, key):
    names = {parameter: name for name, parameter in net.named_parameters()}
    return {names[p]: group[key] for group in groups for p in group["params"]}


def test_layer_decay_and_weight_decay_are_timms():
    net = model()
    ours = parameter_groups(net, OptimConfig(lr=0.5, layer_decay=0.6, weight_decay=0.1))
    reference = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=16, depth=3, num_heads=2,
        reg_tokens=1, num_classes=5,
    )  # fmt: skip
    theirs = timm.optim.param_groups_layer_decay(
        reference,
        weight_decay=0.1,
        layer_decay=0.6,
        no_weight_decay_list=list(net.no_weight_decay()),
    )
    scales = by_name(reference, theirs, "lr_scale")
    peaks = by_name(net, ours, "peak")
    assert peaks == pytest.approx({name: 0.5 * scale for name, scale in scales.items()})
    assert by_name(net, ours, "weight_decay") == by_name(reference, theirs, "weight_decay")


def test_muon_takes_the_matrices_of_the_blocks():
    net = model()
    parts = by_name(net, parameter_groups(net, MUON), "part")
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    hidden = {f"blocks.{i}.{layer}.weight" for i in range(3) for layer in layers}
    assert {name for name, part in parts.items() if part == "muon"} == hidden
    assert parts.keys() == dict(net.named_parameters()).keys()


def test_steps_are_those_of_torchs_adamw_and_muon(monkeypatch):
    monkeypatch.setattr("vit.optim.multiplies_bfloat16", lambda device: True)
    net, twin = model(), model()
    ours = Optimizer(net, MUON)
    names = by_name(net, ours.param_groups, "part")
    named = dict(twin.named_parameters())
    bare = twin.no_weight_decay()
    theirs = [
        torch.optim.Muon(
            [named[n] for n, part in names.items() if part == "muon"],
            lr=0.01, momentum=0.95, weight_decay=0.3,
        ),
        *(
            torch.optim.AdamW(
                [named[n] for n, p in names.items() if p == "adamw" and (n in bare) == without],
                lr=2e-3, betas=(0.9, 0.999), weight_decay=0.0 if without else 0.05, fused=True,
            )
            for without in (True, False)
        ),
    ]  # fmt: skip
    for step in range(4):
        for each in (net, twin):
            set_gradients(each, step)
        for optimizer in (ours, *theirs):
            optimizer.step()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, named[name]), name


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_a_step_of_muon_is_orthogonal(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrix, torch.float32)
    assert torch.allclose(found.double(), orthogonal(matrix.double(), torch.float64), atol=1e-4)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    left = torch.diag(u.T @ found @ v.T)  # the singular vectors stay, the values come near 1
    assert torch.allclose(u @ torch.diag(left) @ v, found, atol=1e-3)
    assert left.min() > 0.5
    assert left.max() < 1.5


@pytest.mark.parametrize("config", [OptimConfig(layer_decay=0.7), MUON], ids=["adamw", "muon"])
def test_a_restored_optimizer_goes_on_bit_for_bit(config):
    net = model()
    optimizer = Optimizer(net, config)
    twin, other = model(), None
    for step in range(6):
        set_gradients(net, step)
        optimizer.step()
        if step == 2:
            twin.load_state_dict(net.state_dict())
            other = Optimizer(twin, config)
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        elif step > 2:
            set_gradients(twin, step)
            other.step()
    for (name, ours), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_cosine_is_torchs():
    config = OptimConfig(lr=0.4, min_lr=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=0.1)
    assert [rate(config, step, 35, 5) for step in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]
    for step in range(5, 35):
        assert rate(config, step, 35, 5) * 0.4 == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_wsd_stays_then_falls_in_a_line():
    config = OptimConfig(lr=1.0, min_lr=0.2, schedule="wsd", cooldown=0.25)
    rates = [rate(config, step, 40, 4) for step in range(40)]
    assert rates[4:31] == [1.0] * 27
    falls = {round(a - b, 9) for a, b in itertools.pairwise(rates[30:])}
    assert falls == {0.08}
    assert rates[-1] == pytest.approx(0.2 + 0.08)  # the line ends, at 0.2, after the last step


def test_constant_stays():
    config = OptimConfig(schedule="constant")
    assert [rate(config, step, 10, 2) for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 1.0]


def test_a_cooldown_longer_than_what_the_warmup_leaves():
    config = OptimConfig(schedule="wsd", cooldown=1.0)
    rates = [rate(config, step, 10, 4) for step in range(10)]
    assert rates[4] == 1.0
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)
    assert min(rates[4:]) > 0
