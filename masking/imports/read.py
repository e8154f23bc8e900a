"""A file or folder of another tool, read by what it holds."""

import json
from pathlib import Path
from typing import Any

from masking.imports.coco import is_coco, read_coco
from masking.imports.cvat import is_cvat_json, read_cvat_json, read_cvat_xml
from masking.imports.items import Found, ImportsError
from masking.imports.label_maps import is_label_maps, read_label_maps
from masking.imports.label_studio import is_label_studio, read_label_studio
from masking.imports.yolo import is_yolo, read_yolo

EXPECTED = (
    "COCO or Label Studio in JSON, CVAT for video 1.1 in XML, annotations.json of a CVAT backup,"
    " a folder of YOLO's labels, of DAVIS or of YouTube-VOS"
)
"""What is read, for messages."""
_LARGEST = 2 << 30
"""Bytes of a file: its values take several times as much memory."""


def read_annotations(path: Path, size: tuple[int, int] | None = None) -> Found:
    """Read annotations of another tool.

    Args:
        path: the file or folder.
        size: (H, W) of the only video, which masks in a CVAT backup need; None: unknown.

    Raises:
        ImportsError: it is none of the kinds that are read, or of another version.
        OSError: it cannot be read.
    """
    if path.is_dir():
        if is_label_maps(path):
            return read_label_maps(path)
        if is_yolo(path):
            return read_yolo(path)
        raise ImportsError(
            f"{path} is a folder without annotations that are known; expected {EXPECTED}"
        )
    if path.stat().st_size > _LARGEST:
        raise ImportsError(
            f"{path} has {path.stat().st_size:,} bytes; at most {_LARGEST:,} are read"
        )
    content = path.read_bytes()
    name = path.name
    if content.startswith(b"PK\x03\x04"):
        raise ImportsError(f"{path} is a ZIP archive; unpack it, and name the file in it")
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        return read_cvat_xml(name, content)
    value = _json(path, content)
    if is_coco(value):
        return read_coco(name, value)
    if is_cvat_json(value):
        return read_cvat_json(name, value, size)
    if is_label_studio(value):
        return read_label_studio(name, value)
    raise ImportsError(f"{path} has no annotations that are known; expected {EXPECTED}")


def _json(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content.removeprefix(b"\xef\xbb\xbf"))
    except RecursionError as error:
        raise ImportsError(f"{path} is nested too deeply; expected {EXPECTED}") from error
    except ValueError as error:
        raise ImportsError(f"{path} is no JSON: {error}; expected {EXPECTED}") from error
