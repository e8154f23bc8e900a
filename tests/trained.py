"""One small run on digits that a session's tests share, and how tests read what runs left."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load as tensors_of

from jobs.classifier.parts import find, plan
from jobs.classifier.predictor import predict
from jobs.classifier.task import load
from jobs.run.machine import hardware
from jobs.run.signals import Stop
from jobs.storage.location import Location
from jobs.train import conclude
from jobs.training.state import TrainingResult
from tests.tasks import small_config, train_small
from vit.config import AugmentConfig


@dataclass
class Trained:
    """A run that is over."""

    config: object
    result: TrainingResult
    out: Path

    @property
    def correct(self):
        """How many test images its own test got right."""
        return round(self.result.test["test_accuracy"] * 359)


def train_and_conclude(out, **changes):
    """A run as `jobs.train` leaves it, without Ray."""
    config = small_config(out, **changes)
    result, *_ = train_small(config)
    result = replace(result, hardware=hardware())
    assert conclude(config, Location.parse(out), result, Stop()) == 0
    return Trained(config, result, out)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, cache):
    """A run on digits, better than chance by far."""
    plain = AugmentConfig(crop_padding=1, hflip=0)
    return train_and_conclude(tmp_path_factory.mktemp("run"), epochs=8, augment=plain)


@pytest.fixture(scope="session")
def digits(trained):
    """The test set of digits as PNG files: [(bytes, label)], in order."""
    test = load(trained.config).test
    images = [(png(test.images[row][0]), int(test.labels[row])) for row in test.rows]
    assert len(images) == 359
    return images


def png(pixels):
    """An array as the bytes of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def step_of(out):
    """The step of a run's last checkpoint, or -1."""
    last = Location.parse(str(out)) / "checkpoints/last.json"
    return last.read_json()["step"] if last.exists() else -1


def final(out, part):
    """The tensors of one part of a run's last checkpoint: weights, average or optimizer."""
    checkpoints = Location.parse(str(out)) / "checkpoints"
    name = (checkpoints / "last.json").read_json()["checkpoint"]
    return tensors_of((checkpoints / name / f"{part}.safetensors").read_bytes())


def rows_of(data, model, classes):
    """All rows that `jobs.predict` gives for the files of `data`, predicted in this process."""
    with ThreadPoolExecutor(2) as pool:
        parts = plan(find([str(place) for place in data]), "f")
        tables = [predict(part, model, classes, pool) for part in parts]
    return [row for table in tables for row in table.to_pylist()]


def write_images(folder, digits):
    """Write the images into a folder, as files called by their numbers."""
    folder.mkdir(parents=True)
    for number, (content, _) in enumerate(digits):
        (folder / f"{number:04d}.png").write_bytes(content)


def write_table(path, digits, group=256):
    """Write the images as a Parquet file of row groups of `group`."""
    images = pa.array([content for content, _ in digits], pa.binary())
    pq.write_table(pa.table({"image": images}), path, row_group_size=group)


def right(rows, digits):
    """How many rows of predictions name the right class."""
    return sum(row["class"] == str(label) for row, (_, label) in zip(rows, digits, strict=True))
