"""Clicks through a video: `mask_video`, frame by frame, forward and backward.

    for frame in mask_video("clip.mp4", [{"object_id": 1, "frame": 0, "x": 320, "y": 200}]):
        frame.masks, frame.states, frame.scores

Frames before an object's first prompt, and between two prompts, are gone through backward first;
what was found there waits as run lengths. Then the video is streamed forward, once. Between prompts
both ways are merged: where they agree the better one is taken, else that of the nearer prompt.
"""

import hashlib
import io
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from masking.images.arrays import Bools, Pixels
from masking.images.geometry import iou
from masking.images.masks import decode_rle, encode_rle
from masking.manifest import rows as prompt_rows
from masking.manifest.asked import Asked
from masking.manifest.rows import ObjectPlan
from masking.segmenter.sam import Precision, Segmenter, load
from masking.tracking import snapshot, step
from masking.tracking import state as track
from masking.tracking.ahead import scenes
from masking.tracking.state import VISIBLE, State, TrackConfig, Tracker
from masking.tracking.ways import Ways
from masking.video.reader import Frame, Report, Video

Direction = Literal["prompt", "forward", "backward", "both"]

AGREED = 0.8
"""IoU from which the forward and the backward mask are the same."""
SHIPPED = Path(__file__).parents[1] / "weights" / "mini.safetensors"


@dataclass(frozen=True)
class Mask:
    """One object on one frame."""

    state: State
    mask: Bools
    """(H, W)."""
    score: float
    """IoU that the segmenter predicts; 0 of an empty mask."""
    quality: float
    """Agreement with the mask that motion and memory expected, 0 to 1."""
    direction: Direction
    """Where the mask came from."""


@dataclass(frozen=True)
class FrameMasks:
    """What was found on a frame."""

    index: int
    """From 0, in presentation order."""
    time_s: float | None
    """Seconds since the first frame; None: unknown."""
    image: Pixels
    """(H, W, 3) uint8 RGB."""
    objects: tuple[int, ...]
    """Their ids, in the order of everything below."""
    found: tuple[Mask | None, ...]
    """Of each object; None: nothing is asked of it on this frame, or no prompt reaches it."""
    logits: NDArray[np.float32]
    """(K, H, W) of each object's mask, for `label_map`."""

    @property
    def masks(self) -> Bools:
        """(K, H, W), empty where an object is not to be seen or not asked for; they may overlap."""
        empty = np.zeros(self.image.shape[:2], dtype=np.bool_)
        return np.stack([empty if one is None else one.mask for one in self.found])

    @property
    def states(self) -> tuple[State | None, ...]:
        """Of each object; None: it is not asked for."""
        return tuple(None if one is None else one.state for one in self.found)

    @property
    def scores(self) -> tuple[float, ...]:
        """Predicted IoU of each mask."""
        return tuple(0.0 if one is None else one.score for one in self.found)

    def label_map(self) -> NDArray[np.uint16]:
        """(H, W): the id of the object at each pixel, 0 for none; of several the surest one's."""
        masks = self.masks
        ids = np.array(self.objects, np.uint16)[
            np.where(masks, self.logits, -np.inf).argmax(axis=0)
        ]
        return np.where(masks.any(axis=0), ids, 0).astype(np.uint16)


@dataclass(frozen=True)
class _Kept:
    """A mask of the backward pass, as it waits for the forward pass."""

    state: State
    counts: bytes
    size: tuple[int, int]
    score: float
    quality: float


