import math

import pytest
import torch
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode
from torchvision.transforms import functional as TF
from torchvision.transforms.autoaugment import _apply_op

from vit import augment as module
from vit.augment import AUTOAUGMENT_CIFAR10, OPS, apply, augment, choose, normalize
from vit.config import AugmentConfig

AUTO = AugmentConfig(policy="autoaugment-cifar10")
REFERENCE = AutoAugment(AutoAugmentPolicy.CIFAR10)
SIZES = [(32, 32), (8, 8), (31, 45), (33, 20), (3, 5)]
# Levels at which sources fall exactly halfway between two pixels: there the last bit of
# torchvision's matrix product, which differs between processors, decides.
TIES = {("ShearX", 2), ("ShearX", 6), ("ShearY", 2), ("ShearY", 6), ("Rotate", 9)}


def make_images(batch, height, width):
    """Noise, smooth images, a few values only, one value, black, white."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    images = torch.randint(0, 256, (batch, 3, height, width), generator=generator)
    coarse = torch.rand((batch, 3, 3, 3), generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    images[1::2] = smooth.long()[1::2]
    images[3::7] = images[3::7] // 100 * 50
    images[4::7] = images[4::7, :, :1, :1]
    images[5::14] = 0
    images[6::14] = 255
    return images.to(torch.uint8)


def reference_op(image, op, magnitude):
    return _apply_op(image, op, magnitude, InterpolationMode.NEAREST, None)


def reference_chain(image, config, choices, i):
    height, width = image.shape[-2:]
    image = TF.pad(image, [config.crop_padding])
    image = TF.crop(image, *choices.crop[i].tolist(), height, width)
    if choices.flip[i]:
        image = TF.hflip(image)
    for op, magnitude in zip(choices.ops[i].tolist(), choices.magnitudes[i].tolist(), strict=True):
        image = reference_op(image, OPS[op], magnitude)
    return image


def levels(op):
    """(level, magnitude) of an operation in torchvision's table, with both signs."""
    magnitudes, signed = REFERENCE._augmentation_space(10, (32, 32))[op]
    if magnitudes.ndim == 0:
        return [(None, 0.0)]
    signs = (1, -1) if signed else (1,)
    return [(i, sign * float(m)) for i, m in enumerate(magnitudes) for sign in signs]


def test_the_policy_is_torchvisions():
    assert list(AUTOAUGMENT_CIFAR10) == REFERENCE._get_policies(AutoAugmentPolicy.CIFAR10)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (31, 45), (224, 224)])
def test_magnitudes_and_signs_are_torchvisions(height, width):
    space = REFERENCE._augmentation_space(10, (height, width))
    limits = module._signed_limits(height, width)
    for op, (magnitudes, signed) in space.items():
        assert (op in limits) == signed
        if magnitudes.ndim:
            ours = [module._magnitude(op, level, limits) for level in range(10)]
            assert ours == magnitudes.tolist(), op


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_each_operation_is_torchvisions(op, height, width):
    images = make_images(14, height, width)
    for level, magnitude in [(None, 0.0)] if op == "Identity" else levels(op):
        steps = torch.full((14,), OPS.index(op)), torch.full((14,), magnitude)
        expected = torch.stack([reference_op(image, op, magnitude) for image in images])
        wrong = (module._apply_ops(images, *steps) != expected).float().mean()
        assert wrong <= (0.05 if (op, level) in TIES else 0), (level, magnitude)


@pytest.mark.parametrize(
    ("batch", "height", "width", "config"),
    [
        (420, 32, 32, AUTO),
        (70, 31, 45, AUTO),
        (70, 8, 8, AUTO),
        (1, 32, 32, AUTO),
        (70, 33, 20, AugmentConfig(crop_padding=0, hflip=0, policy="autoaugment-cifar10")),
        (70, 32, 32, AugmentConfig(crop_padding=11, hflip=1)),
    ],
)
def test_the_whole_chain_is_torchvisions(batch, height, width, config):
    images = make_images(batch, height, width)
    samples = torch.arange(batch) * 7
    choices = choose(config, height, width, 3, 5, samples)
    ours = augment(images, config, 3, 5, samples)
    for i, image in enumerate(images):
        assert torch.equal(ours[i], reference_chain(image, config, choices, i)), i


def test_a_large_image_is_torchvisions():
    images = make_images(24, 224, 224)
    choices = choose(AUTO, 224, 224, 0, 0, torch.arange(24))
    expected = torch.stack([reference_chain(im, AUTO, choices, i) for i, im in enumerate(images)])
    # Among so many pixels some turn to within a last bit of halfway between two others.
    assert (apply(images, AUTO, choices) != expected).float().mean() < 1e-4


