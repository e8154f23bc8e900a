import pytest
import torch
from torchvision.transforms import AutoAugment, InterpolationMode, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

from tests.images import make_images
from vit.augment.operations import OPS, operate

SIZES = [(32, 32), (8, 8), (31, 45), (33, 20), (3, 5)]
# Levels of AutoAugment at which sources fall exactly halfway between two pixels: there the last bit
# of torchvision's matrix product, which differs between processors, decides.
TIES = {("ShearX", 2), ("ShearX", 6), ("ShearY", 2), ("ShearY", 6), ("Rotate", 9)}


def reference(image, op, magnitude):
    return _apply_op(image, op, magnitude, InterpolationMode.NEAREST, None)


def levels(space, op):
    """(level, magnitude) of an operation in torchvision's table, with both signs."""
    magnitudes, signed = space.get(op, (torch.tensor(0.0), False))
    if magnitudes.ndim == 0:
        return [(None, 0.0)]
    signs = (1, -1) if signed else (1,)
    return [(i, sign * float(m)) for i, m in enumerate(magnitudes) for sign in signs]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_each_operation_is_torchvisions(op, height, width):
    images = make_images(14, height, width)
    for level, magnitude in levels(AutoAugment()._augmentation_space(10, (32, 32)), op):
        steps = torch.full((14,), OPS.index(op)), torch.full((14,), magnitude)
        expected = torch.stack([reference(image, op, magnitude) for image in images])
        wrong = (operate(images, *steps) != expected).float().mean()
        assert wrong <= (0.05 if (op, level) in TIES else 0), (level, magnitude)


@pytest.mark.parametrize("op", OPS)
def test_wide_magnitudes_are_torchvisions(op):
    """Shears to 45 degrees, rotations to 135, two bits: every third of TrivialAugment's levels."""
    images = make_images(7, 32, 32)
    wrong = []
    for _, magnitude in levels(TrivialAugmentWide()._augmentation_space(31), op)[::3]:
        steps = torch.full((7,), OPS.index(op)), torch.full((7,), magnitude)
        expected = torch.stack([reference(image, op, magnitude) for image in images])
        wrong.append((operate(images, *steps) != expected).float().mean())
    # Halfway between two pixels either may be taken, as above.
    geometric = op.startswith("Shear") or op == "Rotate"
    assert max(wrong) <= (0.05 if geometric else 0)
    assert sum(share > 0 for share in wrong) <= 0.3 * len(wrong)


def test_each_sample_gets_its_own_operation_and_stays_in_its_place():
    images = make_images(150, 16, 16)
    ops = torch.arange(150) % len(OPS)
    magnitudes = torch.linspace(1, 7, 150).floor()
    magnitudes[(ops > 5) & (ops < 10)] /= 10
    together = operate(images, ops, magnitudes)
    for i in range(150):
        alone = operate(images[i : i + 1], ops[i : i + 1], magnitudes[i : i + 1])[0]
        assert torch.equal(together[i], alone), OPS[ops[i]]
        assert torch.equal(alone, reference(images[i], OPS[ops[i]], float(magnitudes[i])))


def test_the_images_given_stay_as_they_were():
    images = make_images(15, 8, 8)
    kept = images.clone()
    operate(images, torch.arange(15), torch.full((15,), 2.0)).zero_()
    operate(images, torch.zeros(15, dtype=torch.int64), torch.zeros(15)).zero_()
    assert torch.equal(images, kept)
