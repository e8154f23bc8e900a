"""Training samples for a segmenter, composed from image-mask pairs.

A sample is a crop of one picture. Objects cut out of another picture and drawn shapes are put on
it, some of them in front of its objects; then come the faults of a camera. It follows "Simple
Copy-Paste" (Ghiasi et al. 2021, arXiv 2012.07177) and the training of RITM (Sofiiuk et al. 2021,
arXiv 2102.06583).

A sample is a function of (seed, epoch, index), whatever process or thread computes it: it uses no
global generator, neither numpy's nor OpenCV's. The caller says how many threads OpenCV uses
(`cv2.setNumThreads(0)` where several processes compose).

Shapes: S is the side of a sample in pixels, K the number of its masks; pictures have H x W pixels.
Points are (x, y), origin top left.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from masking.images.arrays import Bools, Pixels
from masking.images.decode import ImageError
from masking.training.draw import affine, outline, photograph, resample, stroke
from masking.training.pair import Pair

_BITS = 7
"""Most objects of a picture that are warped together: with the ignored pixels, their masks are the
bits of a byte."""
_IGNORED = 1 << _BITS
_ATTEMPTS = 6
_VISIBLE = 0.25  # least share of an object that others may leave visible; less is no object
_ADJOINING = 0.15  # least share of the shorter outline along which parts of one thing touch
_SMALL = 3  # masks are shrunk by this to find parts that touch: gaps between labels are that wide


class PairSource(Protocol):
    """Pairs by index: `masking.training.pairs.Pairs`, or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pair: ...


@dataclass(frozen=True)
class ComposeConfig:
    """How training samples are composed."""

    size: int = 256
    """Side of a sample, in pixels."""
    objects: int = 3
    """Number of masks in a sample."""
    smallest: float = 0.003
    """Smallest share of a sample that an object may cover; smaller objects are not learnt."""
    scale: tuple[float, float] = (0.8, 1.85)
    """Smallest and largest length of a picture's longer side, as a multiple of the sample's
    side."""
    rotation: float = 10.0
    """Largest rotation in degrees, in either direction; half of the pictures are not rotated."""
    join: float = 0.33
    """Probability that adjoining parts are joined into one object."""
    paste: float = 0.5
    """Probability that one to three objects of another picture are pasted onto the sample."""
    drawn: float = 0.2
    """Probability that one or two drawn shapes, some thin or odd, are put onto the sample."""
    occlude: float = 0.3
    """Probability that something is put in front of an object."""
    colour: float = 0.8
    """Probability that brightness, contrast, saturation and colour balance change."""
    grey: float = 0.04
    """Probability that a picture whose colours change becomes grey."""
    blur: float = 0.2
    """Probability of a blur, as of a camera that is out of focus or moves."""
    noise: float = 0.15
    """Probability of noise."""
    jpeg: float = 0.3
    """Probability that the finished sample is compressed as JPEG."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.size < 32 or self.objects < 1:
            raise ValueError(
                f"size is {self.size} and objects {self.objects}; expected at least 32 and 1"
            )
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}; expected 0 < least <= most")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation is {self.rotation}; expected 0 to 180 degrees")
        names = ("join", "paste", "drawn", "occlude", "colour", "grey", "blur", "noise", "jpeg")
        for name in ("smallest", *names):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1")


@dataclass(frozen=True)
class Sample:
    """A composed image and the masks of objects in it."""

    image: Pixels
    """(S, S, 3) uint8 RGB."""
    masks: Bools
    """(K, S, S), none of them empty; masks are repeated where there are fewer objects."""
    ignore: Bools
    """(S, S): pixels beyond the picture's border, or whose object is not known."""


