"""Label Studio's tasks of videos: boxes with keyframes, between which it interpolates linearly.

Its frames count from 1, its coordinates are per cent of the frame. A keyframe that is not `enabled`
is the last one before the object is out of sight.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from masking.outputs.annotations.tracks import Clip, Track, tracks_of
from masking.outputs.formats import category_of


def write_label_studio(
    path: Path,
    videos: Iterable[tuple[Clip, pa.Table]],
    names: Mapping[str, Mapping[int, str]],
) -> None:
    """Write a task for each video, with an annotation for each of its objects.

    Args:
        path: the local file to write.
        videos: each video, and its masks (`masking.outputs.rows`).
        names: names of each video's objects, the labels, by video id and object id.
    """
    with path.open("w") as file:
        file.write("[")
        for number, (clip, table) in enumerate(videos):
            result = [
                _region(track, clip, category_of(names.get(clip.video_id, {}), track.object_id))
                for track in tracks_of(table)
                if track.runs
            ]
            task = {
                "data": {"video": clip.uri, "video_id": clip.video_id},
                "annotations": [{"result": result}],
            }
            file.write(f"{',' if number else ''}\n{json.dumps(task)}")
        file.write("\n]\n")


def _region(track: Track, clip: Clip, label: str) -> dict[str, Any]:
    return {
        "id": str(track.object_id),
        "type": "videorectangle",
        "from_name": "box",
        "to_name": "video",
        "origin": "prediction",
        "value": {
            "framesCount": clip.frames,
            "duration": clip.duration,
            "sequence": [*_sequence(track, clip)],
            "labels": [label],
        },
    }


def _sequence(track: Track, clip: Clip) -> Iterator[dict[str, Any]]:
    """Yield the keyframes of an object."""
    h, w = clip.size
    for run in track.runs:
        for frame, time_s, box in zip(run.frames, run.times, run.boxes.tolist(), strict=True):
            if frame not in run.keys:
                continue
            left, top, right, bottom = box
            if time_s is None:
                time_s = frame / clip.rate if clip.rate else 0.0
            yield {
                "frame": frame + 1,
                "enabled": frame < run.frames[-1] or frame + 1 == clip.frames,
                "rotation": 0,
                "x": 100 * left / w,
                "y": 100 * top / h,
                "width": 100 * (right - left) / w,
                "height": 100 * (bottom - top) / h,
                "time": time_s,
            }
