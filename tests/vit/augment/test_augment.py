"""The chain of augmentations against torchvision's, and what each sample draws."""

import dataclasses
import math

import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2
from torchvision.transforms import functional as TF
from torchvision.transforms.autoaugment import _apply_op

from tests.images import make_images
from tests.vit.augment.test_mix import MIXES
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
def test_another_seed_or_epoch_gives_other_draws(seed, epoch):
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


def test_the_policy_does_not_change_the_draws_of_crop_and_flip():
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
