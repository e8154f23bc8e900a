import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from tests.images import make_images
from vit.augment.augment import choose
from vit.augment.resize import _by_matrices, resized_crop
from vit.config import AugmentConfig

SIZES = [(32, 32), (40, 32), (24, 32), (100, 33), (96, 64)]


def boxes(batch, stored, size):
    config = AugmentConfig(crop="resized", crop_scale=(0.02, 1.0), crop_ratio=(0.4, 2.5))
    drawn = choose(config, stored, stored, size, 0, 0, torch.arange(batch)).box
    drawn[0] = torch.tensor([0, 0, stored, stored])
    drawn[1] = torch.tensor([stored - 1, 0, 1, 1])
    drawn[2] = torch.tensor([1, 2, 1, stored - 2])
    return drawn


@pytest.mark.parametrize("path", [resized_crop, _by_matrices])
@pytest.mark.parametrize(("stored", "size"), SIZES)
def test_both_paths_are_torchvisions_to_the_byte(path, stored, size):
    """The matrices, which a GPU is given, too: their arithmetic is of whole numbers."""
    images, cut = make_images(42, stored, stored), boxes(42, stored, size)
    expected = [
        TF.resized_crop(image, *box, (size, size), antialias=True)
        for image, box in zip(images, cut.tolist(), strict=True)
    ]
    assert torch.equal(path(images, cut, size), torch.stack(expected))


def test_far_smaller_is_torchvisions_to_one_level():
    images, cut = make_images(7, 300, 300), boxes(7, 300, 16)
    wrong = _by_matrices(images, cut, 16).int() - resized_crop(images, cut, 16).int()
    assert wrong.abs().max() <= 1
    assert (wrong != 0).float().mean() < 0.001


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("stored", "size"), SIZES)
def test_a_gpu_gives_the_same_bytes_without_waiting(stored, size):
    images, cut = make_images(42, stored, stored), boxes(42, stored, size)
    on_device = images.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = resized_crop(on_device, cut, size)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(ours.cpu(), resized_crop(images, cut, size))
