import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode, RandomErasing, RandomResizedCrop, v2
from torchvision.transforms import functional as TF
from torchvision.transforms.autoaugment import _apply_op

from tests.images import make_images
from vit.augment import augment as module
from vit.augment.augment import apply, augment, center_crop, choose, erase, mix, normalize
from vit.augment.operations import OPS
from vit.config import AugmentConfig

AUTO = AugmentConfig(policy="autoaugment-cifar10")
RESIZED = AugmentConfig(crop="resized")
ALL = {
    "padded": AUTO,
    "imagenet": AugmentConfig(policy="autoaugment-imagenet"),
    "resized": dataclasses.replace(RESIZED, policy="randaugment"),
    "trivial": AugmentConfig(policy="trivialaugment", crop_padding=0),
}
MIXES = {
    "mixup": AugmentConfig(mixup=0.8),
    "cutmix": AugmentConfig(cutmix=1.0),
    "both": AugmentConfig(mixup=0.2, cutmix=1.0, mix_prob=0.7),
}


def reference_chain(image, config, choices, i, size):
    top, left, height, width = choices.box[i].tolist()
    if config.crop == "resized":
        image = v2.functional.resized_crop(image, top, left, height, width, [size, size])
    else:
        image = TF.crop(TF.pad(image, [config.crop_padding]), top, left, height, width)
    if choices.flip[i]:
        image = TF.hflip(image)
    for op, magnitude in zip(choices.ops[i].tolist(), choices.magnitudes[i].tolist(), strict=True):
        image = _apply_op(image, OPS[op], magnitude, InterpolationMode.NEAREST, None)
    return image


# Crop, flip, policy


@pytest.mark.parametrize(
    ("batch", "stored", "size", "config"),
    [
        (420, 32, 32, AUTO),
        (70, 8, 8, AUTO),
        (1, 32, 32, AUTO),
        (140, 32, 32, ALL["imagenet"]),
        (70, 33, 33, ALL["trivial"]),
        (70, 32, 32, AugmentConfig(crop_padding=11, hflip=1)),
        (70, 40, 32, AugmentConfig(crop_padding=2)),
        (70, 40, 32, AugmentConfig(crop_padding=0)),
        (70, 28, 32, AugmentConfig(crop_padding=2)),
        (140, 40, 32, ALL["resized"]),
    ],
)
def test_the_whole_chain_is_torchvisions(batch, stored, size, config):
    images = make_images(batch, stored, stored)
    samples = torch.arange(batch) * 7
    choices = choose(config, stored, stored, size, 3, 5, samples)
    ours = augment(images, config, 3, 5, samples, size)
    expected = torch.stack(
        [reference_chain(image, config, choices, i, size) for i, image in enumerate(images)]
    )
    # Halfway between two pixels a last bit decides which is taken; RandAugment's level 9 of 30 and
    # others hit it. AutoAugment's for CIFAR-10 has no such.
    wrong = (ours != expected).float().mean()
    assert wrong <= (0 if config.policy in ("none", "autoaugment-cifar10") else 0.002)


def test_a_large_image_is_torchvisions():
    images = make_images(24, 224, 224)
    choices = choose(AUTO, 224, 224, 224, 0, 0, torch.arange(24))
    expected = [reference_chain(im, AUTO, choices, i, 224) for i, im in enumerate(images)]
    # Among so many pixels some turn to within a last bit of halfway between two others.
    wrong = apply(images, AUTO, choices, 224) != torch.stack(expected)
    assert wrong.float().mean() < 1e-4