def test_a_sample_does_not_depend_on_its_batch():
    images, samples = make_images(40, 32, 32), torch.arange(1000, 1040)
    whole = augment(images, AUTO, 1, 2, samples)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(images[order], AUTO, 1, 2, samples[order]), whole[order])
    parts = [augment(images[i : i + 1], AUTO, 1, 2, samples[i : i + 1]) for i in range(40)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
def test_another_seed_or_epoch_draws_anew(seed, epoch):
    samples = torch.arange(2000)
    first, second = (choose(AUTO, 32, 32, *key, samples) for key in ((0, 0), (seed, epoch)))
    assert (first.crop == second.crop).all(1).float().mean() == pytest.approx(1 / 81, abs=0.012)
    assert (first.flip == second.flip).float().mean() == pytest.approx(0.5, abs=0.05)
    assert (first.ops == second.ops).all(1).float().mean() < 0.15


def test_choices_stay_the_same_for_good():
    """Runs that are resumed by a later version rely on these."""
    choices = choose(AUTO, 32, 32, 0, 0, torch.tensor([0, 1, 2, 3, 4, 5, 6, 49_999]))
    assert choices.crop.tolist() == [[6, 0], [5, 0], [3, 5], [4, 4], [2, 4], [6, 7], [8, 8], [0, 6]]
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
    choices = choose(AugmentConfig(hflip=0.3), 32, 32, 0, 0, torch.arange(n))
    cells = torch.bincount(choices.crop[:, 0] * 9 + choices.crop[:, 1], minlength=81)
    assert len(cells) == 81
    assert (cells - n / 81).abs().max() < 5 * math.sqrt(n / 81)
    assert abs(choices.flip.sum() - 0.3 * n) < 5 * math.sqrt(0.21 * n)


def test_sub_policies_come_with_their_probabilities():
    """Pairs of operations, counted, against the table: 1/25 a row, two independent coins."""
    n = 50_000
    choices = choose(AUTO, 32, 32, 0, 0, torch.arange(n))
    pairs = choices.ops[:, 0] * len(OPS) + choices.ops[:, 1]
    counts = torch.bincount(pairs, minlength=len(OPS) ** 2).view(len(OPS), len(OPS))
    expected = torch.zeros(len(OPS), len(OPS))
    for (first, p, _), (second, q, _) in AUTOAUGMENT_CIFAR10:
        for a, share_a in ((OPS.index(first), p), (0, 1 - p)):
            for b, share_b in ((OPS.index(second), q), (0, 1 - q)):
                expected[a, b] += share_a * share_b / 25
    assert (counts[expected == 0] == 0).all()
    assert ((counts - n * expected).abs() <= 5 * (n * expected).sqrt() + 1e-3).all()


def test_signs_are_fair_and_only_where_they_mean_something():
    choices = choose(AUTO, 32, 32, 0, 0, torch.arange(50_000))
    limits = module._signed_limits(32, 32)
    for step in (0, 1):
        for code in choices.ops[:, step].unique().tolist():
            magnitudes = choices.magnitudes[choices.ops[:, step] == code, step]
            magnitudes = magnitudes[magnitudes != 0]
            if OPS[code] in limits:
                count = len(magnitudes)
                assert abs((magnitudes < 0).sum() - count / 2) < 2.5 * math.sqrt(count)
            elif code:
                assert (magnitudes > 0).all()


def test_the_largest_and_smallest_draw_stay_in_range(monkeypatch):
    for draw in (0.0, 1 - 2.0**-24):
        monkeypatch.setattr(module, "uniform", lambda s, n, *_, u=draw: torch.full((len(s), n), u))
        choices = choose(AUTO, 32, 32, 0, 0, torch.arange(3))
        assert choices.crop.tolist() == [[0, 0] if draw == 0 else [8, 8]] * 3
        assert apply(make_images(3, 32, 32), AUTO, choices).shape == (3, 3, 32, 32)


def test_the_policy_leaves_the_crop_and_flip_draws_alone():
    samples = torch.arange(100)
    plain, auto = (choose(config, 32, 32, 0, 0, samples) for config in (AugmentConfig(), AUTO))
    assert torch.equal(plain.crop, auto.crop)
    assert torch.equal(plain.flip, auto.flip)
    assert plain.ops.shape == (100, 0)


@pytest.mark.parametrize("hflip", [0, 1])
def test_always_or_never_flipped(hflip):
    images = make_images(14, 9, 16)
    kept = images.clone()
    config = AugmentConfig(crop_padding=0, hflip=hflip)
    result = augment(images, config, 0, 0, torch.arange(14))
    assert torch.equal(result, images.flip(-1) if hflip else images)
    result.zero_()
    assert torch.equal(images, kept)


def test_an_empty_batch_stays_empty():
    images = torch.empty((0, 3, 8, 8), dtype=torch.uint8)
    assert augment(images, AUTO, 0, 0, torch.arange(0)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("images", "samples", "message"),
    [
        (torch.zeros(2, 3, 8, 8), torch.arange(2), r"images are \(2, 3, 8, 8\) torch.float32"),
        (torch.zeros(2, 1, 8, 8).byte(), torch.arange(2), r"expected \(B, 3, H, W\)"),
        (torch.zeros(2, 3, 8, 8).byte(), torch.arange(3), r"samples are \(3,\) torch.int64"),
        (torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2), "samples are .* torch.float32; expected"),
    ],
)
def test_wrong_arguments_are_named(images, samples, message):
    with pytest.raises(ValueError, match=message):
        augment(images, AUTO, 0, 0, samples)


def test_normalize_is_torchvisions():
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    images = torch.arange(256, dtype=torch.uint8).expand(2, 3, 1, 256)
    expected = TF.normalize(TF.convert_image_dtype(images, torch.float32), mean, std)
    assert torch.equal(normalize(images, mean, std), expected)
    half = normalize(images, mean, std, torch.bfloat16)
    assert torch.equal(half, expected.to(torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_bytes_without_waiting():
    images, samples = make_images(420, 32, 32), torch.arange(420)
    on_device = images.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = augment(on_device, AUTO, 0, 0, samples)
        normalize(ours, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(ours.cpu(), augment(images, AUTO, 0, 0, samples))
    assert torch.equal(ours, augment(on_device, AUTO, 0, 0, samples.cuda()))
