"""One step of a network with a memory: all objects of a frame, from a memory to the next one.

What is computed is what the sessions of `transformers` compute for each object, except that

- the memory of a frame takes the mask of a person's prompt as 0 and 1, and other masks as
  probabilities; a session takes those of all objects as 0 and 1 as soon as one is prompted;
- a correction starts from the mask that was tracked on its frame, as the network was trained and as
  Meta's predictor does, and its frame is remembered as one with a prompt; a session does neither;
- clicks of a frame are given one after another, each with the mask of the round before, and a later
  one only where that mask is wrong: in training every later click was a correction.

Shapes: K objects, P points, h x w cells of low-resolution logits, L tokens of M channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from masking.sam2.memory import FrameMemory, ObjectMemory, VideoMemory, closest
from masking.sam2.network import Decoded, Features, VideoNetwork, with_box
from masking.sam2.parts import in_parts

_STEEPEST = (
    32.0  # largest logit of a mask that is given back to the network, as in Meta's predictor
)


@dataclass(frozen=True)
class ObjectPrompt:
    """A person's prompt for one object on a frame, in pixels of the canvas."""

    points: Tensor
    """(P, 2) float32 (x, y)."""
    labels: Tensor
    """(P,) int64: 1 on the object, 0 beside it."""
    box: Tensor
    """(4,) float32 x1, y1, x2, y2; NaN: no box."""
    corrects: bool = False
    """Whether the prompt corrects the mask that is tracked on the frame, where there is one."""
    mask: Tensor | None = None
    """(side, side) float32 on the canvas, 1 on the object: its mask on this frame. Points and box
    are not given to the network then. None: the prompt has no mask."""


def advance(
    network: VideoNetwork,
    memory: VideoMemory,
    features: Features,
    frame: int,
    tracked: Sequence[int],
    prompts: Mapping[int, ObjectPrompt],
) -> tuple[VideoMemory, dict[int, int], Decoded | None]:
    """Segment the objects of the next frame, and remember them.

    Args:
        network: the network that made the features.
        memory: what is remembered; `VideoMemory.nothing` before the first frame.
        features: of this one frame.
        frame: index of the frame in its video.
        tracked: objects to segment from memory, if anything is remembered of them; not those with
            a prompt.
        prompts: what a person says on this frame, by object.

    Returns:
        The memory after this frame; the row of each object that was segmented; and their masks,
        None if there are none. The arguments are not changed.
    """
    known = [row for row in tracked if memory.objects[row].prompted and row not in prompts]
    corrected = [
        row
        for row, one in prompts.items()
        if one.corrects and one.mask is None and memory.objects[row].prompted
    ]
    maps = recalled(network, memory, features, frame, [*known, *corrected])
    parts: list[Decoded] = []
    if known or corrected:
        parts.append(_followed(network, maps, features))
    for row, prompt in prompts.items():
        if row in corrected:
            place = len(known) + corrected.index(row)
            start = parts[0].logits[place]
            parts.append(ask(network, maps[place : place + 1], features, prompt, start))
        elif prompt.mask is not None:
            parts.append(network.shown(features, prompt.mask))
        else:
            parts.append(ask(network, network.unremembered(features, 1), features, prompt))
    if not parts:
        return memory, {}, None
    rows = [*known, *prompts]
    # Of a corrected object the mask that it starts from is left out.
    places = [*range(len(known)), *range(len(known) + len(corrected), len(rows) + len(corrected))]
    found = Decoded.joined(parts)[places]
    tokens = _tokens(network, features, rows, found, prompts)
    return (
        _remembering(network, memory, frame, rows, found, tokens, prompts),
        {row: place for place, row in enumerate(rows)},
        found,
    )


def _tokens(
    network: VideoNetwork,
    features: Features,
    rows: Sequence[int],
    found: Decoded,
    prompts: Mapping[int, ObjectPrompt],
) -> Tensor:
    """Return the tokens (K, L, M) by which the masks of a frame are remembered."""
    hard = torch.tensor([row in prompts for row in rows], device=found.logits.device)
    masks = {place: prompts[row].mask for place, row in enumerate(rows) if row in prompts}

    def call(some: slice) -> Tensor:
        places = range(some.start, some.stop)
        shown = {i: mask for i, at in enumerate(places) if (mask := masks.get(at)) is not None}
        return network.remember(features, found[places], hard[some], shown)

    return torch.cat(in_parts(network, len(rows), call))


