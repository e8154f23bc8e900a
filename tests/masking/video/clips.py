"""Small videos that tests make."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 25
"""Frames per second."""


def picture(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A frame (H, W, 3) whose brightness is its number, with a bright corner at the top left."""
    image = np.full((*size, 3), 20 + 3 * (number % 60), np.uint8)
    image[: size[0] // 3, : size[1] // 4] = 235
    return image


def write_video(
    path: Path,
    frames: int = 10,
    size: tuple[int, int] = (48, 64),
    sound: str | None = None,
    rate: int = 16_000,
    layout: str = "mono",
    beep_s: float | None = None,
    aspect: Fraction | None = None,
    begin: int = 0,
    times: Sequence[float] | None = None,
    gop: int = 12,
) -> Path:
    """Write frames as H.264, and sound of a codec: silence, and a tone from `beep_s` on."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"crf": "10"})
        video.height, video.width, video.pix_fmt = *size, "yuv420p"
        video.gop_size, video.max_b_frames = gop, 0
        if aspect is not None:
            video.sample_aspect_ratio = aspect
        audio = None
        if sound is not None:
            audio = container.add_stream(sound, rate=rate)
            audio.layout = layout
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(begin + number, size), format="rgb24")
            seconds = number / RATE if times is None else times[number]
            frame.pts, frame.time_base = round(seconds * 90_000), Fraction(1, 90_000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            _write_sound(container, audio, rate, layout, frames / RATE, beep_s)
    return path


def _write_sound(container, audio, rate, layout, seconds, beep_s) -> None:
    seconds_of = np.arange(round(seconds * rate)) / rate
    tone = 0.5 * np.sin(2 * np.pi * 500 * seconds_of)
    if beep_s is not None:
        tone *= seconds_of >= beep_s
    channels = av.AudioLayout(layout).nb_channels
    step = audio.codec_context.frame_size or 1024
    for start in range(0, len(tone), step):
        part = np.repeat(tone[start : start + step].astype(np.float32), channels)[None]
        frame = av.AudioFrame.from_ndarray(part, "flt", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        for even in av.AudioResampler(audio.codec_context.format, layout, rate).resample(frame):
            container.mux(audio.encode(even))
    container.mux(audio.encode(None))


def beep_of(path: Path) -> float:
    """Seconds from the first frame of a file to the first loud sample."""
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).time
        stream = container.streams.audio[0]
        rate = stream.codec_context.sample_rate
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("flt", "mono", rate)
        for frame in container.decode(audio=0):
            for even in resampler.resample(frame):
                loud = np.flatnonzero(np.abs(even.to_ndarray().ravel()) > 0.1)
                if len(loud):
                    return frame.time + loud[0] / rate - first
    raise AssertionError(f"{path}: no sound")
