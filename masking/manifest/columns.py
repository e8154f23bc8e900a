"""The columns of a manifest, and names that are nearly, but not quite, theirs."""

import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

from masking.manifest.faults import Fault
from masking.manifest.prompt import PromptRole

COLUMNS = {
    "uri": "a video file or a folder of frames, local or s3://; relative to the manifest's folder",
    "video_id": "name of the video in results; empty: the uri without scheme and ending",
    "object_id": "number of the object, from 1",
    "object_name": "name of the object, for people",
    "frame": "index of the frame, from 0, in presentation order; a row has this or time_s",
    "time_s": "seconds since the first frame, at least to the millisecond: the frame shown then",
    "x": "pixels from the left to the point, or to the left edge of a box",
    "y": "pixels from the top to the point, or to the top edge of a box",
    "label": "1 or positive: on the object; 0 or negative: not on it",
    "prompt_type": "point, box, polygon or mask; empty: a box if x2 or y2 is given, and without x a"
    " mask or polygon if there is one, else a point",
    "x2": "pixels from the left to the right edge of a box",
    "y2": "pixels from the top to the bottom edge of a box",
    "polygon": "with type polygon: corners in pixels as in `10,20 60,20 60,80`, or lists in JSON;"
    " rings are parted by `;`, and one within another is a hole",
    "mask": 'with type mask: COCO\'s run lengths, `{"size": [H, W], "counts": ...}`, or the path,'
    " relative as uri, of a picture that is 0 beside the object",
    "role": "init (also if empty), correct, accept, end or absent; the last three need no x and y",
    "until": "with role accept: last frame that is accepted; empty: only the row's own frame",
    "start_frame": "first frame on which the object is tracked; empty: the video's first",
    "end_frame": "last frame on which it is tracked; empty: the video's last",
    "coords": "pixel (also if empty), or normalized for shares of the frame's width and height",
    "ref_width": "width of the frame that x and x2 refer to, if it differs from the video's",
    "ref_height": "height of the frame that y and y2 refer to, if it differs from the video's",
}
"""Columns of a manifest, and what each holds; others are passed on."""
NUMBERS = (
    "object_id", "frame", "time_s", "x", "y", "label", "x2", "y2", "until", "start_frame",
    "end_frame", "ref_width", "ref_height",
)  # fmt: skip
"""Columns that hold numbers."""
Role = PromptRole | Literal["accept"]
ROLES: dict[Role, str] = {
    "init": "the object is here; its mask starts from these prompts only",
    "correct": "the prompts correct the tracked mask; prompts that are all negative always do",
    "accept": "the masks from this frame up to the frame `until` are right; no mask changes",
    "end": "the object is not tracked from this frame on",
    "absent": "the object is not visible from this frame on, until its next prompt",
}
"""Roles of a row, and what each means."""
NEEDED = "a row for each click, with at least uri and object_id"
"""What a manifest has, for messages."""
_NAMES = 12  # columns of a foreign table that a message lists
_SHORTEST = 5  # letters of a name in which a slip is recognised: `rule` is not `role`


def column_faults(
    names: Sequence[str], known: Iterable[str] = COLUMNS, place: str = ""
) -> list[Fault]:
    """Return the faults of a table's columns: known ones twice, and names that are nearly known.

    What a column nearly right holds would be ignored, and the masks would differ. Names that are
    further from the known ones are a person's own.

    Args:
        names: the columns as the table has them, in order.
        known: the columns that have a meaning.
        place: where the names are, for the message; empty: the table's header.
    """
    meanings = tuple(known)
    faults = [
        Fault(0, f"column {name}", f"there {count} times", "each column once", place)
        for name in meanings
        if (count := names.count(name)) > 1
    ]
    for name in dict.fromkeys(names):
        if meant := _meant(name, meanings):
            expected = f"{meant} (perhaps you meant that), or a name that differs more from it"
            faults.append(Fault(0, "the name of a column", repr(name), expected, place))
    return faults


def without_columns(columns: Sequence[str], missing: Sequence[str]) -> Fault:
    """Return the fault of a table without columns that each manifest has."""
    shown = ", ".join(map(repr, columns[:_NAMES])) + (", ..." if len(columns) > _NAMES else "")
    value = f"without {' and '.join(missing)}" + (f"; its columns are {shown}" if shown else "")
    return Fault(0, "the table", value, NEEDED)


@lru_cache(4096)
def _meant(name: str, known: tuple[str, ...]) -> str | None:
    """Return the column that a name is nearly, but not quite; None: it is one, or is another."""
    if name in known:
        return None
    first, _, number = name.rpartition(".")
    if first in known and number.isdecimal():  # pandas names a column so that is there twice
        return first
    plain = _plain(name)
    for each in known:
        other = _plain(each)
        plural = len(other) > 1 and plain in (f"{other}s", other.removesuffix("s"))
        # `time` may well be a person's own; where `time_s` is missing, each row has a fault
        if plain == other or (plural and plain != "time"):
            return each
    return next((each for each in known if _is_slip(plain, _plain(each))), None)


def _plain(name: str) -> str:
    """Return the letters and digits of a name in lower case, without marks that nobody sees."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return "".join(char for char in text if char.isalnum())


def _is_slip(name: str, known: str) -> bool:
    """Return whether a name has two letters of the known one swapped, one left out, or one more
    inside of it."""
    if len(known) < _SHORTEST or known == "times" or name[:1] != known[:1]:
        return False
    if len(name) == len(known):
        return any(
            name == known[:i] + known[i + 1] + known[i] + known[i + 2 :]
            for i in range(len(known) - 1)
        )
    if len(name) == len(known) - 1:
        return _without_one(known, name)
    return len(name) == len(known) + 1 and name[-1] == known[-1] and _without_one(name, known)


def _without_one(longer: str, shorter: str) -> bool:
    return any(longer[:i] + longer[i + 1 :] == shorter for i in range(len(longer)))
