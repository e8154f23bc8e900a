"""The report of a sweep: one page of HTML that contains its plots, which are also PNG files."""

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import optuna

from jobs.run import plots
from jobs.run.progress import clock
from jobs.storage.location import Location
from jobs.sweep.config import BUDGETS
from jobs.sweep.progress import count, sample_text
from jobs.sweep.record import Trial
from jobs.sweep.rungs import value_at
from jobs.sweep.searchers import PastTrial, study_of
from jobs.sweep.state import Sweep
from jobs.sweep.tables import COUNTED, common_budget, flops_saved, summarize, trial_table
from vit.search import Dimension

COLORS = {
    "finished": "#1b7f3b", "stopped": "#9aa5b1", "diverged": "#c0392b", "failed": "#8e44ad",
    "left": "#e0a030",
}  # fmt: skip
"""Colour of a trial by its fate; left: it has not ended."""
FEWEST_FOR_IMPORTANCE = 8
"""Number of comparable trials that the importance of settings is computed from at least."""


def report(
    sweep: Sweep, dimensions: Sequence[Dimension], again: list[Trial] | None, out: Location
) -> None:
    """Publish report.html and its plots in `out`.

    Args:
        sweep: its trials.
        dimensions: the settings that vary.
        again: the trials that trained the best samples again; None if there are none.
        out: the run folder.
    """
    sections = []
    for name, title, draw in (
        ("curves", "Learning curves", _curves),
        ("pareto", "Quality against compute", _pareto),
        ("heat", "Depth by heads", _heat),
        ("survival", "Rungs", _survival),
        ("importance", "Which settings matter", lambda s: _importance(s, dimensions)),
    ):
        png, text = _plot(draw, sweep)
        if png:
            (out / f"{name}.png").write_bytes(png)
        sections.append(_section(title, text, png))
    (out / "report.html").write_text(_page(sweep, again, sections))


def _plot(draw: Callable[[Sweep], tuple[Any, str]], sweep: Sweep) -> tuple[bytes, str]:
    """Return a plot as PNG, empty if there is nothing to draw, and its caption."""
    import matplotlib as mpl  # here: it takes a second, and only the end of a sweep needs it

    mpl.use("Agg")
    figure, text = draw(sweep)
    return (b"" if figure is None else plots.figure_png(figure)), text


def _axes(columns: int, height: float = 4) -> tuple[Any, Any]:
    from matplotlib import pyplot as plt

    return plt.subplots(1, columns, figsize=(5 * columns, height), layout="constrained")


def _curves(sweep: Sweep) -> tuple[Any, str]:
    from matplotlib.ticker import EngFormatter

    figure, axes = _axes(3)
    measure = sweep.config.measure
    trials = [trial for trial in sweep.snapshot() if trial.rows]
    for trial in trials:
        samples = [row["samples_seen"] for row in trial.rows]
        values = [row[measure] for row in trial.rows]
        flops = [seen * trial.flops for seen in samples]
        seconds = [row["samples_seen"] / row["images_per_s"] for row in trial.rows]
        for axis, x in zip(axes, (samples, flops, seconds), strict=True):
            axis.plot(
                x, values, color=_color(trial), linewidth=1, marker="." if len(x) == 1 else ""
            )
    labels = ("training images", "training FLOP", "seconds of training")
    for axis, label in zip(axes, labels, strict=True):
        axis.set(xlabel=label, ylabel=measure)
        axis.xaxis.set_major_formatter("{x:,.0f}" if axis is axes[2] else EngFormatter(sep=""))
        axis.grid(alpha=0.3)
    for fate in {trial.fate or "left": None for trial in trials}:
        axes[0].plot([], [], color=COLORS[fate], label=fate)
    if trials:
        axes[0].legend()
    return figure, f"{measure} on the validation set; the colour shows how a trial ended."