def _followed(network: VideoNetwork, maps: Tensor, features: Features) -> Decoded:
    """Segment objects that are remembered, without a prompt."""
    points = maps.new_zeros(len(maps), 0, 2)
    labels = torch.zeros(len(maps), 0, dtype=torch.int64, device=maps.device)
    several = takes_best(network, is_first=False, points=0)
    parts = in_parts(
        network,
        len(maps),
        lambda some: network.segment(
            maps[some], features, points[some], labels[some], None, several
        ),
    )
    return Decoded.joined(parts)


def takes_best(network: VideoNetwork, is_first: bool, points: int) -> bool:
    """Return whether the best of three masks is taken, as for an ambiguous prompt.

    Args:
        network: the network, whose configuration says when.
        is_first: whether nothing is remembered of the object.
        points: number of points, of which a box has two.
    """
    config = network.config
    return bool(
        config.multimask_output_in_sam
        and (is_first or config.multimask_output_for_tracking)
        and config.multimask_min_pt_num <= points <= config.multimask_max_pt_num
    )


def ask(
    network: VideoNetwork,
    maps: Tensor,
    features: Features,
    prompt: ObjectPrompt,
    start: Tensor | None = None,
    is_first: bool | None = None,
    check: Callable[[], None] = lambda: None,
) -> Decoded:
    """Segment one object by a prompt, in rounds.

    Args:
        network: the network.
        maps: (1, C, h, w) from `recalled` or `VideoNetwork.unremembered`.
        features: the frame.
        prompt: the prompt.
        start: (h, w) logits that it corrects; None: it corrects none.
        is_first: whether nothing is remembered of the object; None: if nothing is corrected.
        check: called before each round, which does not begin if it raises.
    """
    is_first = start is None if is_first is None else is_first
    given, mask = opening(network, prompt, start), start
    while True:
        check()
        points, labels = with_box(prompt.points[given], prompt.labels[given], prompt.box)
        several = takes_best(network, is_first, len(points))
        steep = None if mask is None else mask.clamp(-_STEEPEST, _STEEPEST)
        found = network.segment(maps, features, points[None], labels[None], steep, several)
        mask = found.logits[0]
        wrong = [i for i in disobeyed(network, prompt, mask) if i not in given]
        if not wrong:
            return found
        given = [*given, wrong[0]]


def opening(network: VideoNetwork, prompt: ObjectPrompt, start: Tensor | None) -> list[int]:
    """Return the points of a prompt that are given first, with its box if there is one: the first
    that the mask to correct does not obey, or the first on the object."""
    if start is not None:
        return [*disobeyed(network, prompt, start), *range(len(prompt.labels))][:1]
    has_box = not bool(prompt.box.isnan().any())
    positive = (prompt.labels == 1).nonzero()[:, 0].tolist()
    return [] if has_box else positive[:1]


def disobeyed(network: VideoNetwork, prompt: ObjectPrompt, logits: Tensor) -> list[int]:
    """Return the points of a prompt that a mask (h, w) does not obey."""
    h, w = logits.shape
    scale = torch.tensor([w, h], device=logits.device) / network.side
    cells = ((prompt.points + 0.5) * scale).long()
    cells = torch.minimum(cells.clamp(min=0), torch.tensor([w - 1, h - 1], device=logits.device))
    inside = logits[cells[:, 1], cells[:, 0]] > 0
    wrong: list[int] = (inside != (prompt.labels == 1)).nonzero()[:, 0].tolist()
    return wrong


