"""Masks and polygons among the prompts of a video, as the page shows them."""

from collections.abc import Sequence

import numpy as np

from jobs.masks.plan import absolute_uri
from jobs.page.journal import Record
from jobs.page.previews import Click, Preview, prompt_of
from jobs.storage.location import Location
from masking.images.arrays import Bools
from masking.images.decode import nearest
from masking.manifest.faults import Fault, ManifestError
from masking.manifest.plans import resolve
from masking.manifest.rows import Row, parse_rows, prompts, with_pictures
from masking.tracking.obeying import FORCED, obey_in_frame


def prompts_of(records: Sequence[Record], base: Location) -> tuple[Row, ...]:
    """Return the prompts of a video, with masks that are pictures as run lengths.

    Args:
        records: rows of the video.
        base: folder that paths of pictures are relative to.

    Raises:
        ManifestError: a picture cannot be read.
    """

    def read(name: str) -> bytes:
        return Location.parse(absolute_uri(name, str(base), base)).read_bytes()

    faults: list[Fault] = []
    rows = with_pictures(prompts(parse_rows(records)[0]), read, faults)
    if faults:
        raise ManifestError(faults)
    return rows


def shown_mask(
    rows: Sequence[Row],
    size: tuple[int, int],
    times: Sequence[float | None],
    complete: bool,
    index: int,
    object_id: int,
) -> Bools | None:
    """Return the mask (H, W) that a person gave of an object on a frame; None: there is none.

    Args:
        rows: prompts of the video, from `prompts_of`.
        size: (H, W) of its first frame.
        times: seconds of its frames, as far as they are known.
        complete: whether `times` has all frames.
        index: number of the frame.
        object_id: id of the object.

    Raises:
        ManifestError: the shapes do not fit the video.
    """
    mine = [row for row in rows if row.object_id == object_id and row.is_shape]
    if not mine:
        return None
    (plan,) = resolve(mine, size, times, complete)
    prompt = plan.prompts.get(index)
    return None if prompt is None else prompt.mask


def preview_of(mask: Bools, clicks: Sequence[Click], size: tuple[int, int]) -> Preview:
    """Return the preview of a mask and of the clicks that change it, in a frame (H, W).

    Raises:
        PromptError: a click is outside of the frame.
    """
    shown = nearest(mask, size)
    prompt = prompt_of(size, clicks, shown)
    logits = np.where(shown, FORCED, -FORCED).astype(np.float32)
    return Preview(obey_in_frame(logits, prompt.points, prompt.labels) > 0, 1.0)