@pytest.mark.parametrize("name", ALL)
def test_a_sample_does_not_depend_on_its_batch(name):
    config, images, samples = ALL[name], make_images(40, 32, 32), torch.arange(1000, 1040)
    whole = augment(images, config, 1, 2, samples, 32)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(images[order], config, 1, 2, samples[order], 32), whole[order])
    parts = [augment(images[i : i + 1], config, 1, 2, samples[i : i + 1], 32) for i in range(40)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
def test_another_seed_or_epoch_draws_anew(seed, epoch):
    samples = torch.arange(2000)
    first, second = (choose(AUTO, 32, 32, 32, *key, samples) for key in ((0, 0), (seed, epoch)))
    assert (first.box == second.box).all(1).float().mean() == pytest.approx(1 / 81, abs=0.012)
    assert (first.flip == second.flip).float().mean() == pytest.approx(0.5, abs=0.05)
    assert (first.ops == second.ops).all(1).float().mean() < 0.15


def test_choices_stay_the_same_for_good():
    """Runs that are resumed by a later version rely on these."""
    choices = choose(AUTO, 32, 32, 32, 0, 0, torch.tensor([0, 1, 2, 3, 4, 5, 6, 49_999]))
    corners = [[6, 0], [5, 0], [3, 5], [4, 4], [2, 4], [6, 7], [8, 8], [0, 6]]
    assert choices.box.tolist() == [[*corner, 32, 32] for corner in corners]
    assert choices.flip.tolist() == [True, False, False, False, True, False, False, False]
    assert [[OPS[op] for op in row] for row in choices.ops.tolist()] == [
        ["Identity", "Identity"],
        ["TranslateY", "AutoContrast"],
        ["Identity", "Identity"],
        ["Identity", "AutoContrast"],
        ["AutoContrast", "Solarize"],
        ["Equalize", "Identity"],
        ["Sharpness", "Sharpness"],
        ["Identity", "Identity"],
    ]
    torch.testing.assert_close(
        choices.magnitudes,
        torch.tensor(
            [
                [0.0, 0.0],
                [-14.501511, 0.0],
                [-0.0, 0.0],
                [0.0, 0.0],
                [0.0, 170.0],
                [0.0, 0.0],
                [0.1, 0.3],
                [0.0, 0.0],
            ]
        ),
    )


def test_crops_and_flips_are_uniform():
    n = 40_000
    choices = choose(AugmentConfig(hflip=0.3), 32, 32, 32, 0, 0, torch.arange(n))
    cells = torch.bincount(choices.box[:, 0] * 9 + choices.box[:, 1], minlength=81)
    assert len(cells) == 81
    assert (cells - n / 81).abs().max() < 5 * math.sqrt(n / 81)
    assert abs(choices.flip.sum() - 0.3 * n) < 5 * math.sqrt(0.21 * n)


@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 1.0), (0.3, 3.0))]
)
def test_resized_crops_are_distributed_as_torchvisions(scale, ratio):
    config = dataclasses.replace(RESIZED, crop_scale=scale, crop_ratio=ratio)
    ours = choose(config, 64, 64, 32, 0, 0, torch.arange(20_000)).box.double()
    torch.manual_seed(0)
    image = torch.empty(3, 64, 64)
    theirs = [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(5000)]
    ours, theirs = ours.T, torch.tensor(theirs).double().T
    for a, b in [*zip(ours, theirs, strict=True), (ours[2] * ours[3], theirs[2] * theirs[3])]:
        assert stats.ks_2samp(a, b).pvalue > 1e-4
    assert ((ours[0] + ours[2] <= 64) & (ours[1] + ours[3] <= 64) & (ours.amin(0) >= 0)).all()


@pytest.mark.parametrize(
    ("height", "width", "ratio"),
    [(64, 64, (2, 3)), (63, 64, (1 / 3, 0.5)), (64, 60, (0.75, 4 / 3))],
)
def test_where_nothing_fits_the_crop_is_torchvisions(height, width, ratio):
    config = dataclasses.replace(RESIZED, crop_scale=(1, 1), crop_ratio=ratio)
    boxes = choose(config, height, width, 32, 0, 0, torch.arange(300)).box.tolist()
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), (1.5, 1.5), ratio)
    assert boxes.count(list(expected)) > 200  # an area of 1 fits where the ratio is the image's


def test_the_policy_leaves_the_crop_and_flip_draws_alone():
    samples = torch.arange(100)
    plain, *others = (
        choose(config, 32, 32, 32, 0, 0, samples)
        for config in (AugmentConfig(), AUTO, AugmentConfig(policy="randaugment"))
    )
    for other in others:
        assert torch.equal(plain.box, other.box)
        assert torch.equal(plain.flip, other.flip)
    assert plain.ops.shape == (100, 0)


@pytest.mark.parametrize("hflip", [0, 1])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_always_or_never_flipped(hflip, memory_format):
    images = make_images(14, 9, 9).to(memory_format=memory_format)
    kept = images.clone()
    config = AugmentConfig(crop_padding=0, hflip=hflip)
    result = augment(images, config, 0, 0, torch.arange(14), 9)
    assert torch.equal(result, images.flip(-1) if hflip else images)
    result.zero_()
    assert torch.equal(images, kept)


