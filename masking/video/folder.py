"""A folder of images as a video.

The index of a frame is its place in the natural order of the names. So a file that is left out, or
one too many, would shift every frame after it: a folder with a doubtful file is refused.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path, PurePath

from masking.images.decode import ImageError, read_image
from masking.images.stack import used_bits_of
from masking.video.frame import Frame, Report, Timestamp, VideoError, bits_note

IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of the names of files that are frames of a folder."""
UNREAD = (
    ".heic", ".heif", ".avif", ".gif", ".jp2", ".j2k", ".jpx", ".jxl", ".jxr", ".tga", ".pbm",
    ".pgm", ".ppm", ".pnm", ".exr", ".hdr", ".dpx", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf",
    ".rw2", ".raf", ".raw", ".psd",
)  # fmt: skip
"""Endings of pictures that are not read: among frames, one is a frame that would be left out."""
_SHOWN = 5  # names in a message
_SERIES = 3  # numbered names of one form from which a name without a number is no frame
_BESIDE = re.compile(
    r"(?i)(?<![a-z])(masks?|labels?|labelids|seg|segmentations?|gt|annotations?|alpha|matte|depth"
    r"|flow|thumbs?|thumbnails?|previews?|overlays?)(?![a-z])"
)
"""Words in the name of a picture that belongs to a frame."""
_FRAME = re.compile(r"(?i)(?<![a-z])(rgb|colou?r|images?|img|frames?)(?![a-z])")
_COPY = re.compile(r"[ ._-]*(\(\d+\)|[ ._-][A-Za-z][A-Za-z ]*)$")
"""The end of a name that is added to another one: " (1)", " copy", "_left"."""


def is_frame(name: str) -> bool:
    """Return whether a file of a folder is one of its frames, by its name."""
    return name.lower().endswith(IMAGES) and not name.startswith(".")