def _color(trial: Trial) -> str:
    return COLORS[trial.fate or "left"]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the Pareto front of points (cost, value), with the cheapest first."""
    front, best = [], -math.inf
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front


def _pareto(sweep: Sweep) -> tuple[Any, str]:
    sign = sweep.config.sign
    trials = [trial for trial in sweep.snapshot() if trial.rows and trial.fate != "diverged"]
    if not trials:
        return None, "No trial has completed an epoch."
    values = [sweep.curve(trial)[-1][1] for trial in trials]
    figure, axes = _axes(2)
    costs = (
        ("training FLOP spent", [trial.flops_spent for trial in trials]),
        ("FLOP of a forward pass", [trial.flops / 3 for trial in trials]),
    )
    for axis, (label, cost) in zip(axes, costs, strict=True):
        for trial, x, y in zip(trials, cost, values, strict=True):
            axis.scatter(x, sign * y, color=_color(trial), s=18)
        front = pareto(list(zip(cost, values, strict=True)))
        axis.step([cost[i] for i in front], [sign * values[i] for i in front], where="post")
        for i in front:
            axis.annotate(str(trials[i].number), (cost[i], sign * values[i]), fontsize=7)
        axis.set(xlabel=label, ylabel=sweep.config.measure, xscale="log")
        axis.grid(alpha=0.3)
    return figure, "The line is the Pareto front; the numbers are those of its trials."


def _heat(sweep: Sweep) -> tuple[Any, str]:
    names = ("model.depth", "model.num_heads")
    budget, reached = common_budget(sweep)
    cells: dict[tuple[Any, Any], list[float]] = {}
    for trial, value in reached:
        if all(name in trial.sample for name in names) and math.isfinite(value):
            key = (trial.sample[names[0]], trial.sample[names[1]])
            cells.setdefault(key, []).append(sweep.config.sign * value)
    if not cells:
        return None, "Depth and heads did not both vary, or no trial completed an epoch."
    depths, heads = (sorted({key[i] for key in cells}) for i in (0, 1))
    mean = [[_mean(cells.get((d, h))) for h in heads] for d in depths]
    figure, axis = _axes(1)
    image = axis.imshow(mean, cmap="viridis", origin="lower", aspect="auto")
    figure.colorbar(image, label=sweep.config.measure)
    axis.set(xlabel="num_heads", ylabel="depth")
    axis.set_xticks(range(len(heads)), heads)
    axis.set_yticks(range(len(depths)), depths)
    for (depth, head), values in cells.items():
        at = (heads.index(head), depths.index(depth))
        pale = image.norm(_mean(values)) > 0.6
        axis.annotate(f"{_mean(values):.3f}\nn {len(values)}", at, ha="center", va="center",
                      fontsize=7, color="black" if pale else "white")  # fmt: skip
    n = sum(map(len, cells.values()))
    text = (
        f"Mean {sweep.config.measure} at {budget:.3g} {BUDGETS[sweep.config.budget]}, which {n} of"
        f" {len(sweep.trials)} trials reached; other settings vary within a cell."
    )
    return figure, text


def _mean(values: Sequence[float] | None) -> float:
    return sum(values) / len(values) if values else math.nan


def _survival(sweep: Sweep) -> tuple[Any, str]:
    if not sweep.rungs:
        return None, f"--scheduler {sweep.config.scheduler} has no rungs."
    arrived = [[a for t in sweep.trials for a in t.arrivals if a["rung"] == rung]
               for rung in range(len(sweep.rungs))]  # fmt: skip
    passed = [sum(arrival["passed"] for arrival in each) for each in arrived]
    finished = sum(trial.fate == "finished" for trial in sweep.trials)
    figure, axis = _axes(1)
    names = [f"rung {rung}\n{share:.0%}" for rung, share in
             enumerate(budget / sweep.plan.trial_budget for budget in sweep.rungs)]  # fmt: skip
    axis.bar([*names, "end"], [*map(len, arrived), finished], color="#d4dae0", label="arrived")
    axis.bar([*names, "end"], [*passed, finished], color=COLORS["finished"], label="continued")
    axis.set(ylabel="trials")
    axis.legend()
    return figure, f"{_saved_text(sweep)} {_correlation_text(sweep)}"


def _saved_text(sweep: Sweep) -> str:
    """Say how much compute early stopping saved."""
    spent = sweep.flops_spent
    whole = spent + flops_saved(sweep)
    share = 1 - spent / whole if whole else 0.0
    return (
        f"The trials took {count(spent)}FLOP; without early stopping they would have taken"
        f" {count(whole)}FLOP. {share:.0%} were saved."
    )


def _correlation_text(sweep: Sweep) -> str:
    """Say how well the order of trials at each rung agrees with that at the end."""
    from scipy.stats import spearmanr

    lines = []
    finished = [trial for trial in sweep.trials if trial.fate == "finished"]
    for rung, budget in enumerate(sweep.rungs):
        pairs = [(value_at(sweep.curve(t), budget), sweep.value(t)) for t in finished]
        known = [pair for pair in pairs if pair[0] is not None]
        if len(known) >= 4 and all(len(set(side)) > 1 for side in zip(*known, strict=True)):
            early, late = zip(*known, strict=True)
            lines.append(f"rung {rung}: {spearmanr(early, late).statistic:.2f}")
    if not lines:
        return "Too few different trials finished to compare their order at rungs and at the end."
    return (
        "Rank correlation of the values at a rung with those at the end, of finished trials:"
        f" {', '.join(lines)}."
    )


def _importance(sweep: Sweep, dimensions: Sequence[Dimension]) -> tuple[Any, str]:
    budget, reached = common_budget(sweep, share=0.8)
    known = [(trial, value) for trial, value in reached if math.isfinite(value)]
    finished = sum(trial.fate == "finished" for trial in sweep.trials)
    lost = len(sweep.trials) - len(known)
    if len(known) < FEWEST_FOR_IMPORTANCE or len(dimensions) < 2:
        return None, (
            f"{len(known)} trials can be compared, and {len(dimensions)} settings varied;"
            f" {FEWEST_FOR_IMPORTANCE} trials and 2 settings are needed."
        )
    if len({value for _, value in known}) < 2:
        return None, f"All {len(known)} trials that can be compared are equally good."
    shares = importances([(t.sample, value) for t, value in known], dimensions)
    figure, axis = _axes(1, height=1 + 0.5 * len(shares))
    names = sorted(shares, key=lambda name: shares[name])
    axis.barh([name.rpartition(".")[2] for name in names], [shares[name] for name in names])
    axis.set(xlabel="share of the variance (fANOVA)", xlim=(0, 1))
    share = budget / sweep.plan.trial_budget
    return figure, (
        f"From {len(known)} trials at {share:.0%} of a whole training. {lost} trials did not get so"
        f" far, or diverged; {finished} finished. Later in training other settings may matter."
    )


def importances(
    points: Sequence[tuple[dict[str, Any], float]], dimensions: Sequence[Dimension]
) -> dict[str, float]:
    """Return the share of the variance that each setting explains: fANOVA (Hutter et al. 2014).

    Args:
        points: samples and their values.
        dimensions: the settings that vary.
    """
    study = study_of([PastTrial(s, final=v, over=True) for s, v in points], dimensions)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _section(title: str, text: str, png: bytes) -> str:
    image = ""
    if png:
        data = base64.b64encode(png).decode()
        image = f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
    return f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{image}"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 1100px; margin: 2em auto;
       padding: 0 1em } h1, h2 { line-height: 1.2 } img { max-width: 100% }
table { border-collapse: collapse; font-size: 13px } td, th { padding: 2px 10px; text-align: right;
       border-bottom: 1px solid #e3e7eb; white-space: nowrap } .wide { overflow-x: auto }
"""


