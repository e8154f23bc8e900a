"""Shapes, warps and camera faults for composed samples.

Shapes: S is the side of a picture in pixels. Points are (x, y), origin top left.
"""

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from masking.images.arrays import Bools, Pixels

Points = NDArray[np.float64]

_LUMA = (0.299, 0.587, 0.114)
_FRACTION = 4  # fractional bits of the fixed-point coordinates that OpenCV takes


def outline(rng: Generator, size: int, place: Points, length: float) -> Bools:
    """Draw a filled shape: polygon, star, smooth blob or ellipse, wide or thin, some with a hole.

    Args:
        rng: where random numbers come from.
        size: S.
        place: (2,) centre of the shape.
        length: about how long it is, in pixels.

    Returns:
        (S, S).
    """
    corners = int(rng.integers(3, 9)) if rng.random() < 0.4 else 60
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    if corners < 60:
        angles = np.sort(angles + rng.uniform(-0.3, 0.3, corners))
        radii = rng.uniform(0.4, 1, corners)
    else:
        waves = rng.normal(0, rng.choice([0, 0.25]), (4, 1)) / np.arange(1, 5)[:, None]
        turns = angles * np.arange(2, 6)[:, None] + rng.uniform(0, 2 * math.pi, (4, 1))
        radii = np.clip(1 + (waves * np.cos(turns)).sum(axis=0), 0.2, None)
    points = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.06, 1)], axis=1)
    points = _turned(points * (radii / radii.max())[:, None], rng.uniform(0, math.pi)) * length / 2
    mask = _filled(size, place + points)
    if rng.random() < 0.15:
        mask &= ~_filled(size, place + points * rng.uniform(0.4, 0.75))
    return mask


def stroke(rng: Generator, size: int, place: Points, length: float) -> Bools:
    """Draw a bent line of one thickness; arguments and result are those of `outline`."""
    steps = _turned(np.tile([1.0, 0.0], (8, 1)), np.cumsum(rng.normal(0, 0.5, 8)))
    points = np.cumsum(steps, axis=0)
    points = _turned(points - points.mean(axis=0), rng.uniform(0, 2 * math.pi)) * length / 8
    mask = np.zeros((size, size), dtype=np.uint8)
    thickness = max(2, round(length * rng.uniform(0.02, 0.15)))
    cv2.polylines(mask, [_fixed(place + points)], False, 1, thickness, shift=_FRACTION)
    return mask.view(np.bool_)


def _turned(points: Points, angle: float | Points) -> Points:
    """Turn (N, 2) points about the origin, by radians."""
    x, y = points.T
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=1)


def _fixed(points: Points) -> NDArray[np.int32]:
    """Convert points to OpenCV's fixed-point coordinates."""
    fixed: NDArray[np.int32] = np.rint(points * 2**_FRACTION).astype(np.int32)
    return fixed


def _filled(size: int, points: Points) -> Bools:
    """Return the inside of a polygon, (S, S)."""
    mask = np.zeros((size, size), dtype=np.uint8)
    cv2.fillPoly(mask, [_fixed(points)], 1, shift=_FRACTION)
    return mask.view(np.bool_)


def affine(
    zoom: float,
    degrees: float,
    mirrored: bool,
    source: NDArray[np.float64],
    to: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the (2, 3) matrix, for cv2.warpAffine, that zooms, turns and mirrors.

    It does so about the point `source` (x, y), and moves that point to `to`.
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    linear = zoom * np.array([[cos, -sin], [sin, cos]])
    if mirrored:
        linear[0] *= -1
    return np.column_stack([linear, to - linear @ source])


def resample(
    image: Pixels,
    matrix: NDArray[np.float64],
    shape: tuple[int, ...],
    border: int,
    fill: list[float],
) -> Pixels:
    """Warp a picture, bilinear; a picture that shrinks a lot is averaged over areas first.

    Args:
        image: (H, W, 3) uint8.
        matrix: (2, 3), as `affine` returns it.
        shape: (h, w) of the result.
        border: OpenCV's constant for what lies beyond the picture's border.
        fill: colour there, for cv2.BORDER_CONSTANT.

    Returns:
        (h, w, 3) uint8.
    """
    factor = int(1 / math.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if factor > 1:
        small = (max(1, image.shape[1] // factor), max(1, image.shape[0] // factor))
        ratio = np.array(image.shape[1::-1]) / small
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        shift = matrix[:, :2] @ ((ratio - 1) / 2)  # centres of pixels, not their corners
        matrix = np.column_stack([matrix[:, :2] * ratio, matrix[:, 2] + shift])
    return cv2.warpAffine(image, matrix, shape[::-1], borderMode=border, borderValue=fill)


def photograph(
    rng: Generator,
    image: Pixels,
    colour: float,
    grey: float,
    blur: float,
    noise: float,
    jpeg: float,
) -> Pixels:
    """Add the faults of a camera to a picture, each by its probability.

    Args:
        rng: where random numbers come from.
        image: (S, S, 3) uint8 RGB.
        colour, grey, blur, noise, jpeg: probabilities, as in `ComposeConfig`.

    Returns:
        (S, S, 3) uint8 RGB.
    """
    odds = rng.random(4)
    if odds[0] < colour:
        image = _recoloured(rng, image, bool(rng.random() < grey))
    if odds[1] < blur:
        image = _blurred(rng, image)
    if odds[2] < noise:
        grain = rng.standard_normal(image.shape[:2], np.float32) * np.float32(rng.uniform(2, 12))
        image = cv2.add(image, cv2.merge([grain] * 3), dtype=cv2.CV_8U)
    if odds[3] < jpeg:
        # OpenCV takes RGB for BGR, here and back: this only exchanges the two colour differences.
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 95))]
        decoded = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
        assert decoded is not None  # it has just been encoded
        image = decoded
    return image


def _recoloured(rng: Generator, image: Pixels, grey: bool) -> Pixels:
    """Change colour balance, saturation, brightness and contrast by one matrix; then gamma."""
    saturation = 0.0 if grey else rng.uniform(0.5, 1.5)
    contrast = rng.uniform(0.7, 1.3)
    linear = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
    linear = contrast * linear * rng.uniform(0.92, 1.08, 3)
    level = cv2.mean(image)[:3]
    offset = np.mean(level) * (1 - contrast) + rng.uniform(-30, 30)
    image = cv2.transform(image, np.column_stack([linear, np.full(3, offset)]))
    if rng.random() < 0.3:
        curve = (np.arange(256) / 255) ** math.exp(rng.uniform(-0.4, 0.4)) * 255
        image = cv2.LUT(image, np.rint(curve).astype(np.uint8))
    return image


def _blurred(rng: Generator, image: Pixels) -> Pixels:
    """Blur a picture as out of focus, or as moved."""
    if rng.random() < 0.6:
        return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 2))
    length = int(rng.integers(3, 10)) | 1
    kernel = np.zeros((length, length), dtype=np.float32)
    reach = _turned(np.array([[length / 2, 0.0]]), rng.uniform(0, math.pi))[0]
    middle = np.full(2, length // 2)
    ends = [np.rint(middle + sign * reach).astype(int).tolist() for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum())
