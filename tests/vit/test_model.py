import dataclasses
import itertools

import pytest
import timm.models.vision_transformer
import torch
import torch.nn.functional as F
import torchvision.models.vision_transformer
from torch.utils.flop_counter import FlopCounterMode

from vit import rng
from vit.config import ModelConfig
from vit.cost import flops
from vit.model import VisionTransformer, build, drop_path_factors, sincos_2d

BASE = ModelConfig(image_size=16, patch_size=4, embed_dim=48, depth=3, num_heads=3, mlp_ratio=2)
CLASSES = 7
SEED_MODEL = ModelConfig(image_size=32, patch_size=4, embed_dim=384, depth=12, num_heads=6)

VARIANTS = {
    "token": {},
    "avg": {"global_pool": "avg"},
    "sincos": {"pos_embed": "sincos2d"},
    "qk_norm": {"qk_norm": True},
    "layer_scale": {"init_values": 0.1},
    "no_qkv_bias": {"qkv_bias": False},
    "registers": {"reg_tokens": 2},
    "avg_registers_sincos": {"global_pool": "avg", "reg_tokens": 3, "pos_embed": "sincos2d"},
    "shape": {"image_size": 12, "patch_size": 3, "num_heads": 4, "depth": 1, "mlp_ratio": 3.33},
    "all": {
        "pos_embed": "sincos2d",
        "qk_norm": True,
        "init_values": 0.5,
        "qkv_bias": False,
        "reg_tokens": 1,
    },
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Models this small only lose by threads, seconds a test where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


OURS = {"conv_stem": {"stem": "conv"}, "conv_stem_8": {"stem": "conv", "patch_size": 8}}
"""What timm does not have."""


def configs(**more):
    return pytest.mark.parametrize(
        "config",
        [
            pytest.param(dataclasses.replace(BASE, **v), id=name)
            for name, v in (VARIANTS | more).items()
        ],
    )


def timm_model(config, classes=CLASSES):
    return timm.models.vision_transformer.VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=classes,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        qk_norm=config.qk_norm,
        init_values=config.init_values,
        reg_tokens=config.reg_tokens,
        global_pool=config.global_pool,
        class_token=config.global_pool == "token",
        pos_drop_rate=config.drop_rate,
        proj_drop_rate=config.drop_rate,
        attn_drop_rate=config.attn_drop_rate,
        drop_path_rate=config.drop_path_rate,
    )


@torch.no_grad()
def randomised(model):
    """Every parameter random, so that each shows in the output.

    Tokens start small: their variance is then small enough for LayerNorm's eps to show.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        small = name.startswith(("patch_embed", "pos_embed", "cls_token", "reg_token"))
        noise = torch.randn(parameter.shape, generator=generator) * (0.01 if small else 0.1)
        is_norm = "norm" in name and name.endswith("weight")
        parameter.copy_(1 + noise if is_norm else noise)
    return model


def images(count=4, config=BASE):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, config.image_size, config.image_size, generator=generator)


def gradients(model, inputs):
    """Logits, and the gradient of a loss by every parameter that learns."""
    logits = model(inputs)
    F.cross_entropy(logits, torch.arange(len(inputs)) % CLASSES).backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-5, atol=1e-5, msg=name)


@configs()
def test_loads_into_timm_and_back(config):
    ours, theirs = randomised(VisionTransformer(config, CLASSES)), timm_model(config)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    back = VisionTransformer(config, CLASSES)
    back.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in ours.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


@pytest.mark.parametrize("fused", [True, False])
@configs()
def test_logits_and_gradients_agree_with_timm(config, fused):
    ours, theirs = randomised(VisionTransformer(config, CLASSES)), timm_model(config)
    for block in ours.blocks:
        block.attn.fused = fused
    theirs.load_state_dict(ours.state_dict())
    theirs.pos_embed.requires_grad_(config.pos_embed == "learn")
    inputs = images(config=config)
    assert_same(gradients(ours, inputs), gradients(theirs, inputs))


def torchvision_name(name):
    for ours, theirs in {
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
        "patch_embed.proj": "conv_proj",
        "blocks.": "encoder.layers.encoder_layer_",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.qkv.": "self_attention.in_proj_",
        "attn.proj": "self_attention.out_proj",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3",
        "head": "heads.head",
    }.items():
        name = name.replace(ours, theirs)
    return f"encoder.ln.{name.removeprefix('norm.')}" if name.startswith("norm.") else name


def test_logits_and_gradients_agree_with_torchvision():
    ours = randomised(VisionTransformer(BASE, CLASSES))
    theirs = torchvision.models.vision_transformer.VisionTransformer(
        image_size=BASE.image_size,
        patch_size=BASE.patch_size,
        num_layers=BASE.depth,
        num_heads=BASE.num_heads,
        hidden_dim=BASE.embed_dim,
        mlp_dim=int(BASE.embed_dim * BASE.mlp_ratio),
        num_classes=CLASSES,
    )
    theirs.load_state_dict({torchvision_name(n): v for n, v in ours.state_dict().items()})
    logits, by_name = gradients(ours, images())
    renamed = {torchvision_name(name): gradient for name, gradient in by_name.items()}
    assert_same((logits, renamed), gradients(theirs, images()))


@pytest.mark.parametrize("rates", [(0.3, 0.0), (0.0, 0.3), (0.2, 0.4)], ids=str)
def test_dropout_is_where_timm_has_it(rates):
    """Both draw from torch's generator in the same order, so equal seeds drop equal elements."""
    config = dataclasses.replace(BASE, drop_rate=rates[0], attn_drop_rate=rates[1])
    ours, theirs = randomised(VisionTransformer(config, CLASSES)), timm_model(config)
    theirs.load_state_dict(ours.state_dict())
    logits = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(3)
        logits.append(model(images()))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)

    plain = randomised(VisionTransformer(BASE, CLASSES))(images())
    assert not torch.allclose(logits[0], plain, atol=1e-3)
    assert torch.equal(ours.eval()(images()), plain)