@dataclass
class _Scene:
    """A sample while objects are put on it."""

    image: Pixels
    """(S, S, 3) uint8 RGB."""
    masks: list[Bools]
    """(S, S) visible pixels of each object, the last on top."""
    whole: list[int]
    """Number of pixels of each object before anything covered it."""
    ignore: Bools
    """(S, S), as `Sample.ignore`."""

    def add(self, image: Pixels, mask: Bools, window: tuple[slice, slice]) -> None:
        """Put an object on top, its edge softened by about a pixel.

        Args:
            image: (h, w, 3) uint8 RGB of the object, in a window that holds all of it.
            mask: (S, S) pixels of the object.
            window: rows and columns of the window in the sample.
        """
        part, under = mask[window], self.image[window]
        share = cv2.GaussianBlur(part.astype(np.float32), (3, 3), 0.6)
        self.image[window] = cv2.blendLinear(image, under, share, 1 - share)
        for covered in (*self.masks, self.ignore):
            covered[window] &= ~part
        self.masks.append(mask)
        self.whole.append(int(np.count_nonzero(mask)))

    def visible(self, least: float) -> list[int]:
        """Return the objects that are visible enough, or the most visible one if none is.

        At least `least` pixels must be visible, and the share `_VISIBLE` of the object.
        """
        seen = [int(np.count_nonzero(mask)) for mask in self.masks]
        both = enumerate(zip(seen, self.whole, strict=True))
        enough = [i for i, (n, whole) in both if n >= max(least, _VISIBLE * whole, 1)]
        return enough or [int(np.argmax(seen))]


def sample(pairs: PairSource, config: ComposeConfig, seed: int, epoch: int, index: int) -> Sample:
    """Compose one sample.

    Args:
        pairs: the pictures, from which objects are cut out, too.
        config: how it is composed.
        seed, epoch, index: all that the sample depends on, none of them negative. Its picture is
            pair `index % len(pairs)`.

    Raises:
        ImageError: A pair that the sample needs cannot be used.
    """
    rng = np.random.default_rng((seed, epoch, index))
    number = index % len(pairs)
    scene = _background(rng, pairs[number], config)
    layers = _choose_layers(rng, config)
    if layers:
        other = pairs[(number + int(rng.integers(1, max(2, len(pairs))))) % len(pairs)]
        for cut_out, over in layers:
            _put(rng, scene, other, config, cut_out and not other.regions, over)
    chosen = scene.visible(config.smallest * config.size**2)
    # The object that the crop is about comes first; if only one is wanted, it may be any.
    order = sorted(rng.permutation(chosen).tolist(), key=lambda row: row > 0 or config.objects == 1)
    rows = np.resize(order, config.objects)
    image = photograph(
        rng, scene.image, config.colour, config.grey, config.blur, config.noise, config.jpeg
    )
    return Sample(image, np.stack([scene.masks[row] for row in rows]), scene.ignore)


def _background(rng: Generator, pair: Pair, config: ComposeConfig) -> _Scene:
    """Crop a picture about one of its objects, so that enough of the object is visible."""
    masks = pair.masks
    union = joined(rng, masks, pair.regions) if rng.random() < config.join else None
    for attempt in range(_ATTEMPTS + 1):
        order = rng.permutation(len(masks))[:_BITS]
        some = [masks[i] for i in order]
        if union is not None:
            some = [union, *some][:_BITS]
        matrix = _crop(rng, some[0], config, close=attempt == _ATTEMPTS)
        scene = _warp(rng, pair, some, matrix, config.size)
        least = 1 if attempt == _ATTEMPTS else max(1, config.smallest * config.size**2)
        if scene.whole[0] >= least:
            return scene
    raise ImageError(f"{pair.name}: an object has no pixels left at a size of {config.size} pixels")


