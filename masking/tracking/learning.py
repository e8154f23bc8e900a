"""What the tracker learns from the segmenter's answers on a frame: tracks, states and memory.

A track learns from a mask only if that passes the gate, `is_trusted`. An object that is lost has an
empty mask, and is searched for until it is found on two consecutive frames. What is told of a mask,
its state, score and quality, follows from how far it can be trusted (`masking.tracking.trust`).
Shapes: K objects, h x w pixels of low-resolution logits, M cells of a key map.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from masking.images.geometry import iou
from masking.manifest.prompt import FramePrompt
from masking.segmenter.matching import SURE
from masking.segmenter.prompts import on_device
from masking.tracking.expectation import Expectation
from masking.tracking.memory import Memory, Remembered, cell_shares
from masking.tracking.prompting import Prompter
from masking.tracking.query import Answer, Query
from masking.tracking.state import (
    NOTHING,
    VISIBLE,
    Scene,
    State,
    Track,
    TrackConfig,
    TrackedMasks,
    Tracker,
)
from masking.tracking.trust import (
    TRACKED,
    Evidence,
    calibration_of,
    evidence_of_prompted,
    evidence_of_tracked,
)

_PREDICTED = 0.6  # least IoU that a part trained on clips predicts for a trusted mask
_KEEPS = 0.9  # share of the running means that stays from one trusted mask to the next
_OTHER = 0.5  # IoU with the expected mask below which a prompted mask shows something else
_DOUBTED = 0.5  # probability that a correction is right below which it is not learnt from
_SEEN = ("prompted", "tracked", "recovered")  # states of a mask that may be learnt from
_GONE = 0.3  # probability that a mask is right below which an empty one is more often right
_LONG = 100  # frames without a trusted mask after which an object may have any size
_SAME_PLACE = 0.3  # IoU of two sightings of a lost object from which they show the same thing


def is_trusted(config: TrackConfig, track: Track, answer: Answer) -> bool:
    """Return whether the mask of an answer passes the gate for a tracked object."""
    least = _PREDICTED if answer.by_memory else 0.0
    return (
        answer.predicted >= max(least, config.predicted * track.usual[0])
        and answer.agreement >= config.agreement * track.usual[1]
        and _has_grown_little(config, track, answer)
    )


def _has_grown_little(config: TrackConfig, track: Track, answer: Answer) -> bool:
    grown = max(answer.area, 1.0) / max(track.area, 1.0)
    most = config.growth ** (1 + min(track.misses, _LONG) / config.patience)
    return 1 / most <= grown <= most


@dataclass(frozen=True)
class Outcome:
    """The result of a step for one object."""

    track: Track
    """The track after the frame."""
    logits: Tensor
    """(h, w) float32 of the mask on this frame; all `NOTHING` for an empty one."""
    score: float = 0.0
    """Expected IoU with the truth; 0 for an empty mask."""
    quality: float = 0.0
    """Probability that the mask is right."""
    evidence: Evidence | None = None
    """What is known of the mask; None: none was computed."""
    denied: Tensor | None = None
    """(h, w) bool: where a person said that the object is not; None: nowhere."""


class Learning:
    """Learns from the answers on one frame."""

    def __init__(
        self,
        prompter: Prompter,
        config: TrackConfig,
        tracker: Tracker,
        scene: Scene,
        expectation: Expectation,
    ) -> None:
        """Take the tracker of the frame before, the frame, and what was expected on it."""
        self.prompter, self.config, self.tracker, self.scene = prompter, config, tracker, scene
        self.expectation = expectation
        self.calibration = calibration_of(prompter.segmenter.metadata)

    def outcome(self, row: int, query: Query | None, answer: Answer | None) -> Outcome:
        """Return the outcome for an object; without a query, no answer was wanted."""
        track, prompt = self.expectation.tracks[row], self.expectation.prompts.get(row)
        if prompt is not None and prompt.role == "end":
            return self._empty(Track())
        if prompt is not None and prompt.role == "absent":
            return self._empty(replace(track, state="absent"))
        if track.state in (None, "absent") and query is None:
            return self._empty(track)
        if query is None or answer is None:
            return self._empty(self._missed(track, None))
        if query.prompt is not None and not answer.area:
            return replace(self._empty(self._missed(track, None)), denied=answer.denied)
        if query.prompt is not None:
            return self._started(track, query.prompt, answer)
        if track.state == "lost":
            return self._sighted(track, query, answer)
        if answer.area and is_trusted(self.config, track, answer):
            return self._followed(track, "tracked", query, answer)
        missed = self._missed(track, answer)
        if missed.state == "lost":
            return self._empty(missed)
        judged = self._judged(missed, query, answer)
        return judged if judged.quality >= _GONE else self._empty(missed)

    def _empty(self, track: Track) -> Outcome:
        """Return an outcome with an empty mask."""
        is_gone = track.state in ("lost", "uncertain")
        quality = self.calibration.gone if is_gone else 0.0
        nothing = torch.full(self.prompter.low_res, NOTHING)
        return Outcome(track, nothing, quality=quality)

    def _judged(self, track: Track, query: Query, answer: Answer) -> Outcome:
        """Return an outcome with the mask of an answer, and how far that can be trusted."""
        evidence = evidence_of_tracked(answer.logits, answer.predicted, query.known)
        belief = self.calibration.tracked(evidence)
        return Outcome(track, answer.logits, belief.iou, belief.right, evidence)

    def _started(self, track: Track, prompt: FramePrompt, answer: Answer) -> Outcome:
        """Start or restart a track from the mask of a person's prompt."""
        usual = (answer.predicted, *track.usual[1:])
        started = Outcome(Track("prompted", answer.area, usual=usual), answer.logits, 1.0, 1.0)
        if prompt.mask is not None:
            return started
        if answer.is_judged:
            started = replace(started, score=answer.predicted, quality=answer.agreement)
        else:
            clicks = len(prompt.points) + 2 * (prompt.box is not None)
            evidence = evidence_of_prompted(answer.logits, answer.predicted, clicks)
            belief, kept = self.calibration.prompted(evidence), answer.agreement
            score, quality = belief.iou * kept, belief.right * kept
            started = replace(started, score=score, quality=quality, evidence=evidence)
        if track.state in VISIBLE and started.quality < _DOUBTED:
            # The mask is too doubtful to learn from, so the track continues as it was.
            missed = replace(track, state="prompted", misses=track.misses + 1)
            return replace(started, track=missed)
        return started

    def _followed(self, track: Track, state: State, query: Query, answer: Answer) -> Outcome:
        """Learn from a trusted mask."""
        followed = replace(
            track,
            state=state,
            area=answer.area,
            usual=_running_means(track, answer),
            misses=0,
            sighting=None,
        )
        return self._judged(followed, query, answer)

    def _missed(self, track: Track, answer: Answer | None) -> Track:
        """Count a frame without a trusted mask; after too many, the object is lost."""
        misses = track.misses + 1
        if track.state == "lost":
            return replace(track, misses=misses, sighting=None)
        if answer is None or misses > self.config.patience:
            return replace(track, state="lost", misses=misses, sighting=None)
        return replace(track, state="uncertain", misses=misses)

    def _sighted(self, track: Track, query: Query, answer: Answer) -> Outcome:
        """Recover a lost object that is seen on two consecutive frames, in much the same place,
        and may well be the object: most of what is seen while it is gone shows something else."""
        config, mask = self.config, answer.logits > 0
        if (
            answer.predicted < config.predicted * track.usual[0]
            or answer.similarity < config.similarity * track.usual[2]
            or not _has_grown_little(config, track, answer)
        ):
            return self._empty(self._missed(track, None))
        recovered = self._followed(track, "recovered", query, answer)
        before = track.sighting
        if (
            before is None
            or float(iou(mask, before > 0)) < _SAME_PLACE
            or recovered.quality < _GONE
        ):
            return self._empty(replace(self._missed(track, None), sighting=answer.logits))
        return recovered

    def remember(self, outcomes: Sequence[Outcome]) -> tuple[Tracker, TrackedMasks]:
        """Return the tracker after the frame, and the masks on it."""
        tracks = tuple(outcome.track for outcome in outcomes)
        logits = torch.stack([outcome.logits for outcome in outcomes])
        memory = self._updated(self.tracker.memory or Memory(self.scene.grid), outcomes, logits)
        masks = TrackedMasks(
            tuple(_state(outcome) for outcome in outcomes),
            logits,
            tuple(outcome.score for outcome in outcomes),
            tuple(outcome.quality for outcome in outcomes),
            tuple(outcome.evidence for outcome in outcomes),
        )
        return Tracker(tracks, memory), masks

    def _updated(self, memory: Memory, outcomes: Sequence[Outcome], logits: Tensor) -> Memory:
        """Add the frame to the memory. A prompted mask that is doubtful counts the less: what a
        person said of one pixel of a hard frame would else hide what is known from others."""
        tracks = [outcome.track for outcome in outcomes]
        keys = self.scene.keys.flatten(0, 1)
        known = torch.tensor([float(t.state not in (None, "lost")) for t in tracks])
        prompted = tuple(t.state == "prompted" for t in tracks)
        trusted = tuple(not t.misses and t.state in _SEEN for t in tracks)
        shares = on_device(self._shares(tracks, logits), keys.device)
        frame = Remembered(keys, shares, on_device(known, keys.device), trusted)
        if any(prompted):
            sure = [min(1.0, one.quality / TRACKED) for one in outcomes]
            only = on_device(torch.tensor(sure) * torch.tensor(prompted), keys.device)
            memory = memory.keep(replace(frame, known=only, trusted=prompted))
        for row, (old, new) in enumerate(zip(self.tracker.tracks, tracks, strict=True)):
            if new.state == "lost" and old.state != "lost":
                memory = memory.lose(row)
            elif trusted[row] and prompted[row] and self._shows_something_else(row, logits[row]):
                memory = memory.forget(row)
        for row, outcome in enumerate(outcomes):
            if outcome.denied is not None:
                memory = memory.keep(self._denial(row, outcome.denied, frame))
        if any(t.state not in (None, "lost") for t in tracks):
            memory = memory.add(frame, self.config.recent)
        return memory

    def _denial(self, row: int, denied: Tensor, frame: Remembered) -> Remembered:
        """Return the part of a frame that a person said is not the object: of the rest nothing is
        known, and so it has no keys that another frame could resemble."""
        device = frame.keys.device
        cells = on_device(cell_shares(SURE * (2.0 * denied[None] - 1), self.scene.grid), device)
        only = torch.arange(len(frame.known), device=device) == row
        keys = frame.keys * (cells[0] > 0.5)[:, None]
        return Remembered(keys, torch.zeros_like(frame.shares), only.float(), tuple(only.tolist()))

    def _shares(self, tracks: Sequence[Track], logits: Tensor) -> Tensor:
        """Return the shares (K, M) to remember: the expected ones for objects without a trusted
        mask."""
        shares, near = cell_shares(logits, self.scene.grid), self.expectation.near
        if near is None:
            return shares
        doubtful = torch.tensor([bool(t.misses) for t in tracks])
        expected = F.adaptive_avg_pool2d(near[:, None], self.scene.grid)[:, 0].flatten(1)
        return torch.where(doubtful[:, None], expected, shares)

    def _shows_something_else(self, row: int, logits: Tensor) -> bool:
        """Return whether a prompted mask shows something else than the object tracked so far."""
        near = self.expectation.near
        return near is not None and float(iou(logits > 0, near[row] > 0.5)) < _OTHER


def _state(outcome: Outcome) -> State | None:
    """Return the state to tell of an object: a mask that is hardly trusted is uncertain, even if
    the tracker learns from it, and an object without a mask is lost, even if the tracker still
    looks for it where it was."""
    state = outcome.track.state
    if state == "uncertain" and outcome.evidence is None:
        return "lost"
    if state not in ("tracked", "uncertain"):
        return state
    return "tracked" if outcome.quality >= TRACKED else "uncertain"


def _running_means(track: Track, answer: Answer) -> tuple[float, float, float]:
    """Return the usual figures of an object after a trusted mask."""
    now = (answer.predicted, answer.agreement, answer.similarity)
    first, second, third = (
        _KEEPS * usual + (1 - _KEEPS) * new for usual, new in zip(track.usual, now, strict=True)
    )
    return first, second, third
