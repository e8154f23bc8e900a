"""COCO files, near-valid and mutated, as `jobs.finetune --data` reads them."""

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.mutation import damaged, odd, replaced
from masking.training.pairs import ImageError, PairsConfig, inspect, survey

REFUSALS = (ImageError,)
_SIZE = (20, 30)
_SQUARE = [[2, 3, 18, 3, 18, 15, 2, 15]]
_RLE = {"size": list(_SIZE), "counts": [200, 40, 360]}
_NAMES = ("a.png", "train/a.png", "train\\a.png", "C:\\x\\a.png", "../a.png", "", "a\0", "n" * 300)


def attempt(random: Random, folder: Path) -> object:
    """Give the reader a COCO file with an image beside it."""
    image = Image.fromarray(np.zeros((*_SIZE, 3), np.uint8))
    place = folder / random.choice(["", "images", "images/train", "deep/er/still"])
    place.mkdir(parents=True, exist_ok=True)
    exif = image.getexif()
    exif[0x0112] = random.choice([1, 1, 3, 6, 77])
    image.save(place / "a.png", exif=exif)
    content = _content(random)
    for _ in range(random.choice([0, 0, 1, 1, 2])):
        content = replaced(random, content, odd)
    text = json.dumps(content).encode(errors="surrogatepass")
    path = folder / random.choice(["x.json", "annotations/instances_train.json"])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(damaged(random, text) if random.random() < 0.1 else text)
    longest = random.choice([0, 32])
    pairs = survey([path], PairsConfig(longest=longest, smallest=0, largest=1))
    faults = inspect(pairs).faults
    return len(pairs), len(faults)


def _content(random: Random) -> Any:
    name = random.choice(_NAMES) if random.random() < 0.1 else "a.png"
    height, width = _SIZE if random.random() < 0.9 else _SIZE[::-1]
    image = {"id": 1, "file_name": name, "height": height, "width": width}
    images = [image] * random.choice([1, 1, 1, 2])
    if random.random() < 0.1:
        images.append(image | {"id": random.choice([2, "1", "2", 1.0]), "file_name": "b.png"})
    annotations = [
        {
            "id": row,
            "image_id": random.choice([1, 1, 1, "1", 2]),
            "segmentation": copy.deepcopy(random.choice([_SQUARE, _RLE, _packed(random)])),
            "iscrowd": random.choice([0, 0, 0, 1, "0", "1", None]),
        }
        for row in range(random.randrange(1, 4))
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1}]}


def _packed(random: Random) -> dict[str, Any]:
    """Return run lengths as text, most of which do not add up."""
    length = random.choice([0, 3, 10, 60])
    text = "".join(chr(random.randrange(40, 115)) for _ in range(length))
    return {"size": list(_SIZE), "counts": text}
