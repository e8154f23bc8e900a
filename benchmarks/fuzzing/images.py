"""Folders of images: layouts, links and names as people have them, and mutated image files."""

import contextlib
import io
import os
from pathlib import Path
from random import Random

from PIL import Image

from jobs.classifier.parts import find, images_of, plan
from jobs.run.config import ConfigError
from jobs.storage.location import StorageError
from vit.config import DatasetConfig
from vit.data import sets
from vit.data.decode import DataError, decode

REFUSALS = (DataError, ConfigError, StorageError)

NAMES = (
    *("a", "b", "c", "$x$", "café", "cafe\u0301", "a b", "-x", "x" * 250, "%41", "a\nb", "\udce9"),
    *(
        "train",
        "Train",
        "training_set",
        "val",
        "valid",
        "dev-1",
        "test",
        "Test",
        "seg_train",
        "2023",
    ),
    *("@eaDir", "__MACOSX", ".hidden", "lost+found"),
)
KINDS = {
    "jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF",
    "avif": "AVIF", "jp2": "JPEG2000", "ppm": "PPM", "jfif": "JPEG", "tga": "TGA",
}  # fmt: skip
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F")
ODD = (
    *(b"", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", b"GIF89a", b"\x89PNG\r\n\x1a\n"),
    *(
        b"P6 99999 99999 255\n",
        b"P5 -1 8 255\n",
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"BM",
        b"II*\0",
        b"\0" * 64,
    ),
)


def attempt(random: Random, folder: Path) -> object:
    """Read a random folder as `jobs.train`, `--evaluate` and `jobs.predict` do."""
    root = folder / "above/above/above/root"  # links upwards lead to nothing else
    root.mkdir(parents=True)
    if random.random() < 0.4:  # near-valid: two sound classes, and one odd thing beside them
        for name in ("a/x", "b/x"):
            (root / name).mkdir(parents=True)
            for number in range(4):
                file = io.BytesIO()
                Image.effect_noise((9, 9), 50).save(file, "PNG")
                (root / name / f"{number}.png").write_bytes(file.getvalue())
        _fill(random, root / random.choice(("a", "b", "a/x")), depth=random.choice((3, 4)))
    else:
        _fill(random, root, depth=0)
    config = DatasetConfig(
        "imagefolder",
        cache_gb=random.choice((1.0, 1.0, 1.0, 0.0)) if random.random() < 0.1 else 1.0,
        max_bad_images=random.choice((0, 1000)),
        val_fraction=0.3,
    )
    faults = []
    for step in (_train, _measure, _predict):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                step(config, root, folder / "cache")
        except REFUSALS as error:
            faults.append(error)
    if faults:
        raise faults[0]
    return config


def _train(config: DatasetConfig, root: Path, cache: Path) -> None:
    summary = sets.check(config, [root])
    "\n".join(summary.notes).encode()
    dataset = sets.load(config, [root], 8, cache)
    if len(dataset.classes) < 2 or len(dataset.train) + len(dataset.val) == 0:
        raise AssertionError("nothing to train on was taken")


def _measure(config: DatasetConfig, root: Path, cache: Path) -> None:
    dataset = sets.load(config, [root], 8, cache, hold_out=False, training=False)
    sets.relabelled(dataset, sorted(dataset.classes, reverse=True))


def _predict(config: DatasetConfig, root: Path, cache: Path) -> None:
    parts = plan(find([str(root), f"{root}/**/*.png"]), "")
    for _, _, read in (image for part in parts for image in images_of(part)):
        with contextlib.suppress(DataError):
            decode(read(), 8)


def _fill(random: Random, folder: Path, depth: int) -> None:
    """Put images, folders and links into a folder."""
    for _ in range(random.randint(0, 3) if depth else random.randint(1, 4)):
        place = folder / random.choice(NAMES)
        if os.path.lexists(place):
            continue
        with contextlib.suppress(OSError):  # what the file system refuses
            if random.random() < 0.12:
                targets = ("..", ".", "../..", "/nowhere", place.name, "a", "../b", "../train")
                place.symlink_to(random.choice(targets))
            elif random.random() < 0.04:
                os.mkfifo(place.with_suffix(".png"))
            elif depth < 4 and random.random() < 0.8:
                place.mkdir()
                _fill(random, place, depth + 1)
    if depth and random.random() < 0.7:
        for number in range(random.randint(1, 4)):
            end = random.choice((*KINDS, *KINDS, "txt", "heic", "parquet", ""))
            with contextlib.suppress(OSError):
                (folder / f"{number}.{end}".rstrip(".")).write_bytes(_image(random, end))


def _image(random: Random, end: str) -> bytes:
    if random.random() < 0.05:
        return random.choice(ODD)
    size = random.choice(((8, 8), (1, 1), (9, 30), (1, 300)))
    picture = Image.effect_noise(size, 50).convert(random.choice(MODES))
    file = io.BytesIO()
    options: dict[str, object] = {}
    if random.random() < 0.2:
        options["exif"] = random.choice(
            (b"", b"Exif\0\0x", random.randbytes(40), b"II*\0\x08\0\0\0")
        )
    if random.random() < 0.1:
        options["transparency"] = random.choice((0, b"\0\xff", (1, 2, 3)))
    try:
        picture.save(file, KINDS.get(end, "PNG"), **options)
    except Exception:  # not every format writes every mode
        return random.randbytes(30)
    content = bytearray(file.getvalue())
    if random.random() < 0.15:
        for _ in range(random.randint(1, 8)):
            content[random.randrange(len(content))] = random.randrange(256)
    if random.random() < 0.05:
        del content[random.randrange(len(content)) :]
    return bytes(content)