def _page(sweep: Sweep, again: list[Trial] | None, sections: Sequence[str]) -> str:
    summary = summarize(sweep, again)
    counts = ", ".join(f"{summary[fate]} {fate}" for fate in COUNTED if summary[fate])
    best = summary["best"]
    lines = [f"{summary['trials']} trials: {counts}; {clock(summary['wall_s'])} of wall time."]
    if best:
        lines.append(
            f"Best: trial {best['trial']}, {best['metric']} {best['value']:.4f}:"
            f" {sample_text(best['params'])}. It was chosen among {summary['trials']} trials on the"
            " validation set, so this value is somewhat too good."
        )
    if sweep.halted:
        lines.append(f"Ended early: {sweep.halted}.")
    for line in summary["retrained"] or ():
        test, spread = line["test_mean"], line["test_std"]
        if test is not None:
            deviation = "" if spread is None else f", standard deviation {spread:.2%}"
            lines.append(
                f"Trained again with {line['seeds']} seeds, {sample_text(line['params'])}: test"
                f" accuracy {test:.2%}{deviation}."
            )
    body = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>Sweep</title><style>{STYLE}</style><h1>Sweep</h1>{body}"
        f"{''.join(sections)}<h2>Trials</h2><div class=wide>{_table(sweep)}</div></html>\n"
    )


def _table(sweep: Sweep) -> str:
    """Return the table of trials as HTML, best first."""
    buffer, order = io.StringIO(), [trial.number for trial in sweep.ranking()]
    if not order:
        return "No trial was started."
    table = trial_table(sweep).set_index("trial").loc[order].drop(columns=["metric"])
    table = table.dropna(axis="columns", how="all").astype(object)
    table.where(table.notna(), "").to_html(buffer, border=0, float_format="{:.4g}".format)
    return buffer.getvalue()
