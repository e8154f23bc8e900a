"""A video as a stream of RGB frames, in the order and the orientation in which it is shown.

    with Video.open(path) as video:
        for frame in video:             # one at a time; nothing is kept
            frame.image                 # (H, W, 3) uint8 RGB

The index of a frame is its place in the order of a default decode, from 0: the counts that
containers give are wrong too often. A file that is damaged gives the frames that decode;
`Video.report` lists what was lost. A folder of images is a video, too.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

from masking.video.file import VideoFile
from masking.video.folder import ImageFolder
from masking.video.frame import Frame, Report, Timestamp, VideoError
from masking.video.picture import open_picture

RING_BYTES = 256 << 20
"""Bytes of decoded frames that a backward pass holds at a time."""


class Video:
    """An open video. Iterate over it forward, or `backward` from a frame, as often as needed.

    Close it, or use it in a `with` statement: FFmpeg's threads live as long as it does.
    """

    def __init__(self, path: Path, source: "VideoFile | ImageFolder") -> None:
        """Use `Video.open`."""
        self.path = path
        self._source = source

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a video file, a picture, a stack of TIFF, or a folder of images in natural order of
        their names.

        Raises:
            VideoError: the path is missing, is no video, or has no decoder.
        """
        path = Path(path)
        if path.is_dir():
            return cls(path, ImageFolder(path))
        if not path.is_file():
            raise VideoError("not_found", f"{path}: no such file or folder")
        return cls(path, open_picture(path) or VideoFile(path))

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Free the decoder."""
        self._source.close()

    @property
    def report(self) -> Report:
        """What went wrong so far in the forward pass."""
        return self._source.report

    @property
    def rate(self) -> Fraction | None:
        """Average frames per second according to the container; None: unknown."""
        return self._source.rate

    @property
    def rotation(self) -> int:
        """Degrees counter-clockwise by which stored frames are rotated for display; those of a
        mirrored video are mirrored left to right after that."""
        return self._source.rotation

    @property
    def pixel_aspect(self) -> Fraction | None:
        """Width of a pixel by its height, as displayed; None: unknown, or images."""
        return self._source.pixel_aspect if isinstance(self._source, VideoFile) else None

    @property
    def origins(self) -> Sequence[Fraction]:
        """Seconds of the file's own clock at which the time is 0, known from the first frame on.

        Each recording of joined ones, from its first frame on, has its own; images have none.
        """
        clock = self._source.clock if isinstance(self._source, VideoFile) else None
        return () if clock is None else clock.origins

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec; "images" for a folder, and for a picture its format."""
        return self._source.codec

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names of the files of a folder's frames, in order; None for a video file."""
        return self._source.names if isinstance(self._source, ImageFolder) else None

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames from the first to the last."""
        return self.forward()

    def forward(self, start: int = 0) -> Iterator[Frame]:
        """Yield the frames from `start` on. Those before it are decoded, too, but not converted.

        Raises:
            VideoError: no frame decodes.
        """
        yield from self._source.forward(start)

    def timestamps(self) -> Iterator[Timestamp]:
        """Yield the timestamps of all frames, decoded but not converted; `report` is then of this
        pass."""
        yield from self._source.timestamps()

    def seek(self, index: int, timestamps: Sequence[Timestamp], clean: bool) -> Iterator[Frame]:
        """Yield the frames that `forward(index)` yields, decoded from the key frame before `index`.

        Args:
            index: index of the first frame.
            timestamps: what `timestamps` has yielded so far, at least up to `index`; the list may
                grow meanwhile.
            clean: whether that pass met no damage. If it did, or timestamps do not rise, all frames
                before `index` are decoded.
        """
        yield from self._source.seek(index, timestamps, clean)

    def backward(self, last: int, ring_bytes: int = RING_BYTES) -> Iterator[Frame]:
        """Yield the frames from `last` to the first, by groups of pictures, each decoded forward.

        Args:
            last: index of the first frame that is yielded; in a shorter video, its last frame.
            ring_bytes: bytes of decoded frames to hold; a larger group is decoded repeatedly.
        """
        yield from self._source.backward(last, ring_bytes)