def joined(rng: Generator, masks: Bools, regions: bool) -> Bools | None:
    """Join parts that adjoin each other, as garments, hair and skin make a person.

    It starts from a random part and adds those that share enough of the outline of either, then
    their neighbours, until there are none; or sometimes, and for regions always, one to three parts
    one by one.

    Args:
        rng: where random numbers come from.
        masks: (K, H, W), at least one.
        regions: as `Pair.regions`.

    Returns:
        (H, W), or None if nothing adjoins or all of the picture would be joined.
    """
    small = masks[:, ::_SMALL, ::_SMALL].view(np.uint8)
    rings = [_ring(part) for part in small]
    outlines = np.array([np.count_nonzero(ring) for ring in rings])
    inside = np.arange(len(masks)) == rng.integers(len(masks))
    one_by_one = regions or rng.random() < 0.25
    for _ in range(rng.integers(1, 4) if one_by_one else len(masks)):
        union = small[inside].max(axis=0)
        ring = _ring(union)
        contact = np.array([np.count_nonzero(part & ring) for part in small])
        shorter = np.minimum(outlines, np.count_nonzero(ring))
        near = np.flatnonzero(~inside & (contact > 2) & (contact >= _ADJOINING * shorter))
        if not len(near):
            break
        inside[rng.choice(near) if one_by_one else near] = True
    union_mask: Bools = masks[inside].any(axis=0)
    return union_mask if inside.sum() > 1 and union_mask.mean() < 0.9 else None


def _ring(mask: Pixels) -> Pixels:
    """Return the pixels that touch a mask from outside; both are (h, w) uint8, 0 or 1."""
    return cv2.subtract(cv2.dilate(mask, np.ones((3, 3), np.uint8)), mask)


