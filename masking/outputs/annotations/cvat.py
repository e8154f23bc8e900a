"""CVAT's XML of a video ("CVAT for video 1.1"): a track for each object.

CVAT reads keyframes only and interpolates between them. Boxes are written with the keyframes that
this needs. Its polygons are interpolated by a rule of its own: each frame with a polygon is a
keyframe, so that CVAT shows the masks as they are.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from xml.sax.saxutils import XMLGenerator
from xml.sax.xmlreader import AttributesImpl

import pyarrow as pa
import pyarrow.compute as pc

from masking.images.outlines import edge_parts, joined, one_ring
from masking.outputs.annotations.tracks import Clip, Run, Track, tracks_of
from masking.outputs.formats import category_of
from masking.outputs.rows import frames_of, mask_of

_VERSION = "1.1"
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that XML cannot hold."""


def write_cvat(
    path: Path, table: pa.Table, clip: Clip, names: Mapping[int, str], polygons: bool
) -> None:
    """Write the tracks of a video.

    Args:
        path: the local file to write.
        table: masks of the video (`masking.outputs.rows`).
        clip: the video.
        names: names of its objects by id, the labels of the tracks.
        polygons: whether shapes are polygons; a mask of several parts, or with holes, is one
            polygon with seams of no width. Otherwise they are boxes.
    """
    tracks = [track for track in tracks_of(table) if track.runs]
    with path.open("wb") as file:
        xml = XMLGenerator(file, "utf-8", short_empty_elements=True)
        xml.startDocument()
        _open(xml, "annotations")
        _element(xml, "version", _VERSION)
        _write_meta(xml, clip, sorted({category_of(names, track.object_id) for track in tracks}))
        for track in tracks:
            name = category_of(names, track.object_id)
            about = {"id": str(track.object_id), "label": name, "source": "file"}
            _open(xml, "track", about)
            outlines = _outlines(table, track.object_id) if polygons else None
            for kind, shape in _shapes(track, clip.frames, outlines):
                _open(xml, kind, shape)
                xml.endElement(kind)
            xml.endElement("track")
        xml.endElement("annotations")
        xml.endDocument()


def _open(xml: XMLGenerator, name: str, about: Mapping[str, str] | None = None) -> None:
    plain = {key: _FORBIDDEN.sub("\ufffd", value) for key, value in (about or {}).items()}
    xml.startElement(name, AttributesImpl(plain))


def _element(xml: XMLGenerator, name: str, text: object) -> None:
    _open(xml, name)
    xml.characters(_FORBIDDEN.sub("\ufffd", str(text)))
    xml.endElement(name)


def _write_meta(xml: XMLGenerator, clip: Clip, labels: Sequence[str]) -> None:
    """Write what CVAT says of the task: its frames, its labels, the size and name of the video."""
    _open(xml, "meta")
    _open(xml, "task")
    _element(xml, "name", clip.video_id)
    _element(xml, "size", clip.frames)
    _element(xml, "mode", "interpolation")
    _element(xml, "start_frame", 0)
    _element(xml, "stop_frame", clip.frames - 1)
    _open(xml, "labels")
    for label in labels:
        _open(xml, "label")
        _element(xml, "name", label)
        xml.endElement("label")
    xml.endElement("labels")
    _open(xml, "original_size")
    _element(xml, "width", clip.size[1])
    _element(xml, "height", clip.size[0])
    xml.endElement("original_size")
    _element(xml, "source", PurePath(clip.uri).name)
    xml.endElement("task")
    xml.endElement("meta")


def _outlines(table: pa.Table, object_id: int) -> dict[int, str]:
    """Return the points of an object's polygon by frame."""
    found = {}
    for frame, (row,) in frames_of(table.filter(pc.equal(table["object_id"], object_id))):
        if row["area"]:
            ring = joined([one_ring(part) for part in edge_parts(mask_of(row))])
            found[frame] = ";".join(f"{x:.2f},{y:.2f}" for x, y in ring.tolist())
    return found


def _shapes(
    track: Track, frames: int, outlines: Mapping[int, str] | None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the shapes of a track; where it ends before the video does, one is outside."""
    for run in track.runs:
        for place, frame in enumerate(run.frames):
            is_key = outlines is not None or frame in run.keys
            yield _shape(run, place, outlines, frame, is_key)
        if run.frames[-1] + 1 < frames:
            yield _shape(run, len(run.frames) - 1, outlines, run.frames[-1] + 1, True, "1")


def _shape(
    run: Run,
    place: int,
    outlines: Mapping[int, str] | None,
    frame: int,
    is_key: bool,
    outside: str = "0",
) -> tuple[str, dict[str, str]]:
    about = {"frame": str(frame), "keyframe": str(int(is_key)), "outside": outside, "occluded": "0"}
    if outlines is not None:
        return "polygon", about | {"points": outlines[run.frames[place]], "z_order": "0"}
    sides = (f"{side:.2f}" for side in run.boxes[place].tolist())
    box = dict(zip(("xtl", "ytl", "xbr", "ybr"), sides, strict=True))
    return "box", about | box | {"z_order": "0"}
