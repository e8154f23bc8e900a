"""Previews of clicks are what tracking makes of them; frames are encoded once."""

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import masking
from jobs.page.previews import Click, Previewer
from masking.segmenter.sam import PromptError
from tests.moving import segmenter


def test_clicks_are_decoded_as_tracking_does_and_once(clip, tmp_path):
    asked = []
    seeing = segmenter()
    plain = seeing.network.decode

    def decode(features, frames, points, labels, boxes, mask_input):
        asked.append((points.tolist(), None if mask_input is None else mask_input.clone()))
        return plain(features, frames, points, labels, boxes, mask_input)

    seeing.network.decode = decode
    previewer = Previewer(seeing)
    key, clicks = ("a", "1", 0), [Click(30, 40), Click(33, 44), Click(90, 10, 0)]
    image, labels = clip[0]

    def preview(*given, before=None):
        return previewer.preview(key, lambda key: image, given, before)

    for count in (1, 2, 3):
        found = preview(*clicks[:count])
        assert found.score == pytest.approx(0.95)
        rows = [{"object_id": 1, "frame": 0} | vars(click) for click in clicks[:count]]
        for row in rows:
            del row["corner"]
        Image.fromarray(image).save(tmp_path / "0.png")
        job = next(masking.mask_video(tmp_path, rows, segmenter()))
        assert np.array_equal(found.mask, job.masks[0])
        truth = labels == 1
        assert (found.mask & truth).sum() / (found.mask | truth).sum() > 0.8
    assert [len(points[0]) for points, _ in asked] == [1] * 6  # later clicks are obeyed already
    assert asked[0][1] is None
    assert asked[1][1].max() > 0
    preview(*clicks)
    preview(clicks[0])
    assert len(asked) == 6  # known
    assert preview(Click(90, 10, 0)) is None  # says nothing of where it is
    preview(Click(30, 40), before=labels == 1)
    assert asked[-2][1].max() == pytest.approx(6, abs=0.1)  # the mask that is corrected
    cut = preview(Click(30, 40), Click(34, 40, 0))
    assert cut.mask[40, 30]
    assert not cut.mask[40, 34]
    assert preview(Click(30, 40, 0), before=labels == 1).mask[40, 30] == 0
    box = preview(Click(17, 27, 1, (44, 54)))
    assert box.mask[40, 30]
    with pytest.raises(PromptError, match="not in the frame"):
        preview(Click(300, 1))


def test_frames_ahead_are_encoded_once_and_others_given_up(clip):
    seeing, gate, encoded = segmenter(), threading.Event(), []
    plain = seeing.encode

    def encode(images):
        gate.wait(10)
        encoded.append(1)
        return plain(images)

    seeing.encode = encode
    previewer = Previewer(seeing)

    def image(key):
        return clip[key[2]][0]

    previewer.encode_ahead([("a", "1", number) for number in (0, 1, 2)], image)
    time.sleep(0.1)  # the first is begun
    previewer.encode_ahead([("a", "1", number) for number in (5, 0)], image)
    gate.set()
    assert previewer.preview(("a", "1", 5), image, [Click(40, 40)]) is not None
    assert previewer.preview(("a", "1", 0), image, [Click(30, 40)]) is not None
    assert len(encoded) == 2


def test_previews_of_one_frame_do_not_cancel_each_other(clip):
    """Objects of a frame are asked for at once, while the frame before it is being encoded."""
    seeing, begun, gate = segmenter(), threading.Event(), threading.Event()
    plain = seeing.encode

    def encode(images):
        begun.set()
        gate.wait(10)
        return plain(images)

    seeing.encode = encode
    previewer = Previewer(seeing)

    def ask(frame):
        return previewer.preview(("a", "1", frame), lambda key: clip[key[2]][0], [Click(40, 40)])

    with ThreadPoolExecutor(4) as threads:
        before = threads.submit(ask, 0)
        assert begun.wait(10)
        asked = [threads.submit(ask, 5) for _ in range(3)]
        time.sleep(0.2)
        gate.set()
        assert all(one.result(10) is not None for one in (before, *asked))
    previewer.close()


def test_the_frame_that_is_asked_for_last_is_encoded_next(clip):
    seeing, gate, encoded = segmenter(), threading.Event(), []
    plain = seeing.encode

    def encode(images):
        gate.wait(10)
        return plain(images)

    seeing.encode = encode
    previewer = Previewer(seeing)

    def image(key):
        encoded.append(key[2])
        return clip[key[2]][0]

    with ThreadPoolExecutor(4) as threads:
        for frame in (0, 3, 4, 5):
            threads.submit(previewer.preview, ("a", "1", frame), image, [Click(40, 40)])
            time.sleep(0.1)
        gate.set()
    assert encoded == [0, 5, 4, 3]
    previewer.close()


class Gate:
    """A segmenter that encodes only once the gate is open, and the frames that it encoded."""

    def __init__(self, clip):
        self.clip, self.open, self.begun = clip, threading.Event(), threading.Event()
        self.encoded, self.segmenter = [], segmenter()
        plain = self.segmenter.encode

        def encode(images):
            self.begun.set()
            self.open.wait(10)
            return plain(images)

        self.segmenter.encode = encode

    def image(self, key):
        self.encoded.append(key[2])
        return self.clip[key[2]][0]


def test_previews_that_nobody_waits_for_are_not_computed(clip):
    """Twelve are requested, then a click; eleven are cancelled before their turn."""
    gate = Gate(clip)
    previewer, gone = Previewer(gate.segmenter), [threading.Event() for _ in range(12)]

    def ask(frame, event=None):
        return previewer.preview(("a", "1", frame), gate.image, [Click(40, 40)], None, event)

    with ThreadPoolExecutor(15) as threads:
        first = threads.submit(ask, 0)
        assert gate.begun.wait(10)
        waiting = [threads.submit(ask, number + 1, event) for number, event in enumerate(gone)]
        shared = threads.submit(ask, 3)  # somebody else still waits for one of them
        time.sleep(0.2)
        for event in gone:
            event.set()
        click = threads.submit(ask, 20)
        time.sleep(0.2)
        gate.open.set()
        assert all(one.result(10) is not None for one in (first, shared, click))
        for one in waiting:
            with pytest.raises(CancelledError):
                one.result(10)
    assert gate.encoded == [0, 20, 3]
    assert previewer.preview(("a", "1", 5), gate.image, [Click(40, 40)]) is not None
    previewer.close()


def test_a_frame_that_is_asked_for_again_comes_next(clip):
    gate = Gate(clip)
    previewer = Previewer(gate.segmenter)
    with ThreadPoolExecutor(5) as threads:
        for frame in (0, 3, 4, 5, 3):
            threads.submit(previewer.preview, ("a", "1", frame), gate.image, [Click(40, 40)])
            time.sleep(0.1)
        gate.open.set()
    assert gate.encoded == [0, 3, 5, 4]
    previewer.close()


def test_the_clicks_of_a_preview_are_not_decoded_once_nobody_waits(clip):
    seeing, gone, decoded = segmenter(), threading.Event(), []
    plain = seeing.logits

    def logits(*given):
        decoded.append(1)
        gone.set()
        return plain(*given)

    seeing.logits = logits
    previewer = Previewer(seeing)
    clicks = [Click(30 + number, 40) for number in range(5)]
    with pytest.raises(CancelledError):
        previewer.preview(("a", "1", 0), lambda key: clip[0][0], clicks, None, gone)
    assert len(decoded) == 1
    previewer.close()
