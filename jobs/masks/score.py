"""The masks of a run against a truth that is at hand: score.json, and a table."""

from collections.abc import Mapping
from statistics import mean
from typing import Any

from jobs.masks.folder import table_of
from jobs.storage.location import Location
from masking.images.decode import ImageError
from masking.outputs.rows import frames_of
from masking.outputs.score import Scores, Truth, read_mask, read_truth, scored_frames

_ROOTS = ("", "Annotations", "Annotations/480p")
"""Where DAVIS has a folder a video."""
SHOWN = 20
"""Objects that the terminal shows, the worst; score.json has all."""

Files = dict[int, dict[int, Location]]
"""Of each frame its files, by object; 0: one for all objects."""


def find_truth(truth: Location, video_id: str) -> Files:
    """The PNGs of a video: one a frame, or a folder an object with one a frame. May be none.

    Raises:
        ImageError: one whose name is not the number of its frame.
    """
    found: Files = {}
    for root in _ROOTS:
        folder = truth / root / video_id
        for file in folder.walk():
            object_id, _, name = file.path.rpartition("/")
            stem, _, ending = name.rpartition(".")
            if ending.lower() != "png" or name.startswith("."):  # ._00000.png is of macOS
                continue
            if object_id and not object_id.isdecimal():
                continue
            if not stem.isdecimal():
                raise ImageError(
                    f"{folder / file.path}: a truth is called by the number of its frame,"
                    " 00000.png, in a folder of the video or of its object's number"
                )
            found.setdefault(int(stem), {})[int(object_id or 0)] = folder / file.path
        if found:
            break
    return found


def score_video(out: Location, video_id: str, truth: Location) -> dict[str, Any] | None:
    """J, F and J&F of a video's objects; None where there is no truth.

    Raises:
        ImageError: a truth that cannot be read, or does not fit the masks.
    """
    files = find_truth(truth, video_id)
    if not files:
        return None
    wanted, scores = set(scored_frames(files)), Scores()
    for frame, rows in frames_of(table_of(out, video_id)):
        if frame in wanted:
            wanted.discard(frame)
            size = (rows[0]["height"], rows[0]["width"])
            scores.add(_truth(files[frame], size), rows)
    if wanted:
        raise ImageError(f"{video_id}: a truth of frame {min(wanted)}, which the video has not")
    return {
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
    """What score.json holds: means over objects, as DAVIS has them, then each video.

    Args:
        scores: of each masked video; None where there was no truth.
        failed: videos without masks, which no mean has.
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
    """Print a table, the worst objects first."""
    rows = [
        (each["j_and_f"], each["j"], each["f"], f"{name} object {number}")
        for name, one in found["videos"].items()
        for number, each in one["objects"].items()
    ]
    print("   J&F      J      F  object")
    for both, j, f, name in sorted(rows)[:SHOWN]:
        print(f"{both:6.3f} {j:6.3f} {f:6.3f}  {name}")
    if len(rows) > SHOWN:
        print(f"  ... and {len(rows) - SHOWN:,} that are better: score.json has all")
    if rows:
        mean_of = f"mean of {found['objects']:,} objects of {found['videos_scored']:,} videos"
        print(f"{found['j_and_f']:6.3f} {found['j']:6.3f} {found['f']:6.3f}  {mean_of}")
    if found["videos_without_truth"] or found["videos_without_masks"]:
        print(
            f"  in no mean: {found['videos_without_truth']:,} videos without a truth,"
            f" {found['videos_without_masks']:,} without masks"
        )
