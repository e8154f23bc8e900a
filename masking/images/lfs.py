"""Pointers: what Git LFS leaves in place of large files that were not fetched."""

from pathlib import Path

POINTER = (
    "is a Git LFS pointer, which stands for the file itself: fetch it with `git lfs pull` in the"
    " repository, or download the file"
)
"""What such a file is, and what to do, for messages."""
_BEGINNING = b"version https://git-lfs.github.com/spec/"


def is_pointer(source: bytes | Path) -> bool:
    """Return whether content, or the file at a path, is a pointer; raises OSError."""
    if isinstance(source, bytes):
        return source.startswith(_BEGINNING)
    with source.open("rb") as opened:
        return opened.read(len(_BEGINNING)) == _BEGINNING
