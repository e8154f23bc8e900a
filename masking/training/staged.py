"""Synthetic clips whose masks are known: cut-outs that move and turn over a backdrop.

Each frame is computed from its number, independently of the others. Points are (x, y) in pixels,
origin top left; angles are in degrees, clockwise as seen.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from masking.images.arrays import Bools, Pixels
from masking.training.draw import affine, resample


@dataclass(frozen=True)
class Pose:
    """Place, rotation and size of an actor on a frame."""

    x: float
    """Column of the actor's middle, in pixels of the clip."""
    y: float
    """Row of the actor's middle, in pixels of the clip."""
    degrees: float = 0.0
    """Rotation, clockwise."""
    zoom: float = 1.0
    """Pixels of the clip per pixel of the picture that it is cut from."""


@dataclass(frozen=True)
class Actor:
    """A cut-out that moves."""

    picture: Pixels
    """(h, w, 3) uint8 RGB, which shows it."""
    mask: Bools
    """(h, w): the pixels that it covers in the picture."""
    path: Callable[[int], Pose | None]
    """Pose on a frame, by the frame's number; None: it is not there."""
    number: int = 0
    """Number of the object that it is in the label maps; 0: no object, it only hides others."""


@dataclass(frozen=True)
class Stage:
    """A synthetic clip."""

    size: tuple[int, int]
    """(H, W) of its frames, in pixels."""
    frames: int
    """Number of frames."""
    backdrop: Callable[[int], Pixels]
    """Picture (H, W, 3) uint8 RGB behind all actors, by the frame's number."""
    actors: Sequence[Actor]
    """What moves on it; the last is in front."""

    def frame(self, index: int) -> tuple[Pixels, NDArray[np.uint8]]:
        """Return a frame (H, W, 3) uint8 RGB, and its label map (H, W) uint8, 0 for no object."""
        image, labels = self.backdrop(index).copy(), np.zeros(self.size, np.uint8)
        for actor in self.actors:
            pose = actor.path(index)
            if pose is not None:
                _put(image, labels, actor, pose)
        return image, labels

    def __iter__(self) -> Iterator[tuple[Pixels, NDArray[np.uint8]]]:
        """Yield all frames with their label maps, in order."""
        return (self.frame(index) for index in range(self.frames))


def _put(image: Pixels, labels: NDArray[np.uint8], actor: Actor, pose: Pose) -> None:
    """Draw an actor onto a frame and its label map, in place."""
    rows, columns = (np.flatnonzero(actor.mask.any(axis=axis)) for axis in (1, 0))
    middle = np.array([columns[0] + columns[-1], rows[0] + rows[-1]]) / 2
    matrix = affine(pose.zoom, pose.degrees, False, middle, np.array([pose.x, pose.y]))
    size = labels.shape
    texture = resample(actor.picture, matrix, size, cv2.BORDER_REPLICATE, [0.0])
    share = cv2.warpAffine(actor.mask.astype(np.float32), matrix, size[::-1])
    share = cv2.GaussianBlur(share, (3, 3), 0.6)[..., None]
    image[:] = np.rint(share * texture + (1 - share) * image)
    labels[share[..., 0] >= 0.5] = actor.number


def panned(
    picture: Pixels, size: tuple[int, int], shift: tuple[float, float]
) -> Callable[[int], Pixels]:
    """Return a backdrop that a camera pans over: a cut of `size` that moves by `shift` a frame.

    Args:
        picture: (h, w, 3) uint8 RGB. It is scaled to one and a half times the size, and reflected
            beyond its border.
        size: (H, W) of the clip, in pixels.
        shift: (x, y) in pixels a frame.
    """
    zoom = 1.5 * max(size[0] / picture.shape[0], size[1] / picture.shape[1])
    centre = np.array(picture.shape[1::-1]) / 2

    def cut(index: int) -> Pixels:
        to = np.array(size[::-1]) / 2 - index * np.array(shift)
        matrix = affine(zoom, 0, False, centre, to)
        return resample(picture, matrix, size, cv2.BORDER_REFLECT_101, [0.0])

    return cut
