"""Two short videos, and a session over them."""

import pytest

from jobs.page import videos as prompt_videos
from jobs.page.session import Session
from jobs.page.store import Store
from tests.jobs.page.rows import LENGTH
from tests.masking.tracking.test_masking import film
from tests.moving import picture, segmenter


@pytest.fixture(scope="module")
def clip():
    return [picture({1: (30 + 2 * t, 40, 13), 2: (130 - 2 * t, 70, 13)}) for t in range(LENGTH)]


@pytest.fixture(scope="module")
def videos(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    film(folder / "a.mp4", clip)
    film(folder / "b.mp4", clip[:9])
    return folder


@pytest.fixture
def session(videos, tmp_path):
    store = Store(tmp_path / "m.csv")
    source = prompt_videos.find(str(videos), tmp_path / "m.csv", None)
    found = Session(store, source.clips, segmenter(), None)
    yield found
    found.close()
