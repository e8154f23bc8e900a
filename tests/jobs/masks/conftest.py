"""Videos and settings that the tests of mask runs share."""

import pytest

from jobs.masks import plan as mask_plan
from jobs.weights.segmenter import locate
from masking.tracking.state import TrackConfig
from tests.masked import write_clips


@pytest.fixture(scope="package")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="package")
def settings():
    return mask_plan.settings_of(locate("mini"), "float32", TrackConfig())
