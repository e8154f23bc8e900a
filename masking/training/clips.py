"""Short clips to train tracking on: real ones, and made ones in which cut-outs move over pictures.

A made clip moves a picture with its objects as a camera would, and moves cut-outs of other pictures
and of real clips over it: some of them twice, as look-alikes; some as nothing but cover. Objects
cross, hide one another, leave and come back. A real clip is a run of frames of a video whose masks
are known, of any stride, forward or backward; cut-outs move over some of them, too.

A clip is a function of (seed, epoch, index). Shapes: T frames of S x S pixels; points are (x, y),
origin top left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from masking.images.arrays import Bools, Pixels
from masking.images.decode import read_image, read_labels
from masking.training.compose import PairSource
from masking.training.draw import affine, photograph, resample
from masking.training.pair import NothingToLearnError, Pair

VOID = 255
"""Label of a pixel whose object is not known."""
_ATTEMPTS = 8
_FIRST_CUT_OUT = 100  # label of a clip's first cut-out; those of its picture or video are lower


@dataclass(frozen=True)
class ClipConfig:
    """How clips are made."""

    frames: int = 4
    """Number of frames of a clip."""
    size: int = 320
    """Side of a frame, in pixels."""
    objects: int = 3
    """Largest number of objects of a clip that are followed."""
    smallest: float = 0.002
    """Smallest share of the first frame that an object may cover; smaller ones are background."""
    real: float = 0.5
    """Share of the clips that are runs of frames of a video."""
    actors: float = 0.6
    """Probability that cut-outs move over a clip."""
    alike: float = 0.3
    """Probability that a cut-out moves twice in a clip, as look-alikes."""
    cover: float = 0.25
    """Probability that a cut-out is no object, but only hides others."""
    strides: int = 3
    """Largest number of frames of a video from one frame of a clip to the next."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.frames < 2 or self.size < 64 or self.size % 32 or self.objects < 1:
            raise ValueError(
                f"frames is {self.frames}, size {self.size} and objects {self.objects}; expected at"
                " least 2 frames, a size of 64 pixels or more that 32 divides, and 1 object"
            )
        if self.strides < 1:
            raise ValueError(f"strides is {self.strides}; expected at least 1")
        for name in ("smallest", "real", "actors", "alike", "cover"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1")


@dataclass(frozen=True)
class Clip:
    """A short clip."""

    images: Pixels
    """(T, S, S, 3) uint8 RGB."""
    labels: NDArray[np.uint8]
    """(T, S, S): 0 no object, 1.. objects that are seen on the first frame, `VOID` void."""


@dataclass(frozen=True)
class Film:
    """A video whose masks are known, as DAVIS lays it out."""

    folder: Path
    """The folder of its images."""
    images: tuple[Path, ...]
    """One for each frame, in order."""
    masks: tuple[Path, ...]
    """PNG label maps, one for each frame."""

    @property
    def name(self) -> str:
        """Name of the video."""
        return self.folder.name

    def frame(self, index: int) -> tuple[Pixels, NDArray[np.uint8]]:
        """Decode a frame (H, W, 3) uint8 RGB, and its labels (H, W) uint8."""
        image = read_image(self.images[index], 0)
        labels, _ = read_labels(self.masks[index], "the annotation", image.size, image.orientation)
        return image.pixels, labels.astype(np.uint8)


def films(root: Path, names: Sequence[str] = ()) -> list[Film]:
    """Return the videos of a folder with JPEGImages and Annotations; of `names`, if given."""
    found, annotations = list[Film](), root / "Annotations"
    for folder in sorted(annotations.iterdir()) if annotations.is_dir() else ():
        if folder.name.startswith(".") or (names and folder.name not in names):
            continue
        masks = sorted(folder.glob("*.png"))
        images = [root / "JPEGImages" / folder.name / f"{mask.stem}.jpg" for mask in masks]
        found.append(Film(root / "JPEGImages" / folder.name, tuple(images), tuple(masks)))
    return found


@dataclass(frozen=True)
class _Layer:
    """A cut-out for each frame: picture, mask, and the matrix that puts it on the frame."""

    pictures: Sequence[Pixels]
    masks: Sequence[Bools]
    matrices: NDArray[np.float64]
    number: int


def clip(
    pairs: PairSource, films: Sequence[Film], config: ClipConfig, seed: int, epoch: int, index: int
) -> Clip:
    """Make a clip that shows an object on its first frame.

    Raises:
        ImageError: an image or its masks cannot be used.
    """
    rng = np.random.default_rng((seed, epoch, index, 77))
    for attempt in range(_ATTEMPTS):
        try:
            made = _make(rng, pairs, films, config, index + attempt)
        except NothingToLearnError:
            continue
        kept = _chosen(rng, made.labels, config)
        if kept is not None:
            return Clip(made.images, kept)
    raise NothingToLearnError(f"none of {_ATTEMPTS} clips shows an object on its first frame")


def _make(
    rng: Generator, pairs: PairSource, films: Sequence[Film], config: ClipConfig, index: int
) -> Clip:
    if films and rng.random() < config.real:
        made = _run(rng, films[int(rng.integers(len(films)))], config)
    else:
        made = _still(rng, pairs[index % len(pairs)], config)
    if rng.random() < config.actors:
        number = _FIRST_CUT_OUT
        for _ in range(int(rng.integers(1, 3))):
            cut = _cut(rng, pairs, films, config)
            twice = 1 + (rng.random() < config.alike)
            covers = rng.random() < config.cover
            for _ in range(twice):
                number += 1
                path = _path(rng, cut[1][0], config)
                _put(made, _Layer(*cut, path, 0 if covers else number))
    return _filmed(rng, made)


def _run(rng: Generator, film: Film, config: ClipConfig) -> Clip:
    """Return a run of frames of a video, cropped and scaled alike."""
    order = _order(rng, len(film.images), config)
    frames = [film.frame(at) for at in order]
    labels = frames[0][1]
    h, w = labels.shape
    zoom = config.size / max(h, w) * np.exp(rng.uniform(-0.1, 0.6))
    inside = np.argwhere((labels > 0) & (labels < VOID))
    if len(inside):
        y, x = inside[rng.integers(len(inside))]
    else:
        y, x = h / 2, w / 2
    to = rng.uniform(0.3, 0.7, 2) * config.size
    matrix = affine(zoom, rng.uniform(-10, 10), rng.random() < 0.5, np.array([x, y], float), to)
    return _warped([f[0] for f in frames], [f[1] for f in frames], [matrix] * len(frames), config)


def _order(rng: Generator, count: int, config: ClipConfig) -> list[int]:
    """Draw the frames of a run, in either direction."""
    most = max(1, min(config.strides, (count - 1) // max(1, config.frames - 1)))
    steps = rng.integers(1, most + 1, config.frames - 1)
    places = np.concatenate([[0], np.cumsum(steps)])
    places += int(rng.integers(0, max(1, count - places[-1])))
    places = np.clip(places, 0, count - 1)
    return places.tolist() if rng.random() < 0.5 else places[::-1].tolist()


def _still(rng: Generator, pair: Pair, config: ClipConfig) -> Clip:
    """Return a picture with its objects as a moving camera shows it."""
    h, w = pair.image.shape[:2]
    labels = np.zeros((h, w), np.uint8)
    labels[pair.ignore] = VOID
    for number, mask in enumerate(pair.masks[:90], 1):
        labels[mask] = number
    zoom = config.size / max(h, w) * np.exp(rng.uniform(0, 0.6))
    y, x = np.argwhere(pair.masks[rng.integers(len(pair.masks))])[0]
    source, to = np.array([x, y], float), rng.uniform(0.3, 0.7, 2) * config.size
    mirrored, angle = rng.random() < 0.5, rng.uniform(-10, 10)
    drift = _drift(rng, config.frames, 0.03)
    matrices = [
        affine(zoom * np.exp(z), angle + a, mirrored, source, to + config.size * np.array([dx, dy]))
        for dx, dy, z, a in drift
    ]
    images, maps = [pair.image] * config.frames, [labels] * config.frames
    return _warped(images, maps, matrices, config, _bend(rng, config))


def _drift(rng: Generator, frames: int, speed: float) -> NDArray[np.float64]:
    """Return (T, 4) shifts x, y as shares of the side, log zooms and degrees; 0 on the first."""
    speed *= np.exp(rng.uniform(-2, 0.7))
    steps = rng.normal(0, 1, 4) + rng.normal(0, 0.5, (frames - 1, 4))
    steps *= np.array([speed, speed, speed, 100 * speed])
    return np.concatenate([np.zeros((1, 4)), np.cumsum(steps, axis=0)])


def _bend(rng: Generator, config: ClipConfig) -> NDArray[np.float32] | None:
    """Return a smooth field (S, S, 2) of pixels by which things bend from frame to frame."""
    if rng.random() < 0.5:
        return None
    coarse = rng.normal(0, config.size * 0.01 * np.exp(rng.uniform(-1, 0.7)), (5, 5, 2))
    size = (config.size, config.size)
    field = cv2.resize(coarse.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
    return np.asarray(field, np.float32)


def _warped(
    images: Sequence[Pixels],
    labels: Sequence[NDArray[np.uint8]],
    matrices: Sequence[NDArray[np.float64]],
    config: ClipConfig,
    bend: NDArray[np.float32] | None = None,
) -> Clip:
    """Warp frames and their labels; what lies beyond the picture is void."""
    side, made, kept = config.size, [], []
    for at, (image, label, matrix) in enumerate(zip(images, labels, matrices, strict=True)):
        picture = resample(image, matrix, (side, side), cv2.BORDER_REFLECT_101, [0.0])
        numbers = cv2.warpAffine(
            label, matrix, (side, side), flags=cv2.INTER_NEAREST, borderValue=[float(VOID)]
        )
        if bend is not None and at:
            x, y = np.meshgrid(*[np.arange(side, dtype=np.float32)] * 2)
            there = x + at * bend[..., 0], y + at * bend[..., 1]
            border = cv2.BORDER_REFLECT_101
            picture = cv2.remap(picture, *there, cv2.INTER_LINEAR, borderMode=border)
            numbers = cv2.remap(
                numbers,
                *there,
                cv2.INTER_NEAREST,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=[float(VOID)],
            )
        made.append(picture)
        kept.append(numbers)
    return Clip(np.stack(made), np.stack(kept))


def _cut(
    rng: Generator, pairs: PairSource, films: Sequence[Film], config: ClipConfig
) -> tuple[list[Pixels], list[Bools]]:
    """Return a cut-out for each frame: an object of a picture, or of a run of frames of a video."""
    if films and rng.random() < 0.5:
        film = films[int(rng.integers(len(films)))]
        frames = [film.frame(at) for at in _order(rng, len(film.images), config)]
        numbers = [n for n in np.unique(frames[0][1]).tolist() if 0 < n < VOID]
        if numbers:
            number = numbers[int(rng.integers(len(numbers)))]
            return [f[0] for f in frames], [f[1] == number for f in frames]
    pair = pairs[int(rng.integers(len(pairs)))]
    mask = pair.masks[int(rng.integers(len(pair.masks)))]
    return [pair.image] * config.frames, [mask] * config.frames


def _path(rng: Generator, mask: Bools, config: ClipConfig) -> NDArray[np.float64]:
    """Return matrices (T, 2, 3) along which a cut-out moves over a clip."""
    side = config.size
    _, _, width, height = cv2.boundingRect(mask.view(np.uint8))
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    middle = np.array([columns[0] + columns[-1], rows[0] + rows[-1]]) / 2
    zoom = side * np.exp(rng.uniform(np.log(0.06), np.log(0.6))) / max(width, height, 1)
    start, speed = rng.uniform(0.1, 0.9, 2) * side, rng.normal(0, 0.05, 2) * side
    drift, mirrored = _drift(rng, config.frames, 0.02), rng.random() < 0.5
    angle = rng.uniform(-20, 20)
    return np.stack(
        [
            affine(
                zoom * np.exp(z), angle + a, mirrored, middle,
                start + t * speed + side * np.array([dx, dy]),
            )
            for t, (dx, dy, z, a) in enumerate(drift)
        ]
    )  # fmt: skip


def _put(made: Clip, layer: _Layer) -> None:
    """Draw a cut-out onto all frames of a clip and their labels, in place."""
    for t, matrix in enumerate(layer.matrices):
        size = made.labels.shape[1:]
        share = cv2.warpAffine(layer.masks[t].astype(np.float32), matrix, size[::-1])
        share = cv2.GaussianBlur(share, (3, 3), 0.6)
        if not (share >= 0.5).any():
            continue
        texture = resample(layer.pictures[t], matrix, size, cv2.BORDER_REPLICATE, [0.0])
        made.images[t] = cv2.blendLinear(texture, made.images[t], share, 1 - share)
        made.labels[t][share >= 0.5] = layer.number


def _filmed(rng: Generator, made: Clip) -> Clip:
    """Give all frames the same faults of a camera."""
    seed = int(rng.integers(1 << 60))
    faults = {"colour": 0.6, "grey": 0.05, "blur": 0.15, "noise": 0.1, "jpeg": 0.3}
    images = [photograph(np.random.default_rng(seed), one, **faults) for one in made.images]
    return Clip(np.stack(images), made.labels)


def _chosen(
    rng: Generator, labels: NDArray[np.uint8], config: ClipConfig
) -> NDArray[np.uint8] | None:
    """Return labels of some objects that the first frame shows, numbered from 1; None: of none."""
    numbers, areas = np.unique(labels[0], return_counts=True)
    least = config.smallest * labels[0].size
    wanted = [
        number
        for number, area in zip(numbers.tolist(), areas.tolist(), strict=True)
        if 0 < number < VOID and area >= least
    ]
    if not wanted:
        return None
    # Cut-outs first: they move by themselves.
    wanted.sort(key=lambda n: (n < _FIRST_CUT_OUT, rng.random()))
    table = np.zeros(256, np.uint8)
    table[VOID] = VOID
    for number, old in enumerate(wanted[: config.objects], 1):
        table[old] = number
    return table[labels]