def recalled(
    network: VideoNetwork,
    memory: VideoMemory,
    features: Features,
    frame: int,
    rows: Sequence[int],
) -> Tensor:
    """Return the maps (K, C, h, w) to decode of objects that are remembered.

    Objects of which equally much is remembered go through the network together: all of them, once
    all have been tracked for some frames.
    """
    recalls = [_recall(network, memory.objects[row], frame, memory.backward) for row in rows]
    groups: dict[tuple[int, int], list[int]] = {}
    for place, one in enumerate(recalls):
        groups.setdefault((len(one.tokens), one.pointers), []).append(place)
    maps = dict[int, Tensor]()
    for (_, pointers), places in groups.items():
        tokens = torch.stack([recalls[place].tokens for place in places], dim=1)
        where = torch.stack([recalls[place].places for place in places], dim=1)
        call = partial(_attended, network, features, tokens, where, pointers)
        parts = in_parts(network, len(places), call)
        found = torch.cat(parts)
        maps |= dict(zip(places, found, strict=True))
    return torch.stack([maps[place] for place in range(len(rows))]) if rows else features[-1][:0]


def _attended(
    network: VideoNetwork,
    features: Features,
    tokens: Tensor,
    places: Tensor,
    pointers: int,
    some: slice,
) -> Tensor:
    """Return what `VideoNetwork.attend` does for some of the objects."""
    return network.attend(features, tokens[:, some], places[:, some], pointers)


@dataclass(frozen=True)
class _Recall:
    """What the network attends to for one object on one frame."""

    tokens: Tensor
    """(L, M) float32 of remembered frames, and at last those of pointers."""
    places: Tensor
    """(L, M) float32 that say where and when each was seen."""
    pointers: int
    """Number of tokens of pointers."""


def _recall(network: VideoNetwork, memory: ObjectMemory, frame: int, backward: bool) -> _Recall:
    """Return what the network attends to for one object."""
    config, step = network.config, -1 if backward else 1
    attended = closest(frame, memory.prompted, config.max_cond_frame_num)
    frames = [(0, one) for one in attended.values()]
    others = {i: one for i, one in memory.prompted.items() if i not in attended}
    others |= memory.recent
    for ago in range(config.num_maskmem - 1, 0, -1):
        one = others.get(frame - step * ago)
        if one is not None and one.tokens is not None:
            frames.append((ago, one))
    pointers = {
        (frame - index) * step: one.pointer
        for index, one in memory.prompted.items()
        if (frame - index) * step >= 0
    }
    for ago in range(1, config.max_object_pointers_in_encoder):
        if (one := memory.recent.get(frame - step * ago)) is not None:
            pointers[ago] = one.pointer
    tokens = torch.cat([one.tokens.float() for _, one in frames if one.tokens is not None])
    places = network.places() + network.times([ago for ago, _ in frames])
    of_pointers, when = _pointer_tokens(network, pointers)
    return _Recall(
        torch.cat([tokens, of_pointers]),
        torch.cat([places.flatten(0, 1), when]),
        len(of_pointers),
    )


def _pointer_tokens(network: VideoNetwork, pointers: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the tokens (L, M) of pointers by how many frames ago they were made, and what tells
    the network when that was."""
    width = network.model.mem_dim
    if not pointers:
        none = network.places()[:0]
        return none, none
    tokens = torch.stack([*pointers.values()])
    splits = tokens.shape[1] // width
    when = network.pointer_times([*pointers]).repeat_interleave(splits, dim=0)
    return tokens.reshape(-1, width), when


def _remembering(
    network: VideoNetwork,
    memory: VideoMemory,
    frame: int,
    rows: Sequence[int],
    found: Decoded,
    tokens: Tensor,
    prompts: Mapping[int, ObjectPrompt],
) -> VideoMemory:
    """Return the memory with the masks of a frame."""
    objects, config = list(memory.objects), network.config
    for place, row in enumerate(rows):
        # Copies: a view would keep the memory of all objects.
        one = FrameMemory(found.pointers[place].clone(), tokens[place].clone())
        if row in prompts:
            objects[row] = objects[row].with_prompt(frame, one)
        else:
            objects[row] = objects[row].with_frame(
                frame, one, config.num_maskmem - 1, config.max_object_pointers_in_encoder - 1
            )
    return VideoMemory(tuple(objects), memory.backward)
