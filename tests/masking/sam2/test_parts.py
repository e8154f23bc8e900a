"""Objects that do not fit into the memory of a GPU together."""

import pytest
import torch

from masking.sam2.memory import VideoMemory
from masking.sam2.parts import in_parts
from masking.sam2.step import ObjectPrompt, advance
from tests.masking.sam2.tiny import tiny
from tests.masking.segmenter.networks import photographs


class Small:
    """A device with room for a few objects."""

    objects_at_once = 64

    def __init__(self, room):
        self.room, self.sizes = room, []

    def call(self, part):
        size = part.stop - part.start
        self.sizes.append(size)
        if size > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(range(part.start, part.stop))


def test_calls_become_smaller_until_they_fit_and_stay_so():
    small = Small(room=7)
    found = in_parts(small, 20, small.call)
    assert [row for part in found for row in part] == list(range(20))
    assert small.sizes == [20, 10, 5, 5, 5, 5]
    small.sizes.clear()
    in_parts(small, 9, small.call)
    assert small.sizes == [5, 4]
    assert in_parts(small, 0, small.call) == []


def test_no_room_for_one():
    with pytest.raises(torch.OutOfMemoryError):
        in_parts(Small(room=0), 3, Small(room=0).call)


@torch.no_grad()
def test_masks_in_parts_are_the_same_to_rounding():
    network = tiny()
    frames = torch.from_numpy(photographs(4, (128, 128))).permute(0, 3, 1, 2).float()
    features = network.encode(frames)
    places = [(20.0 + 20 * i, 100.0 - 15 * i) for i in range(5)]
    found = []
    for most in (64, 2):
        network.objects_at_once = most
        memory = VideoMemory.nothing(5)
        prompts = {
            row: ObjectPrompt(
                torch.tensor([place]), torch.tensor([1]), torch.full((4,), torch.nan), False, None
            )
            for row, place in enumerate(places)
        }
        for frame in range(4):
            one = tuple(part[frame : frame + 1] for part in features)
            asked = {} if frame else prompts
            memory, _, masks = advance(network, memory, one, frame, range(5), asked)
            found.append(masks.logits)
    for whole, parted in zip(found[:4], found[4:], strict=True):
        torch.testing.assert_close(parted, whole, rtol=1e-4, atol=1e-3)
