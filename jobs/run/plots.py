"""PNGs of a training: its curves, and its confusion matrix."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

_CURVES = {
    "train": "training (augmented)",
    "val": "validation",
    "ema": "validation, averaged weights",
}


def curves_png(
    history: list[dict[str, Any]], title: str, kinds: Sequence[str] = ("loss", "accuracy")
) -> bytes:
    """Return a PNG with a chart of each kind of metric by epoch.

    Args:
        history: metrics of each epoch.
        title: line above the charts.
        kinds: metrics to show: `loss` shows `train_loss`, `val_loss` and `ema_loss`.
    """
    import matplotlib as mpl  # here, as it takes a second that only the end of a run needs

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    size = (5 * len(kinds), 4)
    figure, axes = plt.subplots(1, len(kinds), figsize=size, layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axis, kind in zip(axes, kinds, strict=True):
        for part, label in _CURVES.items():
            if history and f"{part}_{kind}" in history[0]:
                axis.plot(epochs, [row[f"{part}_{kind}"] for row in history], label=label)
        axis.set(xlabel="epoch", ylabel=kind)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title, parse_math=False)
    return figure_png(figure)


def confusions_png(counts: list[list[int]], classes: Sequence[str], title: str) -> bytes:
    """Return a PNG of a confusion matrix; colours are shares of the true class, numbers counts.

    Args:
        counts: (C, C) counts by true class (row) and predicted class (column).
        classes: names of the C classes; more than 40 are not shown, nor the counts of more than 20.
        title: line above the matrix.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shares = np.array(counts) / np.maximum(1, np.sum(counts, axis=1, keepdims=True))
    side = min(16.0, 3.5 + 0.4 * len(classes))
    figure, axis = plt.subplots(figsize=(side + 1, side), layout="constrained")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")
    axis.set(xlabel="predicted", ylabel="true")
    ticks = range(len(classes)) if len(classes) <= 40 else ()
    names = [classes[i] for i in ticks]
    axis.set_xticks(ticks, names, rotation=90, parse_math=False)  # a name may have a dollar sign
    axis.set_yticks(ticks, names, parse_math=False)
    if len(classes) <= 20:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, counts[row][column], ha="center", va="center", color=color)
    figure.suptitle(title, parse_math=False)
    return figure_png(figure)


def figure_png(figure: Any) -> bytes:
    """Return a figure of matplotlib as PNG, and close it."""
    from matplotlib import pyplot as plt

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    plt.close(figure)
    return content.getvalue()
