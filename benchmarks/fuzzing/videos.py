"""Small videos and pictures with mutated bytes, as `jobs.mask` reads and exports them."""

import io
import tempfile
from functools import cache
from itertools import chain
from pathlib import Path
from random import Random
from typing import cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from PIL import Image

from masking.images.arrays import Pixels
from masking.manifest.faults import ManifestError
from masking.manifest.rows import read_rows
from masking.tracking.masking import resolve_prompts
from masking.video.frame import VideoError
from masking.video.reader import Video
from masking.video.writer import Film

REFUSALS = (VideoError, ManifestError)
_SIZE = (32, 48)
_FRAMES = 8
_LARGE = 4_000_000
_CLIPS: tuple[tuple[str, str, str | None, dict[str, str]], ...] = (
    ("a.mp4", "libx264", "aac", {}),
    ("fast.mp4", "libx264", "aac", {"movflags": "+faststart"}),
    ("pieces.mp4", "libx264", None, {"movflags": "frag_keyframe+empty_moov"}),
    ("a.mov", "mpeg4", "pcm_s16be", {}),
    ("b.mov", "mjpeg", None, {}),
    ("a.mkv", "libx264", "libopus", {}),
    ("b.mkv", "ffv1", "pcm_f32le", {}),
    ("a.webm", "libvpx-vp9", "libopus", {}),
    ("b.webm", "libvpx", None, {}),
    ("a.avi", "mpeg4", "mp2", {}),
    ("a.ts", "libx264", "mp2", {}),
    ("b.ts", "mpeg2video", "aac", {}),
    ("a.mpg", "mpeg1video", "mp2", {}),
    ("a.flv", "flv", None, {}),
    ("a.wmv", "wmv2", None, {}),
    ("a.ivf", "libvpx", None, {}),
    ("a.gif", "gif", None, {}),
    ("a.y4m", "wrapped_avframe", None, {}),
    ("a.mxf", "mpeg2video", None, {}),
    ("a.h264", "libx264", None, {}),
    ("a.m2v", "mpeg2video", None, {}),
)
"""Names, codecs of pictures and of sound, and options of the clips."""
_PICTURES = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000")
_LISTS = (
    b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/proc/self/exe\n",
    b"ffconcat version 1.0\nfile '/proc/self/exe'\n",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
)


def attempt(random: Random, folder: Path) -> object:
    """Decode a mutated file forward and backward, and write a film of it."""
    name, content = random.choice(_contents())
    for _ in range(random.choice([0, 1, 1, 1, 2, 4])):
        content = _mutated(random, content)
    path = folder / random.choice([name, "clip", f"clip{Path(name).suffix}"])
    path.write_bytes(content)
    when: dict[str, float] = random.choice([{"frame": 1}, {"time_s": 0.08}])
    row = {"object_id": 1, "x": 3, "y": 3, **when}
    with Video.open(path) as video:
        resolve_prompts(video, read_rows([row]))
        frames = iter(video)
        first = next(frames)
        kind = random.choice(["overlay", "cutout"])
        with Film(folder / "film", kind, first.image.shape[:2], video) as film:
            for frame in chain([first], frames):
                if frame.image.nbytes < _LARGE:  # others take as long as such frames do
                    film.write(_drawn(frame.image, kind), frame.time_s)
        back = sum(1 for _ in video.backward(random.choice([0, 3, 99])))
        return frame.index + 1, back, video.report.notes, film.notes


def _drawn(image: Pixels, kind: str) -> Pixels:
    if kind == "overlay":
        return image
    return np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])


def _mutated(random: Random, content: bytes) -> bytes:
    """Return bytes that are changed, cut, moved or doubled, often in the header."""
    changed = bytearray(content)
    if not changed:
        return content
    reach = len(changed) if random.random() < 0.5 else min(len(changed), 600)
    at = random.randrange(reach)
    length = random.choice([1, 1, 2, 4, 8, 64, 1000])
    kind = random.randrange(7)
    if kind == 0:
        for _ in range(random.choice([1, 3, 10, 50])):
            changed[random.randrange(reach)] = random.randrange(256)
    elif kind == 1:
        changed[at] ^= 1 << random.randrange(8)
    elif kind == 2:
        del changed[at:]
    elif kind == 3:
        del changed[at : at + length]
    elif kind == 4:
        changed[at:at] = random.randbytes(length)
    elif kind == 5:
        changed[at : at + length] = random.choice([b"\0", b"\xff", b"\x7f"]) * length
    else:
        other = random.randrange(len(changed))
        changed[at:at] = changed[other : other + length * 16]
    return bytes(changed)


@cache
def _contents() -> list[tuple[str, bytes]]:
    """Return name and content of every clip, which are made once for each process."""
    with tempfile.TemporaryDirectory() as folder:
        found = [_clip(Path(folder) / clip[0], *clip[1:]) for clip in _CLIPS]
    joined = dict(found)["a.ts"] * 2
    pictures = [(f"a.{kind.lower()}", _picture(kind)) for kind in _PICTURES]
    lists = [(f"list{number}.mp4", text) for number, text in enumerate(_LISTS)]
    return [*found, ("joined.ts", joined), *pictures, ("stack.tif", _stack()), *lists]


def _clip(path: Path, codec: str, sound: str | None, options: dict[str, str]) -> tuple[str, bytes]:
    with av.open(str(path), "w", options=options) as container:
        video = cast(VideoStream, container.add_stream(codec, rate=25))
        video.height, video.width = _SIZE
        formats = [form.name for form in video.codec_context.codec.video_formats or []]
        usual = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video.pix_fmt = usual if usual in formats or not formats else formats[0]
        audio = None
        if sound is not None:
            audio = cast(AudioStream, container.add_stream(sound, rate=48_000, layout="mono"))
        for number in range(_FRAMES):
            frame = av.VideoFrame.from_ndarray(_image(number), format="rgb24")
            container.mux(video.encode(frame.reformat(format=video.pix_fmt)))
        container.mux(video.encode(None))
        if audio is not None:
            tone = np.sin(np.arange(48_000 * _FRAMES // 25) / 9).astype(np.float32)
            part = av.AudioFrame.from_ndarray(tone[None], "flt", "mono")
            part.sample_rate, part.pts = 48_000, 0
            size = audio.codec_context.frame_size or 1024
            resampler = av.AudioResampler(audio.codec_context.format, "mono", 48_000, size)
            for even in (*resampler.resample(part), *resampler.resample(None)):
                container.mux(audio.encode(even))
            container.mux(audio.encode(None))
    return path.name, path.read_bytes()


def _image(number: int) -> Pixels:
    y, x = np.mgrid[: _SIZE[0], : _SIZE[1]]
    plane = (128 + 100 * np.sin((x + 3 * number) / 5) * np.cos(y / 4)).astype(np.uint8)
    return np.dstack([plane, plane // 2, 255 - plane])


def _picture(kind: str) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_image(0)).save(stream, kind, exif=exif)
    return stream.getvalue()


def _stack() -> bytes:
    stream = io.BytesIO()
    pages = [Image.fromarray(_image(n)[..., 0].astype(np.uint16) << 4) for n in range(3)]
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
    return stream.getvalue()
