"""Accuracy of masks by the number of clicks: a person masks, corrects and masks again, on DAVIS.

    python -m benchmarks.effort --data vos --rounds 4 --weights mini --json FILE --plot FILE

A simulated person gives each object one click, at its deepest point on the first frame where it can
be seen. Then come rounds of one correction a video: the video is masked, the person clicks once, at
the deepest error of an object on a frame (`masking.images.geometry.deepest`), and the video is
masked again. The frame is chosen in one of two ways:

- `worst`: the frame with the lowest IoU of all objects and frames, which only the truth can tell;
- `review`: the first span of review.csv (`masking.outputs.rows.spans`) in whose frame something is
  wrong. The person accepts spans whose frame is right, and is not asked about them again.

J&F is that of DAVIS, without the first and the last frame of a sequence; the mean is over objects.
A click is obeyed if its pixel is in the object's mask, or outside of it for a click that takes
away; all clicks are checked after every round.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.masking.tracking import TUNED_ON, Clip, Once, score, sequences
from jobs.cluster.workers import keep_memory
from jobs.run.machine import hardware, versions
from jobs.run.plots import figure_png
from jobs.weights.segmenter import load_segmenter
from masking.images.arrays import Bools
from masking.images.geometry import deepest
from masking.outputs.review import spans
from masking.outputs.rows import SCHEMA, rows_of
from masking.tracking.masking import mask_video

WAYS = ("worst", "review")
GOOD = 0.5
"""IoU from which the mask of a frame counts as good in the table of states."""
SEEN = 3.0
"""Depth in pixels of the smallest error that a person who is sent to a frame corrects."""
Rows = list[dict[str, Any]]


@dataclass
class Masked:
    """A masked sequence."""

    masks: Bools
    """(K, T, H, W)."""
    ious: np.ndarray
    """(K, T) IoU with the truth; 1 where both are empty."""
    table: pa.Table
    """The mask file."""


@dataclass
class Person:
    """Clicks on a sequence, and what was said of its masks."""

    clip: Clip
    rows: Rows = field(default_factory=list)
    """Clicks so far, as rows of a manifest."""
    accepted: set[tuple[int, int]] = field(default_factory=set)
    """(object, frame) that were looked at and found right."""

    def begin(self) -> None:
        """Click each object once, on the first frame where it can be seen."""
        for number in self.clip.objects:
            visible = (self.clip.truth == number).any(axis=(1, 2))
            self._click(number, int(visible.argmax()), np.zeros_like(self.clip.truth[0], bool))

    def correct(self, masked: Masked, way: str) -> bool:
        """Click the worst error once; return whether there was one to click."""
        for number, frame in self._by_review(masked) if way == "review" else self._worst(masked):
            mask = masked.masks[self.clip.objects.index(number), frame]
            if self._click(number, frame, mask, SEEN if way == "review" else 0.0):
                return True
            self.accepted.add((number, frame))
        return False

    def _worst(self, masked: Masked) -> list[tuple[int, int]]:
        order = np.argsort(masked.ious, axis=None, kind="stable")
        places = zip(*np.unravel_index(order, masked.ious.shape), strict=True)
        return [(self.clip.objects[row], int(frame)) for row, frame in places]

    def _by_review(self, masked: Masked) -> list[tuple[int, int]]:
        named = [(s.object_id, s.click_frame) for s in spans(self.clip.name, masked.table)]
        return [place for place in named if place not in self.accepted]

    def _click(self, number: int, frame: int, mask: Bools, least: float = 0.0) -> bool:
        """Click the deepest error of an object's mask, if it is deep enough."""
        truth, ignore = self.clip.truth[frame] == number, self.clip.truth[frame] == 255
        found = deepest(truth, mask, ignore)
        if found is None or _depth(truth, mask, ignore, found) < least:
            return False
        x, y, label = found
        mine = [row for row in self.rows if row["object_id"] == number]
        roles = {row["frame"]: row["role"] for row in mine}
        role = roles.get(frame, "correct" if mine else "init")
        new = {"object_id": number, "frame": frame, "x": x, "y": y, "label": label, "role": role}
        self.rows.append(new)
        return True

    def obeyed(self, masked: Masked) -> list[bool]:
        """Return for each click whether its pixel is on the right side."""
        return [
            bool(masked.masks[self.clip.objects.index(r["object_id"]), r["frame"], r["y"], r["x"]])
            == (r["label"] == 1)
            for r in self.rows
        ]


def _depth(truth: Bools, mask: Bools, ignore: Bools, place: tuple[int, int, int]) -> float:
    """Return the distance in pixels from a place of an error to the nearest pixel that is right."""
    x, y, label = place
    wrong = (truth & ~mask if label else mask & ~truth) & ~ignore
    rows, columns = np.nonzero(~np.pad(wrong, 1))
    return float(np.hypot(rows - 1 - y, columns - 1 - x).min())


def run(segmenter: Once, person: Person) -> Masked:
    """Mask a sequence by the clicks so far."""
    masks, rows = [], Rows()
    for frame in mask_video(person.clip.folder, person.rows, segmenter):
        masks.append(frame.masks)
        rows += rows_of(frame)
    found = np.stack(masks, axis=1)
    table = pa.Table.from_pylist(rows, SCHEMA)
    truth = np.stack([person.clip.truth == number for number in person.clip.objects])
    both, either = (found & truth).sum(axis=(2, 3)), (found | truth).sum(axis=(2, 3))
    return Masked(found, np.where(either > 0, both / np.maximum(either, 1), 1.0), table)


