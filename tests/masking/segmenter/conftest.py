"""A small SAM: the network of the package, and a segmenter with its weights."""

import pytest

from masking.segmenter.official import Official
from masking.segmenter.sam import Segmenter
from tests.masking.segmenter.networks import CPU, small_sam


@pytest.fixture(scope="module")
def sam():
    return small_sam()


@pytest.fixture(scope="module")
def segmenter(sam):
    return Segmenter(Official(sam), CPU, "float32")
