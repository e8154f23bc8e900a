"""A video's frames, their timestamps, and what goes wrong in reading them, as values."""

from dataclasses import dataclass, field

from masking.images.arrays import Pixels

_KEPT_NOTES = 5


class VideoError(ValueError):
    """A video that cannot be used. The message names the file; `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        """`code` is not_found, not_a_video, no_video_stream, no_decoder or no_frames."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Frame:
    """A decoded frame."""

    index: int
    """Index of the frame, from 0, in presentation order."""
    pts: int | None
    """Timestamp in units of the video's `time_base`, as in the file; None: it has none."""
    time_s: float | None
    """Seconds since the first frame; None for images of a folder and without a timestamp."""
    image: Pixels
    """(H, W, 3) uint8 RGB as displayed: rotation applied, pixel aspect not."""


@dataclass
class Report:
    """What went wrong so far in reading a video."""

    frames: int = 0
    """Frames that decoded."""
    corrupt_packets: int = 0
    """Packets that did not decode, and frames that the decoder reports as damaged."""
    cut_off: bool = False
    """Whether the container ended in an error, before its end."""
    unsorted: int = 0
    """Frames whose timestamp is not later than the one before."""
    notes: list[str] = field(default_factory=list)
    """Other remarks, and the first messages of the decoder."""

    def note(self, text: str) -> None:
        """Add a message, unless it is there already or there are enough."""
        if text not in self.notes and len(self.notes) < _KEPT_NOTES:
            self.notes.append(text)


def bits_note(bits: int) -> str:
    """Return the note of frames that use a part of 16 bits."""
    return f"the frames use {bits} of 16 bits: these are shown as 8 bits"


@dataclass(frozen=True)
class Timestamp:
    """When a frame is shown, and whether decoding can start with it."""

    pts: int | None
    """Timestamp in units of the video's `time_base`; None: the frame has none."""
    time_s: float | None
    """Seconds since the first frame; None: unknown."""
    key: bool
    """Whether the file marks the frame as a key frame."""
