"""One small run on digits that a session's tests share, trained in this process."""

import io
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from jobs.classifier.task import load
from jobs.run.folder import hardware
from jobs.run.signals import Stop
from jobs.storage.location import Location
from jobs.train import conclude
from tests.tasks import small_config, train_small
from vit.config import AugmentConfig


@dataclass
class Trained:
    """A run that is over."""

    config: object
    facts: dict
    out: Path

    @property
    def correct(self):
        """How many test images its own test got right."""
        return round(self.facts["test"]["test_accuracy"] * 359)


def train_and_conclude(out, **changes):
    """A run as `jobs.train` leaves it, without Ray."""
    config = small_config(out, **changes)
    facts, *_ = train_small(config)
    classes = load(config).classes
    facts |= {"classes": classes, "nodes": 1, "hardware": hardware()}
    assert conclude(config, Location.parse(out), facts, Stop()) == 0
    return Trained(config, facts, out)


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
