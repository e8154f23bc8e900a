"""Parquet of images and masks, near-valid and damaged, as `jobs.finetune --data` reads it."""

import io
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.mutation import damaged, odd
from masking.training.pairs import ImageError, PairsConfig, inspect, survey

REFUSALS = (ImageError,)
_BYTES = ("image", "masks", "ignore")
_MANY = 50_000
"""Rows of a table that has few images."""
_MODES = ("L", "L", "RGB", "RGBA", "P", "1", "LA", "CMYK", "I;16", "I", "F")
_FORMATS = ("PNG", "PNG", "PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "EPS", "ICO")


def attempt(random: Random, folder: Path) -> object:
    """Give the reader a Parquet file, or a folder of them."""
    names = ["x.parquet"]
    if random.random() < 0.1:
        names = ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"]
        names = names[: random.choice([1, 2])]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        _write(random, folder / name)
        content = (folder / name).read_bytes()
        end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        pages, footer, last = content[:end], content[end:-8], content[-8:]
        if random.random() < 0.2:
            pages = damaged(random, pages)
        if random.random() < 0.6:
            footer = damaged(random, footer)
            if random.random() < 0.8:
                last = len(footer).to_bytes(4, "little") + last[4:]
        (folder / name).write_bytes(pages + footer + last)
    pairs = survey([folder], PairsConfig(longest=random.choice([0, 32]), smallest=0, largest=1))
    return len(pairs), len(inspect(pairs.subset(range(min(10, len(pairs))))).faults)


def _write(random: Random, path: Path) -> None:
    """Write a table; where columns cannot be written as drawn, fewer of them."""
    rows = random.choice([0, 1, 1, 2, 5])
    if random.random() < 0.03:
        rows = random.choice([_MANY, 8 * _MANY])  # of few images
    names = ["image", "masks"]
    names += [name for name in ("ignore", "kind", "key", "other") if random.random() < 0.3]
    if random.random() < 0.05:
        names[random.randrange(len(names))] = random.choice(["image", "", "é", "image.bytes"])
    columns = [_column(random, name, rows) for name in names]
    table = pa.Table.from_arrays(columns, names)
    compression = random.choice(["zstd", "snappy", "none"])
    pq.write_table(
        table,
        path,
        row_group_size=random.choice([1, 2, 1_000_000]) if rows < 10 else 1_000_000,
        compression=compression,
        dictionary_pagesize_limit=1 << 30 if rows >= _MANY else random.choice([None, 1 << 30]),
        use_dictionary=rows >= _MANY or random.random() < 0.8,
        write_statistics=random.random() < 0.7,
        store_schema=rows < _MANY and random.random() < 0.8,  # or it says that it is a dictionary
    )


def _column(random: Random, name: str, rows: int) -> pa.Array:
    if random.random() < 0.05 and rows < _MANY:
        return _odd_column(random, rows)
    few = range(min(rows, 5))
    if name in _BYTES:
        kind = random.choice([pa.binary(), pa.binary(), pa.large_binary()])
        values = pa.array([_cell(random, name) for _ in few], kind)
    else:
        words = ["regions", "a", None, "x" * random.choice([1, 100_000])]
        values = pa.array([random.choice(words) for _ in few], pa.string())
    if rows >= _MANY:  # small cells, which Arrow would write one by one, and none that is null
        # Each once: of a dictionary that repeats itself, Arrow writes out the cell of every row.
        values = values.filter(pc.less(pc.binary_length(values), 1000)).unique()
        places = pa.array(np.arange(rows) % max(1, len(values)), pa.int32())
        if not len(values):
            return pa.nulls(rows, values.type)
        return pa.DictionaryArray.from_arrays(places, values)
    if name in _BYTES and random.random() < 0.3:
        paths = pa.array([random.choice([None, "a.png"]) for _ in few], pa.string())
        return pa.StructArray.from_arrays([values, paths], ["bytes", "path"])
    return values


def _odd_column(random: Random, rows: int) -> pa.Array:
    value = odd(random)
    for values in ([value] * rows, [str(value)[:9]] * rows, [random.randrange(9)] * rows):
        try:
            array = pa.array(values)
            if random.random() < 0.3:
                array = array.dictionary_encode()
            pq.write_table(pa.table({"a": array}), io.BytesIO())
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            continue
        return array
    return pa.nulls(rows)


def _cell(random: Random, name: str) -> bytes | None:
    what = random.random()
    if what < 0.03:
        return None
    if what < 0.06:
        return random.choice([b"", b"abc", b"\x89PNG\r\n\x1a\n", b"\0" * 3_000_000])
    size = (12, 16) if random.random() < 0.9 else (16, 12)
    content = _picture(random, name, size)
    return damaged(random, content) if random.random() < 0.1 else content


def _picture(random: Random, name: str, size: tuple[int, int]) -> bytes:
    """Encode a photograph or a label map."""
    is_map = name != "image"
    pixels: Any = np.zeros(size, np.uint8)
    pixels[2:9, 3:10], pixels[5:11, 8:14] = random.choice([1, 255]), random.choice([2, 9])
    if random.random() < 0.1:
        pixels = np.random.default_rng(random.randrange(1 << 30)).integers(0, 255, size, np.uint8)
    picture = Image.fromarray(pixels if is_map else np.stack([pixels] * 3, -1))
    if random.random() < 0.2:
        picture = Image.fromarray(pixels).convert(random.choice(_MODES))
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = random.choice([1, 3, 6])
    try:
        picture.save(stream, random.choice(_FORMATS) if random.random() < 0.3 else "PNG", exif=exif)
    except (OSError, ValueError, KeyError, TypeError):  # a format without that mode
        picture.convert("RGB").save(stream, "PNG")
    return stream.getvalue()
