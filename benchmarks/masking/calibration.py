"""Fits how far masks can be trusted, and shows how true that is: `masking.tracking.trust`.

    python -m benchmarks.masking.calibration --data vos/ vos_train/ --sequences NAME... \\
        --made sam_val/ --json FILE --plot FILE --write masking/weights/mini.safetensors

Objects of DAVIS-like sequences and of made clips (`masking.training.clips`) are tracked from one
click or three on the first frame, and backward from one on the last. Every mask that is tracked
gives a row of evidence, and the truth says whether its IoU is above 0.5. All figures are
cross-validated: each sequence is judged by numbers that were fitted on the others, and all real
sequences count alike. Pixels of unknown objects (255) are left out.

The reliability diagram shows, for masks of about the same probability, the share that is right.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.masking.tracking import Once, clicks, sequences
from jobs.cluster.workers import keep_memory
from jobs.run.machine import hardware, versions
from jobs.run.plots import figure_png
from jobs.weights.segmenter import load_segmenter
from masking.images.arrays import Pixels
from masking.manifest.prompt import FramePrompt
from masking.tracking.state import Scene, TrackConfig, begin
from masking.tracking.step import advance
from masking.tracking.trust import EVIDENCE, PROMPTED, TRACKED, Calibration
from masking.training.clips import ClipConfig, clip
from masking.training.pair import NothingToLearnError
from masking.training.pairs import PairsConfig, survey
from masking.video.reader import Video

VOID, RIGHT = 255, 0.5
STARTS = ((0, 1), (0, 3), (-1, 1))
"""Frames from which a sequence is tracked, to its other end, and clicks on each object there."""
MADE = ClipConfig(frames=30, size=480, real=0.0, actors=1.0, alike=0.5, smallest=0.004)
LESS = 0.35
"""Weight of a made clip: they are harder than what people film."""
DOUBT, PENALTY = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 1.0
Table = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]


@dataclass
class Known:
    """A sequence whose masks are known."""

    name: str
    images: list[Pixels]
    truth: NDArray[np.uint8]
    """(T, H, W)."""


def known(
    folders: Sequence[Path], names: Sequence[str], made: Path | None, count: int
) -> Iterator[Known]:
    """Yield the sequences of folders and `count` made clips."""
    for folder in folders:
        for one in sequences(folder, names):
            with Video.open(one.folder) as video:
                yield Known(one.name, [frame.image for frame in video], one.truth)
    if made is None:
        return
    pairs = survey([made], PairsConfig())
    for index in range(count):
        try:
            found = clip(pairs, (), MADE, 7, 0, index)
        except NothingToLearnError:
            continue
        yield Known(f"made-{index}", list(found.images), found.labels)


def tracked(segmenter: Once, one: Known, start: int, count: int) -> list[dict[str, Any]]:
    """Track a sequence from its first or last frame; return a row for each mask with evidence."""
    order = list(range(len(one.images)))[:: -1 if start else 1]
    first = one.truth[order[0]]
    objects = [n for n in np.unique(first).tolist() if 0 < n < VOID]
    if not objects:
        return []
    prompts = {}
    for row, number in enumerate(objects):
        points = clicks(first == number, count)
        prompts[row] = FramePrompt(points, np.ones(len(points), np.int64))
    tracker, rows = begin(len(objects)), []
    for place, index in enumerate(order):
        image, truth = one.images[index], one.truth[index]
        embeddings = segmenter.encode(image[None])
        scene = Scene(embeddings, segmenter.keys(embeddings)[0])
        given = prompts if not place else {}
        tracker, found = advance(segmenter, TrackConfig(), tracker, scene, given)
        masks = (segmenter.upsample(found.logits, image.shape[:2]) > 0).numpy() & (truth != VOID)
        for row, number in enumerate(objects):
            right = truth == number
            either = np.count_nonzero(masks[row] | right)
            both = np.count_nonzero(masks[row] & right)
            rows.append(
                {
                    "sequence": one.name,
                    "state": str(found.states[row]),
                    "iou": both / either if either else 1.0,
                    "evidence": found.evidence[row],
                }
            )
    return rows


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Return columns of rows; those without evidence have zeros."""
    nothing = np.zeros(len(EVIDENCE))
    found = [nothing if row["evidence"] is None else row["evidence"] for row in rows]
    return {
        **{name: np.array([row[name] for row in rows]) for name in ("sequence", "state", "iou")},
        "evidence": np.stack([np.resize(each, len(EVIDENCE)) for each in found]),
    }


