"""Images that are hard on augmentation."""

import torch


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