@dataclass(frozen=True)
class MaskingState:
    """All that is needed to go on with a video after a frame; a value."""

    made_of: str
    """A hash of the prompts, the frames' size and the segmenter's kind."""
    next_frame: int
    """The frame to go on with."""
    tracker: Tracker
    """Of the forward pass."""
    backward: Mapping[int, tuple[_Kept | None, ...]]
    """What the backward pass found on frames to come."""

    def save(self, path: str | Path) -> None:
        """Write it to a file of plain tensors and numbers, which runs no code when it is read."""
        torch.save(snapshot.plain(self), path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read it.

        Raises:
            OSError: it cannot be read.
            ValueError: it holds something else, or the state of another version.
        """
        content = Path(path).read_bytes()
        try:
            found = snapshot.restored(torch.load(io.BytesIO(content), weights_only=True), _CLASSES)
        except Exception as error:  # torch.load and pickle raise all kinds
            raise ValueError(f"{path}: not the state of a masked video") from error
        if not isinstance(found, cls):
            raise ValueError(f"{path}: not the state of a masked video")
        return found


_CLASSES = (MaskingState, _Kept, *snapshot.OF_TRACKING)


class Masking:
    """A video that is being masked: an iterator over its frames."""

    def __init__(
        self,
        video: Video,
        segmenter: Segmenter,
        plans: Sequence[ObjectPlan],
        size: tuple[int, int],
        config: TrackConfig,
        state: MaskingState | None = None,
    ) -> None:
        """Use `mask_video`, or this for prompts that are resolved already.

        Args:
            video: is closed at the end.
            segmenter: on its device.
            plans: of `rows.resolve`.
            size: (H, W) of the first frame, which the prompts are in pixels of. Frames of another
                size, as some videos have, are scaled to it; their masks have their own.
            config: how objects are followed.
            state: of the same video and prompts, to go on from.

        Raises:
            ValueError: `state` is of other prompts, frames or another kind of segmenter.
        """
        # What runs is held by the generator of frames, and that by this alone: so a run that is
        # left half-way frees its threads at once, without waiting for the garbage collector.
        self._pass = _Pass(video, segmenter, plans, size, config, state)
        self._frames = self._pass.run()
        self.objects = self._pass.objects

    @property
    def report(self) -> Report:
        """What went wrong in reading the video, so far."""
        return self._pass.video.report

    @property
    def state(self) -> MaskingState:
        """After the frame that came last."""
        reached = self._pass.reached
        if reached is None:
            raise ValueError("no frame has been masked yet: there is no state to go on from")
        return replace(reached, backward=dict(reached.backward))

    def __iter__(self) -> Iterator[FrameMasks]:
        """Itself."""
        return self

    def __enter__(self) -> Self:
        """Itself; closed at the end."""
        return self

    def __exit__(self, *error: object) -> None:
        """As `close`."""
        self.close()

    def __next__(self) -> FrameMasks:
        """The next frame."""
        return next(self._frames)

    def close(self) -> None:
        """Stop, and free the decoder; what was found so far stays valid."""
        self._frames.close()
        self._pass.video.close()


class _Pass:
    """Both passes over a video; arguments as of `Masking`."""

    def __init__(
        self,
        video: Video,
        segmenter: Segmenter,
        plans: Sequence[ObjectPlan],
        size: tuple[int, int],
        config: TrackConfig,
        begun: MaskingState | None,
    ) -> None:
        self.video, self.segmenter, self.size, self.config = video, segmenter, size, config
        self.ways = [Ways(plan) for plan in plans]
        self.objects = tuple(plan.object_id for plan in plans)
        self.made_of = _hash(segmenter, plans, size)
        if begun is not None and begun.made_of != self.made_of:
            raise ValueError(
                "the state to go on from was made with other prompts, frames of another size or"
                " another segmenter; give those it was made with, or start without a state"
            )
        self.begun = self.reached = begun

    def run(self) -> Generator[FrameMasks]:
        begun = self.begun
        try:
            if begun is None:
                tracker, kept, start = track.begin(len(self.objects)), self._backward(), 0
            else:
                memory = snapshot.moved(begun.tracker.memory, self.segmenter.device)
                tracker = replace(begun.tracker, memory=memory)
                kept, start = dict(begun.backward), begun.next_frame

            ways = self.ways

            def wanted(index: int) -> bool:
                return any(
                    way.forward(index) or index in way.plan.asked or way.ends(index) for way in ways
                )

            frames = self.video.forward(start)
            for frame, scene in scenes(self.segmenter, frames, self.size, wanted):
                found: list[Mask | None] = [None] * len(self.objects)
                logits = np.full((len(self.objects), *frame.image.shape[:2]), track.NOTHING, "f4")
                if scene is not None:
                    tracker, answer = step.advance(
                        self.segmenter, self.config, tracker, scene, self._asked(frame.index)
                    )
                    logits = self._full(answer, frame)
                    found = _forward_masks(answer, logits)
                found, logits = self._merged(frame, found, logits, kept.pop(frame.index, None))
                self.reached = MaskingState(self.made_of, frame.index + 1, tracker, kept)
                yield FrameMasks(
                    frame.index, frame.time_s, frame.image, self.objects, tuple(found), logits
                )
        finally:
            self.video.close()

    def _asked(self, index: int) -> dict[int, Asked]:
        asked = {}
        for row, ways in enumerate(self.ways):
            here = ways.plan.asked.get(index)
            if here is not None:
                asked[row] = here
            elif ways.ends(index):
                asked[row] = Asked(role="end")
        return asked

    def _backward(self) -> dict[int, tuple[_Kept | None, ...]]:
        """The backward pass, from the last prompt that something lies before."""
        needed = self.ways
        kept: dict[int, tuple[_Kept | None, ...]] = {}
        stretches = [stretch for ways in needed if (stretch := ways.stretch()) is not None]
        if not stretches:
            return kept
        first, last = min(s[0] for s in stretches), max(s[1] for s in stretches)
        tracker = track.begin(len(self.objects))
        frames = self.video.backward(last)

        def wanted(index: int) -> bool:
            return any(ways.backward(index) or ways.turns(index) for ways in needed)

        for frame, scene in scenes(self.segmenter, frames, self.size, wanted):
            if frame.index < first:
                break
            if scene is None:
                continue
            asked = {}
            for row, ways in enumerate(needed):
                if ways.turns(frame.index):
                    asked[row] = replace(ways.plan.asked[frame.index], role="init")
                elif not ways.backward(frame.index):
                    asked[row] = Asked(role="end")
            tracker, answer = step.advance(self.segmenter, self.config, tracker, scene, asked)
            logits, size = self._full(answer, frame), frame.image.shape[:2]
            kept[frame.index] = tuple(
                _Kept(one.state, encode_rle(one.mask), size, one.score, one.quality)
                if one is not None and ways.backward(frame.index)
                else None
                for one, ways in zip(_forward_masks(answer, logits), needed, strict=True)
            )
        return kept

    def _full(self, answer: track.Found, frame: Frame) -> NDArray[np.float32]:
        """Logits (K, H, W) at the size of a frame, which need not be the video's first one."""
        logits: NDArray[np.float32] = (
            self.segmenter.upsample(answer.logits.to(self.segmenter.device), self.size)
            .cpu()
            .numpy()
        )
        h, w = frame.image.shape[:2]
        if self.size == (h, w):
            return logits
        return np.stack([cv2.resize(one, (w, h)) for one in logits])

    def _merged(
        self,
        frame: Frame,
        found: list[Mask | None],
        logits: NDArray[np.float32],
        back: tuple[_Kept | None, ...] | None,
    ) -> tuple[list[Mask | None], NDArray[np.float32]]:
        """Both ways in one."""
        for row, (ways, forward) in enumerate(zip(self.ways, found, strict=True)):
            prompted = frame.index in ways.plan.asked
            if forward is not None and prompted:
                found[row] = replace(forward, direction="prompt")
            if not ways.asked_for(frame.index):
                found[row] = None
                continue
            if ways.absent(frame.index):
                found[row] = _absent(frame)
                continue
            stored = None if back is None or prompted else back[row]
            if stored is None:
                continue
            mask = decode_rle(stored.counts, stored.size)
            other = Mask(stored.state, mask, stored.score, stored.quality, "backward")
            found[row] = _better(forward, other, ways.nearer_backward(frame.index))
            if cast(Mask, found[row]).mask is mask:
                logits[row] = np.where(mask, _sureness(other.score), track.NOTHING)
        return found, logits


def _sureness(score: float) -> float:
    """Logit that stands for those of a mask that was kept as run lengths: of a higher score more,
    about as much as segmenters give the inside of such a mask."""
    share = min(max(score, 0.55), 0.995)
    return math.log(share / (1 - share))


def _hash(segmenter: Segmenter, plans: Sequence[ObjectPlan], size: tuple[int, int]) -> str:
    """Of all that a state hangs on, the video's pixels and the segmenter's weights left out."""
    content: list[Any] = [type(segmenter.network).__name__, segmenter.low_res(size), size]
    for plan in plans:
        content += [plan.object_id, plan.start, plan.end]
        for frame, asked in plan.asked.items():
            box = None if asked.box is None else asked.box.tolist()
            content += [frame, asked.role, asked.points.tolist(), asked.labels.tolist(), box]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _better(forward: Mask | None, backward: Mask, nearer_backward: bool) -> Mask:
    """Of two ways, the one to believe."""
    if forward is None:
        return backward
    visible = [one.state in VISIBLE for one in (forward, backward)]
    if visible[0] != visible[1]:
        return forward if visible[0] else backward
    pair = torch.from_numpy(np.stack([forward.mask, backward.mask]))
    if float(iou(pair[0], pair[1])) >= AGREED or not any(visible):
        better = forward if forward.score >= backward.score else backward
        return replace(better, direction="both")
    nearer = backward if nearer_backward else forward
    return replace(nearer, state="uncertain")


def _absent(frame: Frame) -> Mask:
    return Mask("absent", np.zeros(frame.image.shape[:2], dtype=np.bool_), 0.0, 1.0, "prompt")


def _forward_masks(answer: track.Found, logits: NDArray[np.float32]) -> list[Mask | None]:
    return [
        None if state is None else Mask(state, logits[i] > 0, score, quality, "forward")
        for i, (state, score, quality) in enumerate(
            zip(answer.states, answer.scores, answer.quality, strict=True)
        )
    ]


def mask_video(
    path: str | Path,
    prompts: pd.DataFrame | Iterable[Mapping[str, Any]],
    weights: str | Path | Segmenter = "mini",
    *,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    config: TrackConfig | None = None,
    state: MaskingState | None = None,
) -> Masking:
    """Mask objects through a video.

    Args:
        path: a video file, or a folder of images.
        prompts: one row a point, in the columns of a manifest (`masking.manifest.rows.COLUMNS`)
            without `uri`: at least object_id, frame (or time_s), x, y; label is 1 by default.
        weights: "mini", a local file as `masking.segmenter.sam.load` takes, or a segmenter.
        device: where to compute; None: a GPU if there is one.
        precision: as of `masking.segmenter.sam.Segmenter`.
        config: how objects are followed; None: as `TrackConfig` says.
        state: of an earlier run over the same video and prompts; goes on with the frame after it.

    Returns:
        An iterator of `FrameMasks`, one a frame in presentation order; its `state` can be saved and
        gone on with, its `report` says what did not decode.

    Raises:
        ManifestError: prompts that cannot be meant so: object, frame and what was expected.
        VideoError: no video, or not one frame.
        CheckpointError: no such weights.
        ValueError: `state` is of other prompts, frames or another kind of segmenter.
    """
    rows = prompt_rows.read_rows(prompts)
    segmenter = weights if isinstance(weights, Segmenter) else _load(weights, device, precision)
    video = Video.open(path)
    try:
        plans, size = plan(video, rows)
        return Masking(video, segmenter, plans, size, config or TrackConfig(), state)
    except BaseException:
        video.close()
        raise


def plan(video: Video, rows: Sequence[prompt_rows.Row]) -> tuple[list[ObjectPlan], tuple[int, int]]:
    """Fit prompts to a video, looking at no more of it than that takes; its (H, W), too.

    Raises:
        ManifestError, VideoError: as `mask_video`.
    """
    first = next(video.forward())
    last = max((row.frame for row in rows if row.frame is not None), default=0)
    until = max((row.time_s for row in rows if row.frame is None and row.time_s), default=0.0)
    times: list[float | None] = []
    complete = True
    for time in video.times():
        times.append(time)
        if len(times) > last + 1 and (time is None or time > until):
            complete = False
            break
    size = first.image.shape[:2]
    return prompt_rows.resolve(rows, size, times, complete), size


def _load(
    weights: str | Path, device: str | torch.device | None, precision: Precision
) -> Segmenter:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    path = SHIPPED if weights == "mini" else Path(weights)
    return load(path, torch.device(device), precision)