def test_drop_path_zeroes_a_branch_or_scales_it_up():
    """By hand, in timm: a branch times f is its last layer times f, one model per sample."""
    config = dataclasses.replace(BASE, drop_path_rate=0.6)
    model = randomised(VisionTransformer(config, CLASSES)).train()
    draws = rng.uniform(torch.arange(4), 2 * config.depth, 5, "drop_path").T
    logits = model(images(), draws)
    patterns = set()
    for sample in range(4):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        kept = []
        for block, branch in itertools.product(range(config.depth), range(2)):
            rate = 0.6 * block / (config.depth - 1)
            kept.append(bool(draws[2 * block + branch, sample] >= rate))
            layer = f"blocks.{block}.{('attn.proj', 'mlp.fc2')[branch]}"
            for kind in ("weight", "bias"):
                state[f"{layer}.{kind}"] *= kept[-1] / (1 - rate)
        patterns.add(tuple(kept))
        oracle = timm_model(config).eval()
        oracle.load_state_dict(state)
        expected = oracle(images()[sample : sample + 1])[0]
        torch.testing.assert_close(logits[sample], expected, rtol=1e-5, atol=1e-5)
    assert len(patterns) > 2


def test_drop_path_statistics():
    """Each block drops at its linear rate, every branch on its own; the factor's mean is 1."""
    samples = 20_000
    draws = rng.uniform(torch.arange(samples), 10, 0, "drop_path").T
    factors = drop_path_factors(draws, 0.4)
    assert factors.shape == (5, 2, samples, 1, 1)
    dropped = (factors.flatten(2) == 0).double()
    expected = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]).double()[:, None].expand(5, 2)
    torch.testing.assert_close(dropped.mean(2), expected, rtol=0, atol=0.015)
    assert (dropped[0] == 0).all()
    torch.testing.assert_close(factors.mean((2, 3, 4)), torch.ones(5, 2), rtol=0, atol=0.03)
    correlation = torch.corrcoef(dropped[1:].reshape(8, -1))
    assert (correlation - torch.eye(8)).abs().max() < 0.04


def test_drop_path_keeps_a_draw_that_equals_the_rate():
    draws = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.5, 0.49], [0.51, 0.0]])
    expected = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[2.0, 0.0], [2.0, 0.0]]])
    assert torch.equal(drop_path_factors(draws, 0.5).flatten(2), expected)


def test_drop_path_depends_only_on_the_draws():
    config = dataclasses.replace(BASE, drop_path_rate=0.5)
    model = randomised(VisionTransformer(config, CLASSES)).train()
    draws = torch.rand(2 * config.depth, 4, generator=torch.Generator().manual_seed(2))
    state = torch.get_rng_state()
    logits = model(images(), draws)
    assert torch.equal(torch.get_rng_state(), state)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(images()[order], draws[:, order]), logits[order])
    assert not torch.allclose(model(images(), 1 - draws), logits, atol=1e-3)


def test_drop_path_is_off_in_evaluation_without_draws_and_at_rate_zero():
    plain = randomised(VisionTransformer(BASE, CLASSES))
    model = VisionTransformer(dataclasses.replace(BASE, drop_path_rate=0.5), CLASSES)
    model.load_state_dict(plain.state_dict())
    draws = torch.zeros(2 * BASE.depth, 4)
    expected = plain(images())
    assert torch.equal(model.train()(images()), expected)
    assert torch.equal(model.eval()(images(), draws), expected)
    assert torch.equal(plain.train()(images(), draws), expected)


def test_seed_model_has_its_parameters():
    with torch.device("meta"):
        model = VisionTransformer(SEED_MODEL, 10)
    assert sum(p.numel() for p in model.parameters()) == 21_342_346


