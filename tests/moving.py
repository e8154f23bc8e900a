"""Made clips of coloured discs over noise, and a segmenter whose masks of them are right."""

import numpy as np
import torch
from torch import nn

from masking.segmenter.sam import Segmenter

COLOURS = {1: (220, 40, 40), 2: (40, 60, 220), 3: (40, 200, 60)}
SIZE = (96, 160)


def picture(places, seed=0, size=SIZE):
    """Return (image, label map) of discs {object: (x, y, radius)} over a textured ground."""
    rng = np.random.default_rng(seed)
    ground = np.kron(rng.integers(90, 150, (size[0] // 8, size[1] // 8)), np.ones((8, 8)))
    image = np.repeat(ground[..., None], 3, axis=2).astype(np.uint8)
    labels = np.zeros(size, np.uint8)
    y, x = np.mgrid[: size[0], : size[1]]
    for number, place in places.items():
        if place is None:
            continue
        column, row, radius = place
        inside = (x - column) ** 2 + (y - row) ** 2 <= radius**2
        # A texture that moves with the disc: optical flow needs one.
        texture = 15 * np.sin((x - column) / 2) * np.cos((y - row) / 2)
        colour = np.array(COLOURS[number]) + texture[inside][:, None]
        image[inside] = np.clip(colour, 0, 255)
        labels[inside] = number
    return image, labels


class Seeing(nn.Module):
    """A network that returns all pixels of the colour that most positive points lie on."""

    mask_stride = 4
    fill = (0.0, 0.0, 0.0)
    autocast = True

    def __init__(self):
        super().__init__()
        self.calls = []

    def scale(self, frame_size):
        return 1.0

    def canvas(self, frame_size):
        return tuple(-(-side // 16) * 16 for side in frame_size)

    def encode(self, images):
        labels = torch.zeros(len(images), 1, *images.shape[2:])
        for number, colour in COLOURS.items():
            near = (images - torch.tensor(colour)[:, None, None]).abs().amax(dim=1, keepdim=True)
            labels[near < 60] = number
        return (labels, images)

    def keys(self, features):
        kinds = nn.functional.one_hot(features[0][:, 0].long(), 4).permute(0, 3, 1, 2).float()
        return nn.functional.avg_pool2d(kinds, 4)

    def decode(self, features, frames, points, labels, boxes, mask_input):
        maps = features[0] if frames is None else features[0][frames]
        self.calls.append(len(points))
        found = []
        for place, kind, box, map_ in zip(points, labels, boxes, maps[:, 0], strict=True):
            where = place[kind == 1] if (kind == 1).any() else box.view(2, 2).mean(0)[None]
            x, y = where.nan_to_num(0).round().long().unbind(dim=1)  # without any: a corner
            number = map_[y, x].mode().values
            mask = (map_ == number) if number else torch.zeros_like(map_, dtype=torch.bool)
            share = nn.functional.avg_pool2d(mask.float()[None, None], 4)[0, 0]
            found.append(16 * share - 8)
        logits = torch.stack(found)[:, None].expand(-1, 4, -1, -1)
        return logits, torch.where(logits.amax(dim=(2, 3)) > 0, 0.95, 0.1)


def segmenter(network=None):
    """Return a segmenter with this network or another one, as `mask_video` takes it."""
    return Segmenter(network or Seeing(), torch.device("cpu"), "float32")
