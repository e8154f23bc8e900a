"""A video on a GPU, on two streams: masks are those of a CPU, and the waits of the host are few."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.stand_in import write_clip
from masking.segmenter.mini import Mini, MiniConfig
from masking.segmenter.sam import Segmenter
from masking.tracking.enlarge import at_full_size
from masking.tracking.masking import mask_video
from tests.masking.segmenter.networks import photographs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FRAMES = 10


CLICKS = [{"object_id": i + 1, "frame": 0, "x": 40 + 20 * i, "y": 32} for i in range(2)]


def small(device, remembers=False):
    torch.manual_seed(0)
    network = Mini(MiniConfig(side=64), remembers)
    return Segmenter(network, torch.device(device), "float32")


def masked(path, segmenter):
    return [frame.masks for frame in mask_video(path, CLICKS, segmenter)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES, (64, 96))


def test_masks_of_a_video_agree_with_the_cpu(path):
    pairs = list(zip(masked(path, small("cpu")), masked(path, small("cuda")), strict=True))
    assert len(pairs) == FRAMES
    both, either = (sum(f(*pair).sum() for pair in pairs) for f in (np.logical_and, np.logical_or))
    assert both > 0.99 * either > 0


@pytest.mark.parametrize(
    ("remembers", "objects", "most"), [(True, 2, 3), (True, 1, 3), (False, 1, 3), (False, 2, 4)]
)
def test_the_waits_of_a_frame(stand_in, path, remembers, objects, most):
    """Three: for what memory expects, for the decoder's answers, and for the masks. A segmenter
    without a part that follows objects is asked again if a mask covers the middle of another."""
    segmenter, clicks, waits = small("cuda", remembers), CLICKS[:objects], []
    with mask_video(path, clicks, segmenter) as run:  # fills caches of constants
        assert len(list(run)) == FRAMES
    with mask_video(path, clicks, segmenter) as run:
        while True:
            with stand_in.measured() as log:
                if next(run, None) is None:
                    break
            waits.append(log.waits.total())
            assert not log.copies["staged"]  # what is large is pinned: the host would wait
    assert len(waits) == FRAMES
    assert max(waits[1:]) <= most
    assert waits[0] <= 7  # rounds of clicks


def test_masks_come_from_the_device_as_bits(stand_in):
    """In a 32nd of the bytes of their logits, which are made from the small ones if wanted."""
    logits = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    size = (57, 101)
    expected, segmenter = small("cpu").upsample(logits, size), small("cuda")
    at_full_size(segmenter, logits, size, size)
    with stand_in.measured() as log:
        masks, full = at_full_size(segmenter, logits, size, size)
    assert (log.waits.total(), log.copies["down"]) == (1, 1)
    assert np.array_equal(masks, expected.numpy() > 0)
    assert np.array_equal(full.array, expected.numpy())
    full[1] = np.zeros(size, np.float32)
    assert not full.array[1].any()
    assert np.array_equal(full[0], expected[0].numpy())
    other, _ = at_full_size(segmenter, logits, size, (60, 90))
    assert other.shape == (2, 60, 90)


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