def test_build_is_a_function_of_the_seed_and_draws_from_no_global_generator():
    before = torch.get_rng_state()
    first = build(BASE, CLASSES, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = (build(BASE, CLASSES, seed=s).state_dict() for s in (1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("variant", ["token", "avg", "registers", "qk_norm", "layer_scale"])
def test_initial_weights_are_distributed_as_timms(variant):
    config = dataclasses.replace(BASE, embed_dim=192, depth=1, **VARIANTS[variant])
    ours = build(config, 100, seed=0)
    torch.manual_seed(1)
    theirs = timm_model(config, 100)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if b.min() == b.max():
            assert torch.equal(a, b), name
            continue
        # Five standard errors of the difference between two sample deviations.
        tolerance = 5 / a.numel() ** 0.5
        assert abs(a.std() / b.std() - 1) < tolerance, name
        assert abs(a.mean()) < 5 * b.std() / a.numel() ** 0.5, name


def test_sincos_positions_follow_the_formula_and_do_not_learn():
    config = dataclasses.replace(BASE, pos_embed="sincos2d", reg_tokens=1)
    model = build(config, CLASSES, seed=0)
    assert not model.pos_embed.requires_grad
    assert (model.pos_embed[0, :2] == 0).all()
    grid = model.pos_embed[0, 2:].unflatten(0, (4, 4))
    for row, column, k in itertools.product(range(4), range(4), range(12)):
        x, y = (torch.tensor(at / 10_000 ** (k / 11)) for at in (column, row))
        expected = torch.stack([x.sin(), x.cos(), y.sin(), y.cos()])
        torch.testing.assert_close(grid[row, column, k::12], expected, rtol=0, atol=1e-6)


def test_sincos_of_the_smallest_width_is_finite():
    assert torch.isfinite(sincos_2d(3, 4)).all()


def test_no_weight_decay_names_all_but_the_matrices():
    config = dataclasses.replace(BASE, reg_tokens=1, init_values=0.1, qk_norm=True)
    model = VisionTransformer(config, CLASSES)
    decayed = {name for name, _ in model.named_parameters()} - model.no_weight_decay()
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    matrices = {f"blocks.{i}.{layer}.weight" for i in range(config.depth) for layer in layers}
    assert decayed == matrices | {"patch_embed.proj.weight", "head.weight"}


@configs(**OURS)
def test_flops_agree_with_torchs_counter(config):
    with torch.device("meta"):
        model, inputs = (
            VisionTransformer(config, CLASSES),
            torch.empty(1, 3, *[config.image_size] * 2),
        )
    with FlopCounterMode(display=False) as counter:
        model(inputs)
    assert flops(config, CLASSES) == counter.get_total_flops()


@configs(**OURS)
def test_bfloat16_autocast_trains(config):
    model = randomised(VisionTransformer(config, CLASSES)).train()
    inputs = images(config=config)
    draws = torch.full((2 * config.depth, 4), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(inputs, draws)
    assert logits.dtype == torch.bfloat16
    logits.float().logsumexp(1).sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    torch.testing.assert_close(logits.float(), model(inputs, draws), rtol=0, atol=0.05)


@configs(**OURS)
def test_empty_batch_gives_no_logits(config):
    """A rank may be left without samples in the last evaluation."""
    assert VisionTransformer(config, CLASSES)(images(0, config)).shape == (0, CLASSES)


@pytest.mark.parametrize("shape", [(2, 3, 20, 20), (2, 3, 16, 20), (2, 1, 16, 16), (3, 16, 16)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"images have shape .*model.image_size 16 needs"):
        VisionTransformer(BASE, CLASSES)(torch.zeros(shape))


def test_draws_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"drop_path has shape \(4, 6\).*need \(6, 4\)"):
        VisionTransformer(BASE, CLASSES)(images(), torch.zeros(4, 6))


def test_conv_stem_is_a_stack_of_torchs_convolutions():
    """Width doubling up to D, a GELU after each 3x3, patches row by row."""
    config = dataclasses.replace(BASE, stem="conv", patch_size=8)
    stem = randomised(VisionTransformer(config, CLASSES)).patch_embed
    x = images()
    for (weight, bias), width in zip(
        [(c.weight, c.bias) for c in stem.convs if hasattr(c, "weight")], (12, 24, 48), strict=True
    ):
        assert len(weight) == width
        x = F.gelu(F.conv2d(x, weight, bias, stride=2, padding=1))
    tokens = torch.einsum("bchw,dc->bhwd", x, stem.proj.weight[:, :, 0, 0]) + stem.proj.bias
    torch.testing.assert_close(stem(images()), tokens.reshape(4, 4, 48), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("patch", "dim"), [(3, 48), (1, 48), (8, 6)])
def test_conv_stem_that_cannot_halve_is_refused(patch, dim):
    with pytest.raises(ValueError, match=r"model\.(patch_size|embed_dim) is .*model\.stem conv"):
        ModelConfig(image_size=24, patch_size=patch, embed_dim=dim, num_heads=1, stem="conv")