@pytest.mark.parametrize("name", ALL)
def test_an_empty_batch_stays_empty(name):
    images = torch.empty((0, 3, 8, 8), dtype=torch.uint8)
    assert augment(images, ALL[name], 0, 0, torch.arange(0), 8).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("images", "samples", "message"),
    [
        (torch.zeros(2, 3, 8, 8), torch.arange(2), r"images are \(2, 3, 8, 8\) torch.float32"),
        (torch.zeros(2, 1, 8, 8).byte(), torch.arange(2), r"expected \(B, 3, H, W\)"),
        (torch.zeros(2, 3, 8, 8).byte(), torch.arange(3), r"samples are \(3,\) torch.int64"),
        (torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2), "samples are .* torch.float32; expected"),
        (torch.zeros(2, 3, 7, 8).byte(), torch.arange(2), "images of 7x8 .*crop_padding 4 .* 16"),
    ],
)
def test_wrong_arguments_are_named(images, samples, message):
    with pytest.raises(ValueError, match=message):
        augment(images, AUTO, 0, 0, samples, 16)


# Evaluation and normalisation


@pytest.mark.parametrize(("stored", "size"), [(32, 32), (33, 32), (35, 32), (40, 31), (9, 1)])
def test_the_centre_is_torchvisions_and_no_copy(stored, size):
    images = make_images(3, stored, stored)
    ours = center_crop(images, size)
    assert torch.equal(ours, TF.center_crop(images, [size, size]))
    assert ours.untyped_storage().data_ptr() == images.untyped_storage().data_ptr()


def test_too_small_a_centre_is_named():
    with pytest.raises(ValueError, match=r"images of 8x8 pixels are .*image_size 16"):
        center_crop(make_images(1, 8, 8), 16)


def test_normalize_is_torchvisions():
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    images = torch.arange(256, dtype=torch.uint8).expand(2, 3, 1, 256)
    expected = TF.normalize(TF.convert_image_dtype(images, torch.float32), mean, std)
    assert torch.equal(normalize(images, mean, std), expected)
    half = normalize(images, mean, std, torch.bfloat16)
    assert torch.equal(half, expected.to(torch.bfloat16))


# Erasing


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


# Mixing


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


def test_draws_for_good():
    """Runs that are resumed by a later version rely on these."""
    samples = torch.tensor([0, 1, 2, 49_999])
    boxes = choose(RESIZED, 40, 40, 32, 0, 0, samples).box
    assert boxes.tolist() == [[7, 0, 31, 26], [2, 0, 37, 37], [1, 2, 37, 37], [1, 13, 25, 21]]
    _, share = mix(torch.zeros(4, 3, 32, 32), MIXES["both"], 0, 0, samples)
    torch.testing.assert_close(share, torch.tensor([0.147445485, 1, 0.6103515625, 0.75390625]))
    erased = erase(torch.ones(4, 1, 32, 32), AugmentConfig(erasing=1), 0, 0, samples) == 0
    assert erased.flatten(1).sum(1).tolist() == [176, 152, 322, 40]
    drawn = {
        name: choose(AugmentConfig(policy=name), 32, 32, 32, 0, 0, samples)
        for name in ("randaugment", "trivialaugment", "autoaugment-imagenet")
    }
    assert {name: choices.ops.tolist() for name, choices in drawn.items()} == {
        "randaugment": [[8, 4], [13, 7], [3, 12], [6, 7]],
        "trivialaugment": [[8], [13], [3], [6]],
        "autoaugment-imagenet": [[0, 8], [13, 13], [0, 0], [0, 13]],
    }
    torch.testing.assert_close(
        drawn["trivialaugment"].magnitudes, torch.tensor([[-0.594], [0.0], [26.666667], [0.858]])
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ALL)
def test_a_gpu_gives_the_same_bytes_without_waiting(name):
    config, images, samples = ALL[name], make_images(420, 32, 32), torch.arange(420)
    on_device = images.cuda()
    erasing = AugmentConfig(erasing=0.5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = augment(on_device, config, 0, 0, samples, 32)
        inputs = normalize(ours, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        mixed, share = mix(erase(inputs, erasing, 0, 0, samples), MIXES["both"], 0, 0, samples)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(ours.cpu(), augment(images, config, 0, 0, samples, 32))
    assert torch.equal(ours, augment(on_device, config, 0, 0, samples.cuda(), 32))
    again = erase(inputs.cpu(), erasing, 0, 0, samples)
    expected, expected_share = mix(again, MIXES["both"], 0, 0, samples)
    torch.testing.assert_close(mixed.cpu(), expected)
    assert torch.equal(share.cpu(), expected_share)
