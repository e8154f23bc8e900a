"""Prompts are padded and checked, and all faults are listed at once."""

import numpy as np
import pytest
import torch

from masking.segmenter.sam import PromptError, Prompts

NAN = float("nan")


def test_ragged_prompts_are_padded():
    prompts = Prompts.of(
        (20, 30),
        [[(1, 2)], [], [(3, 4), (5, 6)]],
        [[1], [], [0, 1]],
        boxes=[None, [1, 2, 3, 4], None],
        mask_input=[None, None, np.ones((2, 2))],
        frames=[0, 1, 1],
    )
    assert prompts.frames.tolist() == [0, 1, 1]
    assert prompts.points.tolist() == [[[1, 2], [0, 0]], [[0, 0], [0, 0]], [[3, 4], [5, 6]]]
    assert prompts.labels.tolist() == [[1, -1], [-1, -1], [0, 1]]
    assert prompts.boxes.isnan().all(dim=1).tolist() == [True, False, True]
    assert prompts.mask_input.isnan().all(dim=(1, 2)).tolist() == [True, True, False]
    assert [t.dtype for t in (prompts.frames, prompts.points, prompts.labels, prompts.boxes)] == [
        torch.int64, torch.float32, torch.int64, torch.float32,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("points", "labels", "more", "message"),
    [
        ([(30, 5)], [1], {}, r"prompt 0: point 0 at \(30, 5\) is not in the frame of 30 x 20"),
        ([(5, 5), (-0.1, 5)], [1, 1], {}, r"point 1 at \(-0.1, 5\) is not in"),
        ([(NAN, 5)], [1], {}, r"point 0 at \(nan, 5\) is not in"),
        ([(5, 5)], [0], {}, "only background points, no box and no mask"),
        ([], [], {}, "no points, no box and no mask"),
        ([(5, 5)], [2], {}, "point 0 has label 2; expected 1 for foreground, 0 for background"),
        ([(5, 5)], [1, 1], {}, r"points have shape \(1, 2\), labels \(2,\)"),
        ([5, 5], [1, 1], {}, r"points have shape \(2,\), labels \(2,\)"),
        ([], [], {"boxes": [[5, 5, 5, 9]]}, r"x1 < x2 and y1 < y2"),
        ([], [], {"boxes": [[5, 5, NAN, 9]]}, r"x1 < x2 and y1 < y2"),
        ([], [], {"boxes": [[31, 5, 40, 9]]}, r"box .* is not in the frame of 30 x 20"),
        ([], [], {"boxes": [[5, 5, 9]]}, r"box has shape \(3,\)"),
        ([], [], {"mask_input": [np.ones(4)]}, r"mask_input has shape \(4,\)"),
        ([], [], {"mask_input": [np.full((4, 4), NAN)]}, "finite logits"),
        ([(5, 5)], [1], {"frames": [0, 1]}, "points of 1 objects, but 2 frames"),
    ],
)
def test_malformed_prompts(points, labels, more, message):
    with pytest.raises(PromptError, match=message):
        Prompts.of((20, 30), [points], [labels], **more)


def test_all_faults_are_listed_at_once():
    with pytest.raises(PromptError, match=r"prompt 0: .*\nprompt 2: point 1"):
        Prompts.of((20, 30), [[], [(1, 1)], [(1, 1), (99, 1)]], [[], [1], [1, 1]])