def frames_among(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the frames among the names of a folder's files, in order, and the other names.

    Hidden files are in neither.

    Raises:
        VideoError: a picture is of a format that is not read, or is no frame by its name, such as
            `0000_mask.png` beside `0000.jpg`; there is no frame.
    """
    visible = sorted((name for name in names if not name.startswith(".")), key=_natural)
    frames = [name for name in visible if is_frame(name)]
    others = [name for name in visible if not is_frame(name)]
    if not frames:
        raise VideoError("not_a_video", f"a folder without images ({', '.join(IMAGES)} are read)")
    if unread := [name for name in others if name.lower().endswith(UNREAD)]:
        raise VideoError(
            "not_a_video",
            f"{_listed(unread)}: a format that is not read, so frames would be missing; convert"
            f" it to one of {', '.join(IMAGES)}, or move it to another folder if it is no frame",
        )
    _check_names(frames)
    return frames, others


def _check_names(frames: Sequence[str]) -> None:
    """Raise VideoError if a name says that its picture is no frame of the series."""
    cores: dict[str, str] = {}
    stems = {PurePath(name).stem: name for name in frames}
    for name in frames:
        stem = PurePath(name).stem
        core = _FRAME.sub("", _BESIDE.sub("", stem)).strip(" ._-")
        base = _COPY.sub("", stem)
        other = cores.setdefault(core, name)
        twin = stems[stem]  # itself, unless another one differs in its ending only
        if base in stems and re.search(r"\d", base):
            twin = stems[base]
        if other != name and (_BESIDE.search(stem) or _BESIDE.search(other)):
            twin = other
        if twin != name:
            raise VideoError(
                "not_a_video",
                f"{twin} and {name}: by their names, two pictures of one frame; expected only"
                " frames in the folder. Move masks, copies and thumbnails to another folder",
            )
    forms = Counter(re.sub(r"\d+", "#", PurePath(name).stem) for name in frames)
    form, count = forms.most_common(1)[0]
    loose = [name for name in frames if not re.search(r"\d", name)]
    if "#" in form and count >= _SERIES and count + len(loose) == len(frames) and loose:
        raise VideoError(
            "not_a_video",
            f"{_listed(loose)}: no number in the name, unlike the other {count:,} frames; move it"
            " to another folder, or give it its number",
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]).encode(errors="backslashreplace").decode() + more


def list_frames(path: Path) -> tuple[list[Path], list[str]]:
    """Return the frames of a local folder, in order, and the names of what else is there.

    The names of folders end in a slash.

    Raises:
        VideoError: as `frames_among` does; or a frame is a link to nothing, no file, or has a name
            that is not UTF-8.
        OSError: the folder cannot be listed.
    """
    try:
        with os.scandir(path) as entries:  # which knows kinds without asking for each
            kinds = {entry.name: _kind(entry) for entry in entries}
        folders = {name for name, kind in kinds.items() if kind == "folder" and not is_frame(name)}
        names, others = frames_among(kinds.keys() - folders)
        if missing := [name for name in names if kinds[name] != "file"]:
            what = "a link to nothing" if (path / missing[0]).is_symlink() else "no file"
            raise VideoError(
                "not_a_video",
                f"{_listed(missing)}: {what}; a gap would shift all frames after it. Restore the"
                " file, or delete what has its name",
            )
        for name in names:
            _check_utf8(name)
    except VideoError as error:
        raise VideoError("not_a_video", f"{path}: {error}") from None
    shown = sorted(f"{name}/" for name in folders if not name.startswith("."))
    return [path / name for name in names], [*others, *shown]


def _kind(entry: "os.DirEntry[str]") -> str:
    """Return file or folder, also for a link to one; empty for anything else."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    except OSError:  # a link to itself, or into a folder that may not be read
        return ""


def _check_utf8(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise VideoError("not_a_video", f"{name!a}: a name that is not UTF-8; rename it") from None


class ImageFolder:
    """A folder of images; its methods are those of `Video`."""

    codec = "images"
    rotation = 0
    rate: Fraction | None = None
    names: tuple[str, ...] | None
    _bits = 0

    def __init__(self, path: Path) -> None:
        """List a folder; raises VideoError if it has no images, or one that is no frame."""
        self.report = Report()
        self.path = path
        self._files, others = list_frames(path)
        self.names = tuple(file.name for file in self._files)
        if others:
            self.report.note(f"left aside, as they are no images: {_listed(others)}")

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def forward(self, start: int) -> Iterator[Frame]:
        """Yield the frames from `start` on."""
        for index in range(start, len(self._files)):
            frame = self._read(index)
            self.report.frames = index + 1
            yield frame

    def timestamps(self) -> Iterator[Timestamp]:
        """Yield a timestamp for each image, without a time."""
        yield from [Timestamp(None, None, True)] * len(self._files)

    def seek(self, index: int, timestamps: Sequence[Timestamp], clean: bool) -> Iterator[Frame]:
        """Yield the frames from `index` on."""
        return self.forward(index)

    def backward(self, last: int, ring_bytes: int) -> Iterator[Frame]:
        """Yield the frames from `last` to the first."""
        for index in range(min(last, len(self._files) - 1), -1, -1):
            yield self._read(index)

    def _read(self, index: int) -> Frame:
        """Read an image. One that does not decode is an error: a gap would shift later frames."""
        file = self._files[index]
        try:
            return Frame(index, None, None, read_image(file, 0, self._used_bits).pixels)
        except ImageError as error:
            raise VideoError("not_a_video", f"{file}: frame {index}: {error}") from error

    def _used_bits(self) -> int:
        """Return how many of 16 bits all frames together use, so that they are equally bright."""
        if not self._bits:
            self._bits = self._most_bits()
        if self._bits < 16:
            self.report.note(bits_note(self._bits))
        return self._bits

    def _most_bits(self) -> int:
        most = 8
        for file in self._files:
            try:
                most = max(most, used_bits_of(file))
            except ImageError:
                continue  # it is named when it is read
            if most == 16:
                break
        return most


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a sort key that orders numbers by value: frame 9 before frame 10."""
    parts = re.split(r"(\d+)", name)  # every second part is a number
    return [(int(part), "") if n % 2 else (-1, part) for n, part in enumerate(parts)], name