def part(table: Table, *wanted: str) -> Table:
    """Return the rows of some states."""
    chosen = np.isin(table["state"], wanted)
    return {name: column[chosen] for name, column in table.items()}


def fitted(evidence: Floats, wanted: Floats, weight: Floats) -> Floats:
    """Return logistic weights (F + 1) of shares `wanted`, by Newton's method with a ridge."""
    mean, scale = evidence.mean(axis=0), evidence.std(axis=0) + 1e-6
    x = np.c_[(evidence - mean) / scale, np.ones(len(evidence))]
    found, ridge = np.zeros(x.shape[1]), PENALTY * np.diag([1.0] * evidence.shape[1] + [0.0])
    for _ in range(60):
        p = 1 / (1 + np.exp(-x @ found))
        slope = x.T @ (weight * (p - wanted)) + ridge @ found
        bend = x.T @ (x * (weight * p * (1 - p) + 1e-9)[:, None]) + ridge
        found -= np.linalg.solve(bend, slope)
    slopes = found[:-1] / scale
    return np.append(slopes, found[-1] - slopes @ mean)


def weights_of(sequence: NDArray[Any]) -> Floats:
    """Return weights by which all sequences count alike, made ones less; their mean is 1."""
    _, place, counts = np.unique(sequence, return_inverse=True, return_counts=True)
    weight = np.where(np.char.startswith(sequence, "made-"), LESS, 1.0) / counts[place]
    return np.asarray(weight * len(weight) / weight.sum())


def share(evidence: Floats, numbers: Floats) -> Floats:
    """Return the shares (N,) that logistic weights give."""
    return np.asarray(
        1 / (1 + np.exp(-np.clip(np.c_[evidence, np.ones(len(evidence))] @ numbers, -30, 30)))
    )


def crossed(table: Table, wanted: Floats, columns: Sequence[int]) -> Floats:
    """Return the shares (N,), each sequence by numbers that were fitted on the others."""
    found, evidence = np.zeros(len(wanted)), table["evidence"][:, list(columns)]
    weight = weights_of(table["sequence"])
    for name in np.unique(table["sequence"]):
        held = table["sequence"] == name
        numbers = fitted(evidence[~held], wanted[~held], weight[~held])
        found[held] = share(evidence[held], numbers)
    return found


def judged(table: Table, right: Floats, iou: Floats) -> dict[str, Any]:
    """Return the figures of cross-validated probabilities and expected IoUs."""
    good, weight = table["iou"] > RIGHT, weights_of(table["sequence"])
    p = np.clip(right, 1e-4, 1 - 1e-4)
    loss = -(weight * np.where(good, np.log(p), np.log(1 - p))).mean()
    edges = np.linspace(0, 1, 11)
    bins = np.clip(np.digitize(right, edges) - 1, 0, 9)
    return {
        "masks": len(good),
        "bad": int((~good).sum()),
        "log_loss": float(loss),
        "iou_error": float((weight * np.abs(iou - table["iou"])).mean()),
        "thresholds": {str(at): states(right >= at, good) for at in DOUBT},
        "states": states(np.isin(table["state"], ("tracked", "recovered")), good),
        "diagram": [
            {
                "expected": float(right[bins == n].mean()),
                "right": float(good[bins == n].mean()),
                "masks": int((bins == n).sum()),
            }
            for n in range(10)
            if (bins == n).any()
        ],
    }


def states(trusted: NDArray[np.bool_], good: NDArray[np.bool_]) -> dict[str, float]:
    """Return how true it is to call some masks tracked and the others uncertain."""
    return {
        "tracked that are right": float(good[trusted].mean()) if trusted.any() else 1.0,
        "wrong that are flagged": float((~trusted)[~good].mean()) if (~good).any() else 1.0,
        "right that are flagged": float((~trusted)[good].mean()),
    }


def without(table: Table) -> dict[str, float]:
    """Return how much the cross-validated log loss grows without each number of the evidence."""
    good, every = (table["iou"] > RIGHT).astype(float), range(len(EVIDENCE))
    iou = table["iou"]
    whole = judged(table, crossed(table, good, every), iou)["log_loss"]
    found = {}
    for left, name in enumerate(EVIDENCE):
        some = [n for n in every if n != left]
        found[name] = judged(table, crossed(table, good, some), iou)["log_loss"] - whole
    return found


