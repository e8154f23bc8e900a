"""Made clips whose truth is known: things cut out of pictures, moved and turned over another one.

A clip is a function from a frame's number to what is shown, so any frame of it can be had alone.
Points are (x, y) in pixels, origin top left; angles in degrees, clockwise as seen.
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
    """Where an actor is, how it is turned, and how large."""

    x: float
    """Of its middle, in pixels of the clip."""
    y: float
    degrees: float = 0.0
    zoom: float = 1.0
    """Pixels of the clip per pixel of the picture that it is cut from."""


@dataclass(frozen=True)
class Actor:
    """A thing that moves."""

    picture: Pixels
    """(h, w, 3) uint8 RGB, with it somewhere in it."""
    mask: Bools
    """(h, w): where."""
    path: Callable[[int], Pose | None]
    """Its pose on a frame; None: it is not there."""
    number: int = 0
    """Of the object that it is; 0: it only hides others."""


@dataclass(frozen=True)
class Stage:
    """A clip."""

    size: tuple[int, int]
    """(H, W)."""
    frames: int
    backdrop: Callable[[int], Pixels]
    """(H, W, 3) uint8 RGB of a frame, behind all actors."""
    actors: Sequence[Actor]
    """The last is in front."""

    def frame(self, index: int) -> tuple[Pixels, NDArray[np.uint8]]:
        """(H, W, 3) uint8 RGB and (H, W): which object, 0 where there is none."""
        image, labels = self.backdrop(index).copy(), np.zeros(self.size, np.uint8)
        for actor in self.actors:
            pose = actor.path(index)
            if pose is not None:
                _put(image, labels, actor, pose)
        return image, labels

    def __iter__(self) -> Iterator[tuple[Pixels, NDArray[np.uint8]]]:
        """Frame by frame."""
        return (self.frame(index) for index in range(self.frames))


def _put(image: Pixels, labels: NDArray[np.uint8], actor: Actor, pose: Pose) -> None:
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
    """A backdrop that a camera pans over: a cut of `size` that moves by `shift` (x, y) a frame.

    The picture is scaled to one and a half times the size and reflected beyond its border.
    """
    zoom = 1.5 * max(size[0] / picture.shape[0], size[1] / picture.shape[1])
    centre = np.array(picture.shape[1::-1]) / 2

    def cut(index: int) -> Pixels:
        to = np.array(size[::-1]) / 2 - index * np.array(shift)
        matrix = affine(zoom, 0, False, centre, to)
        return resample(picture, matrix, size, cv2.BORDER_REFLECT_101, [0.0])

    return cut
