"""Scores the masks of a run against true masks: score.json, and a table in the terminal."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from statistics import mean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.storage.location import Location
from masking.images.decode import ImageError
from masking.outputs.rows import frames_of
from masking.outputs.score import Scores, Truth, read_mask, read_truth, scored_frames
from masking.video.folder import is_frame

_ROOTS = ("", "Annotations", "Annotations/480p")
"""Folders in which DAVIS keeps a folder for each video."""
SHOWN = 20
"""Number of objects in the terminal's table, the worst; score.json has all."""

Files = dict[str, dict[int, Location]]
"""Files of true masks by the name of their frame and object id; object 0: a file of all objects."""


def find_truth(truth: Location, video_id: str) -> Files:
    """Return the PNGs of a video: one per frame, or one per frame in a folder of each object.

    Args:
        truth: folder of all true masks.
        video_id: of the video.

    Returns:
        The files; empty if there are none.

    Raises:
        ImageError: one is a link to nothing, so that its frame would be left out; or the images are
            no PNGs.
    """
    found: Files = {}
    others: list[Location] = []
    for root in _ROOTS:
        folder = truth / root / video_id
        for path in folder.local_path.rglob("*.png") if folder.local_path else ():
            if path.is_symlink() and not path.exists():
                raise ImageError(
                    f"{path} is a link to nothing; restore the file or delete the link"
                )
        for file in folder.walk():
            object_id, _, name = file.path.rpartition("/")
            stem, _, ending = name.rpartition(".")
            if not is_frame(name) or not (object_id or "0").isdecimal():
                continue
            if ending.lower() == "png":
                found.setdefault(stem, {})[int(object_id or 0)] = folder / file.path
            else:
                others.append(folder / file.path)
        if found:
            return found
    if others:
        raise ImageError(f"{others[0]} is no PNG; expected PNGs, which lose no labels")
    return {}


def match_frames(
    files: Collection[str], names: Sequence[str] | None, count: int, video_id: str
) -> tuple[dict[int, str], str]:
    """Find the frame that each true mask is of.

    By name, if all are named like frames of the folder that the video is; else their names are
    indices.

    Args:
        files: names of the true masks' files, without the ending.
        names: names of the folder's frames, without the ending, in order; None: a video file.
        count: number of frames of the video.
        video_id: of the video, for messages.

    Returns:
        The name of the true mask of each frame that has one, by index; and "name" or "index".

    Raises:
        ImageError: a true mask is of no frame of the video, or two are of one.
    """
    index = {name: number for number, name in enumerate(names or ())}
    if index.keys() >= set(files):
        return {index[name]: name for name in files}, "name"
    strange = sorted(name for name in files if not (name.isdecimal() and int(name) < count))
    if strange:
        like = f", or like the folder's, such as {names[0]}.png" if names else ""
        raise ImageError(
            f"{video_id}: the true mask {strange[0]}.png is of no frame of the video; expected"
            f" names that are indices, 00000.png to {count - 1:05d}.png{like}, in a folder of the"
            " video or of an object's number"
        )
    found: dict[int, str] = {}
    for name in sorted(files):
        frame = int(name)
        if (other := found.setdefault(frame, name)) != name:
            raise ImageError(f"{video_id}: {other}.png and {name}.png are both of frame {frame}")
    return found, "index"


def score_video(table: pa.Table, video_id: str, truth: Location) -> dict[str, Any] | None:
    """Return J, F and J&F of a video's objects, or None if there are no true masks of it.

    Args:
        table: masks of the video, with names of its frames if it is a folder.
        video_id: of the video.
        truth: folder of the true masks of all videos.

    Raises:
        ImageError: a true mask cannot be read, or does not fit the masks.
    """
    files = find_truth(truth, video_id)
    if not files:
        return None
    names = None
    if "frame_name" in table.column_names:
        named = zip(table["frame"].to_pylist(), table["frame_name"].to_pylist(), strict=True)
        names = [PurePath(name).stem for name in dict(named).values()]
    count = len(pc.unique(table["frame"]))
    matched, by = match_frames(files.keys(), names, count, video_id)
    wanted, scores = set(scored_frames(matched)), Scores()
    for frame, rows in frames_of(table):
        if frame in wanted:
            size = (rows[0]["height"], rows[0]["width"])
            scores.add(_truth(files[matched[frame]], size), rows)
    return {
        "matched_by": by,
        "frames": scores.frames,
        "objects": scores.objects(),
        "not_asked_for": sorted(scores.unasked),
    }


def _truth(files: Mapping[int, Location], size: tuple[int, int]) -> Truth:
    if 0 in files:
        return read_truth(files[0].read_bytes(), str(files[0]), size)
    found = {}
    for number, file in files.items():
        mask = read_mask(file.read_bytes(), str(file), size)
        if mask.any():
            found[number] = mask
    return Truth(found)


def summarize(scores: Mapping[str, dict[str, Any] | None], failed: int) -> dict[str, Any]:
    """Return the content of score.json: means over objects, as DAVIS computes them, and each video.

    Args:
        scores: result of `score_video` for each masked video.
        failed: number of videos without masks; no mean includes them.
    """
    videos = {name: one for name, one in sorted(scores.items()) if one is not None}
    objects = [each for one in videos.values() for each in one["objects"].values()]
    means = {key: mean(each[key] for each in objects) for key in ("j", "f", "j_and_f") if objects}
    return {
        **means,
        "objects": len(objects),
        "videos_scored": len(videos),
        "videos_without_truth": len(scores) - len(videos),
        "videos_without_masks": failed,
        "videos": videos,
    }


def print_scores(found: Mapping[str, Any]) -> None:
    """Print a table of what `summarize` returns, the worst objects first."""
    rows = [
        (each["j_and_f"], each["j"], each["f"], f"{name} object {number}")
        for name, one in found["videos"].items()
        for number, each in one["objects"].items()
    ]
    by = Counter(one["matched_by"] for one in found["videos"].values())
    for kind, what in (("name", "the names of their frames"), ("index", "indices of frames")):
        if by[kind]:
            print(f"  the true masks of {by[kind]:,} videos are matched by {what}")
    print("   J&F      J      F  object")
    for both, j, f, name in sorted(rows)[:SHOWN]:
        print(f"{both:6.3f} {j:6.3f} {f:6.3f}  {name}")
    if len(rows) > SHOWN:
        print(f"  ... and {len(rows) - SHOWN:,} with higher scores; score.json lists all")
    if rows:
        mean_of = f"mean of {found['objects']:,} objects of {found['videos_scored']:,} videos"
        print(f"{found['j_and_f']:6.3f} {found['j']:6.3f} {found['f']:6.3f}  {mean_of}")
    if found["videos_without_truth"] or found["videos_without_masks"]:
        print(
            f"  not in the mean: {found['videos_without_truth']:,} videos without true masks,"
            f" {found['videos_without_masks']:,} without masks"
        )