def measure(person: Person, masked: Masked) -> dict[str, Any]:
    """Return the figures of a masked sequence after a round."""
    ious = {
        (number, frame): float(masked.ious[row, frame])
        for row, number in enumerate(person.clip.objects)
        for frame in range(masked.ious.shape[1])
    }
    states = Counter(
        f"{row['state']}, {'good' if ious[row['object_id'], row['frame']] > GOOD else 'bad'}"
        for row in masked.table.select(["object_id", "frame", "state"]).to_pylist()
    )
    obeyed = person.obeyed(masked)
    return {
        "j_and_f": score(person.clip, masked.masks),
        "clicks": len(obeyed),
        "obeyed": sum(obeyed),
        "states": dict(sorted(states.items())),
    }


def loop(
    segmenter: Once, clip: Clip, rounds: int, ways: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of a sequence after each round, by the way that frames are chosen."""
    segmenter.forget()
    first = Person(clip)
    first.begin()
    masked = run(segmenter, first)
    found = {}
    for way in ways:
        person, now = Person(clip, [*first.rows]), masked
        history = [measure(person, now)]
        for _ in range(rounds):
            if person.correct(now, way):
                now = run(segmenter, person)
                history.append(measure(person, now))
            else:
                history.append(history[-1])
        found[way] = history
    return found


def curves(found: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, list[dict[str, Any]]]:
    """Return the means over objects, and the sums, after each round."""
    result: dict[str, list[dict[str, Any]]] = {}
    for way in next(iter(found.values())):
        result[way] = []
        for rounds in zip(*(of[way] for of in found.values()), strict=True):
            clicks, obeyed = (sum(one[key] for one in rounds) for key in ("clicks", "obeyed"))
            states = sum((Counter(one["states"]) for one in rounds), Counter[str]())
            row: dict[str, Any] = {"clicks": clicks, "obeyed": obeyed, **shares(states)}
            for name, wanted in (
                ("j_and_f", list(found)),
                ("j_and_f, tuned on", [n for n in found if n in TUNED_ON]),
                ("j_and_f, others", [n for n in found if n not in TUNED_ON]),
            ):
                values = [
                    v
                    for n, r in zip(found, rounds, strict=True)
                    if n in wanted
                    for v in r["j_and_f"]
                ]
                row[name] = statistics.mean(values) if values else None
            result[way].append(row)
    return result


def shares(states: Counter[str]) -> dict[str, float]:
    """Return how true the states are, as shares of frames and objects."""

    def share(some: int, of: int) -> float:
        return some / of if of else 1.0

    def count(kind: str, *names: str) -> int:
        return sum(states[f"{name}, {kind}"] for name in names)

    doubt, everything = ("uncertain", "lost"), {key.split(",")[0] for key in states}
    tracked, right = sum(count(k, "tracked") for k in ("good", "bad")), count("good", "tracked")
    return {
        "tracked that are good": share(right, tracked),
        "bad that are flagged": share(count("bad", *doubt), count("bad", *everything)),
        "good that are flagged": share(count("good", *doubt), count("good", *everything)),
    }


def plot(result: dict[str, list[dict[str, Any]]], title: str) -> bytes:
    """Return a PNG of J&F by the number of clicks, a line for each way."""
    import matplotlib as mpl  # here, as only --plot needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    names = {"worst": "on the worst frame", "review": "where the review sends"}
    for way, rows in result.items():
        clicks, values = zip(*((row["clicks"], row["j_and_f"]) for row in rows), strict=True)
        axis.plot(clicks, values, marker="o", label=names[way])
    axis.set(xlabel="clicks on all videos", ylabel="J&F, mean over objects")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.suptitle(title)
    return figure_png(figure)


def report(result: dict[str, list[dict[str, Any]]]) -> None:
    """Print a table by way and round."""
    columns = [key for key in next(iter(result.values()))[0] if key not in ("clicks", "obeyed")]
    print(f"| frames by | round | clicks | obeyed | {' | '.join(columns)} |")
    print(f"| --- | --- {'| ---: ' * (len(columns) + 2)}|")
    for way, rows in result.items():
        for number, row in enumerate(rows):
            cells = ["" if row[key] is None else f"{row[key]:.3f}" for key in columns]
            obeyed = f"{row['obeyed'] / row['clicks']:.1%}"
            print(f"| {way} | {number} | {row['clicks']} | {obeyed} | {' | '.join(cells)} |")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write it and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder as DAVIS has it")
    parser.add_argument("--sequences", nargs="*", default=[], help="some of its sequences")
    parser.add_argument("--weights", default="mini")
    parser.add_argument("--rounds", type=int, default=4, help="corrections of each video (4)")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS, help="both, or one")
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--plot", type=Path, help="write the curve there, as a PNG")
    options = parser.parse_args(argv)
    keep_memory()
    segmenter = Once(load_segmenter(options.weights, torch.device("cpu")))
    found, started = {}, time.perf_counter()
    for clip in sequences(options.data, options.sequences):
        found[clip.name] = loop(segmenter, clip, options.rounds, options.ways)
        after = {
            way: " ".join(f"{statistics.mean(row['j_and_f']):.3f}" for row in rows)
            for way, rows in found[clip.name].items()
        }
        spent = time.perf_counter() - started
        print(f"{clip.name}: {after}, {spent:.0f} s", file=sys.stderr, flush=True)
    result = curves(found)
    report(result)
    facts = {"hardware": hardware(), "versions": versions()}
    if options.json:
        content = {"weights": options.weights, "curves": result, "sequences": found, **facts}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.plot:
        options.plot.write_bytes(plot(result, f"{options.weights}, {len(found)} sequences"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