def _crop(rng: Generator, mask: Bools, config: ComposeConfig, close: bool) -> NDArray[np.float64]:
    """Return the matrix (2, 3) of a crop that shows a part of an object; if `close`, all of it."""
    middle = np.full(2, (config.size - 1) / 2)
    if close:
        x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
        centre = np.array([x + (width - 1) / 2, y + (height - 1) / 2])
        return affine(0.6 * config.size / max(width, height), 0, False, centre, middle)
    sides = np.array(mask.shape[::-1])
    zoom = config.size * math.exp(rng.uniform(*np.log(config.scale))) / sides.max()
    half = config.size / 2 / zoom
    at = rng.choice(np.flatnonzero(mask))
    near = np.array([at % sides[0], at // sides[0]]) + rng.uniform(-0.7, 0.7, 2) * half
    # Within the picture where it is larger than the crop; else anywhere that shows all of it.
    within = np.clip(near, half, np.maximum(half, sides - half))
    anywhere = half + (sides - 2 * half) * rng.random(2)
    centre = np.where(sides > 2 * half, within, anywhere) - 0.5
    degrees = rng.uniform(-config.rotation, config.rotation) * rng.integers(2)
    return affine(zoom, degrees, bool(rng.integers(2)), centre, middle)


def _warp(
    rng: Generator, pair: Pair, masks: list[Bools], matrix: NDArray[np.float64], size: int
) -> _Scene:
    """Warp the picture and up to `_BITS` of its masks; what is beyond its border is ignored."""
    border = cv2.BORDER_REFLECT_101 if rng.random() < 0.5 else cv2.BORDER_CONSTANT
    image = resample(pair.image, matrix, (size, size), border, rng.uniform(0, 255, 3).tolist())
    planes = pair.ignore * np.uint8(_IGNORED)
    for bit, mask in enumerate(masks):
        planes |= mask.view(np.uint8) << np.uint8(bit)
    moved: Pixels = cv2.warpAffine(
        planes, matrix, (size, size), flags=cv2.INTER_NEAREST, borderValue=[_IGNORED]
    )
    parts = [(moved & (1 << bit)) > 0 for bit in range(len(masks))]
    return _Scene(image, parts, [int(np.count_nonzero(m)) for m in parts], moved >= _IGNORED)


def _choose_layers(rng: Generator, config: ComposeConfig) -> list[tuple[bool, bool]]:
    """Choose what is put on: whether each layer is cut out, else drawn; whether over an object."""
    paste, drawn, occlude = rng.random(3) < (config.paste, config.drawn, config.occlude)
    layers = [(True, False)] * (int(rng.integers(1, 4)) if paste else 0)
    layers += [(False, False)] * (int(rng.integers(1, 3)) if drawn else 0)
    return layers + [(bool(rng.random() < 0.6), True)] * bool(occlude)


def _put(
    rng: Generator, scene: _Scene, other: Pair, config: ComposeConfig, cut_out: bool, over: bool
) -> None:
    """Put an object on the scene, unless it is too small or hides what it is put over."""
    size, least = config.size, max(1.0, config.smallest * config.size**2)
    place, length = rng.uniform(0, size, 2), size * math.exp(rng.uniform(*np.log((0.12, 0.7))))
    target = scene.masks[rng.choice(scene.visible(least))] if over else None
    if target is not None:
        at = rng.choice(np.flatnonzero(target))
        place = np.array([at % size, at // size], dtype=np.float64)
        length = math.sqrt(np.count_nonzero(target)) * rng.uniform(0.4, 1.2)
    if cut_out:
        mask, texture, matrix = _cut(rng, size, other, place, length)
    else:
        mask, texture, matrix = _draw(rng, scene.image, other.image, place, length)
    left = 1.0 if target is None else np.count_nonzero(target & ~mask) / np.count_nonzero(target)
    if np.count_nonzero(mask) >= least and left > 2 * _VISIBLE:
        _paint(rng, scene, mask, texture, matrix)


_Layer = tuple[Bools, Pixels, NDArray[np.float64]]
"""A mask (S, S), a texture of any size, and the (2, 3) matrix that takes it to where it belongs."""


def _cut(
    rng: Generator, size: int, other: Pair, place: NDArray[np.float64], length: float
) -> _Layer:
    """Cut an object out of another picture, to be about `length` pixels long, at `place`."""
    mask = other.masks[rng.integers(len(other.masks))].view(np.uint8)
    x, y, width, height = cv2.boundingRect(mask)
    zoom = min(2.0, length / max(width, height))
    centre = np.array([x + width / 2, y + height / 2])
    matrix = affine(zoom, rng.uniform(-30, 30), bool(rng.integers(2)), centre, place)
    moved = cv2.warpAffine(mask, matrix, (size, size), flags=cv2.INTER_NEAREST)
    return moved.view(np.bool_), other.image, matrix


def _draw(
    rng: Generator, under: Pixels, other: Pixels, place: NDArray[np.float64], length: float
) -> _Layer:
    """Draw a shape, about `length` pixels long, at `place`.

    Its texture is from the other picture, from another place of this one, or a colour gradient.
    """
    shape = stroke if rng.random() < 0.3 else outline
    mask, kind = shape(rng, under.shape[0], place, length), rng.random()
    texture, zoom = (other if kind < 0.55 else under.copy()), rng.uniform(0.7, 2)
    if kind > 0.7:
        shades = rng.uniform(0, 255, 3) + rng.uniform(-40, 40, (2, 2, 3))
        texture, zoom = np.clip(shades, 0, 255).astype(np.uint8), length
    about = rng.uniform(0, 1, 2) * texture.shape[1::-1]
    return mask, texture, affine(zoom, rng.uniform(-180, 180), False, about, place)


def _paint(
    rng: Generator, scene: _Scene, mask: Bools, texture: Pixels, matrix: NDArray[np.float64]
) -> None:
    """Add a layer to the scene, its mean colour shifted somewhat towards the scene's."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    left, top = max(0, x - 2), max(0, y - 2)  # room for the soft edge
    window = np.s_[top : y + height + 2, left : x + width + 2]
    part = mask[window]
    shifted = matrix - [[0, 0, left], [0, 0, top]]
    image = resample(texture, shifted, part.shape, cv2.BORDER_REFLECT_101, [0.0])
    away = np.subtract(cv2.mean(scene.image), cv2.mean(image, part.view(np.uint8)))[:3]
    match = np.column_stack([np.eye(3), rng.uniform(0, 0.5) * away])
    scene.add(cv2.transform(image, match), mask, window)
