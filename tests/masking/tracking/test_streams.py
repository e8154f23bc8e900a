"""A video on a GPU, on two streams: masks are those of a CPU, and the waits of the host are few."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.stand_in import write_clip
from masking.segmenter.mini import Mini, MiniConfig
from masking.segmenter.sam import Segmenter
from masking.tracking.masking import mask_video
from tests.masking.segmenter.networks import photographs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FRAMES = 10


def small(device):
    torch.manual_seed(0)
    return Segmenter(Mini(MiniConfig(side=64)), torch.device(device), "float32")


def masked(path, segmenter):
    clicks = [{"object_id": i + 1, "frame": 0, "x": 40 + 20 * i, "y": 32} for i in range(2)]
    return [frame.masks for frame in mask_video(path, clicks, segmenter)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES, (64, 96))


def test_masks_of_a_video_agree_with_the_cpu(path):
    pairs = list(zip(masked(path, small("cpu")), masked(path, small("cuda")), strict=True))
    assert len(pairs) == FRAMES
    both, either = (sum(f(*pair).sum() for pair in pairs) for f in (np.logical_and, np.logical_or))
    assert both > 0.99 * either > 0


def test_the_waits_of_a_frame(stand_in, path):
    """The budget may only fall: 3 are needed."""
    segmenter = small("cuda")
    masked(path, segmenter)
    with stand_in.measured() as log:
        masked(path, segmenter)
    assert log.waits.total() <= 8 * FRAMES
    assert not log.copies["staged"]  # what is large is pinned: the host would wait for the rest


def test_frames_are_resized_on_the_device_as_by_pillow():
    for frame, side in (((57, 101), 256), ((300, 517), 128)):
        segmenter = Segmenter(Mini(MiniConfig(side=side)), torch.device("cuda"), "float32")
        [image] = photographs(1, frame)
        prepared = segmenter.prepare([image])
        assert prepared.canvases[0].is_pinned()
        found = segmenter._images(prepared.canvases[0], frame)[0].cpu().permute(1, 2, 0).numpy()
        h, w = segmenter._resized(frame)
        shown = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
        apart = np.abs(found[:h, :w] - shown)
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.01
        assert not found[h:].any()
        assert not found[:, w:].any()