def fit(table: Table) -> tuple[dict[str, Any], Calibration]:
    """Return the figures, and the numbers that are fitted to all rows."""
    tracked, prompted = part(table, "tracked", "uncertain"), part(table, "prompted")
    lost = part(table, "lost")["iou"] == 1.0
    good, every = (tracked["iou"] > RIGHT).astype(float), range(len(EVIDENCE))
    right = crossed(tracked, good, every)
    figures = judged(tracked, right, crossed(tracked, tracked["iou"], every))
    figures["worse_without"] = without(tracked)
    bad, hidden = int((tracked["iou"] <= RIGHT).sum()), int((~lost).sum())
    uncertain = right < TRACKED
    figures["with lost ones"] = {
        "wrong that are flagged": (int((uncertain & (good == 0)).sum()) + hidden)
        / max(bad + hidden, 1),
        "lost": len(lost),
        "lost that are there": hidden,
    }
    numbers = []
    for some, count in ((tracked, len(EVIDENCE)), (prompted, len(PROMPTED))):
        for wanted in ((some["iou"] > RIGHT).astype(float), some["iou"]):
            found = fitted(some["evidence"][:, :count], wanted, weights_of(some["sequence"]))
            numbers.append(tuple(round(x, 4) for x in found.tolist()))
    gone = round((int(lost.sum()) + 1) / (len(lost) + 2), 3)
    return figures, Calibration(*numbers, gone=gone)


def plot(diagram: Sequence[dict[str, float]], title: str) -> bytes:
    """Return a PNG of the reliability diagram."""
    import matplotlib as mpl  # here, as only --plot needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 5), layout="constrained")
    axis.plot([0, 1], [0, 1], color="grey", linewidth=1)
    expected, right = ([row[key] for row in diagram] for key in ("expected", "right"))
    axis.plot(expected, right, marker="o")
    for row in diagram:
        place = (row["expected"], row["right"])
        axis.annotate(f"{row['masks']:,}", place, (6, -12), textcoords="offset points", fontsize=8)
    axis.set(xlabel="probability that the mask is right", ylabel="share of masks that are right")
    axis.grid(alpha=0.3)
    figure.suptitle(title)
    return figure_png(figure)


def write(file: Path, calibration: Calibration) -> None:
    """Put the numbers into the metadata of weights."""
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = dict(opened.metadata() or {})
    save_file(tensors, file, {**metadata, "calibration": calibration.text()})


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures; write them, the picture and the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, nargs="*", default=[], help="folders as DAVIS has them"
    )
    parser.add_argument("--sequences", nargs="*", default=[], help="some of their sequences")
    parser.add_argument("--made", type=Path, help="images with masks to make clips of")
    parser.add_argument("--clips", type=int, default=24, help="number of made clips (24)")
    parser.add_argument("--weights", default="mini")
    parser.add_argument("--rows", type=Path, help="keep the rows there, and fit those if it exists")
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--plot", type=Path, help="write the reliability diagram there, as a PNG")
    parser.add_argument("--write", type=Path, help="put the numbers into these weights")
    options = parser.parse_args(argv)
    keep_memory()
    if options.rows and options.rows.exists():
        table = dict(np.load(options.rows))
    else:
        segmenter, rows = Once(load_segmenter(options.weights, torch.device("cpu"))), []
        for one in known(options.data, options.sequences, options.made, options.clips):
            segmenter.forget()
            for start, count in STARTS:
                rows += tracked(segmenter, one, start, count)
            print(f"{one.name}: {len(rows):,} masks", file=sys.stderr, flush=True)
        table = table_of(rows)
        if options.rows:
            np.savez(options.rows, **table)
    figures, calibration = fit(table)
    print(json.dumps(figures, indent=1))
    print(calibration.text())
    if options.json:
        facts = {"weights": options.weights, "hardware": hardware(), "versions": versions()}
        options.json.write_text(json.dumps({**figures, **facts}, indent=1) + "\n")
    if options.plot:
        options.plot.write_bytes(plot(figures["diagram"], f"{options.weights}, cross-validated"))
    if options.write:
        write(options.write, calibration)
    return 0


if __name__ == "__main__":
    sys.exit(main())
