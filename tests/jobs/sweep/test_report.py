"""Tables and reports of sweeps."""

import math

import pytest

from jobs.sweep.report import importances, pareto, report
from jobs.sweep.tables import summarize, trial_table, write_trials
from tests.sweeps import config_of, row_of, run, sweep_of
from vit.search import space


def test_tables(tmp_path):
    sweep = sweep_of(tmp_path, "--trials", "12")
    run(sweep)
    write_trials(sweep, sweep.folder)
    table = trial_table(sweep)
    assert list(table["trial"]) == list(range(12))
    assert set(table["fate"]) <= {"finished", "stopped"}
    finished = table[table["fate"] == "finished"]
    assert finished["value"].notna().all()
    assert table[table["fate"] == "stopped"]["rung"].notna().all()
    assert (tmp_path / "trials.csv").read_text().startswith("trial,fate,rung,reason,model.depth")


def test_losses_are_minimised(tmp_path):
    sweep = sweep_of(tmp_path, "--metric", "ema_loss", "--trials", "2", "--scheduler", "none")
    for loss in (0.5, 0.7):
        trial = sweep.next_trial()
        for epoch in range(1, trial.epochs + 1):
            sweep.report(trial.number, row_of(sweep, trial, epoch) | {"ema_loss": loss})
        sweep.end(trial.number, "finished")
    assert sweep.ranking()[0].number == 0
    assert summarize(sweep, None)["best"]["value"] == 0.5


@pytest.mark.parametrize("values", [[0.5] * 9, [0.1 * i for i in range(9)], []])
def test_reports_of_odd_sweeps(values, tmp_path):
    """Reports of equal trials, of trials that reach no late rung, and of none."""
    flags = ("--scheduler", "asha", "--reduction", "2", "--first-rung", "0.9", "--trials", "9")
    sweep = sweep_of(tmp_path, *flags)
    for value in values:
        trial = sweep.next_trial()
        for epoch in range(1, trial.epochs + 1):
            row = row_of(sweep, trial, epoch) | {"ema_accuracy": value}
            sweep.report(trial.number, row)
        trial.fate = "finished"
    report(sweep, space(sweep.config, sweep.config.space), None, sweep.folder)
    assert "<h2>Trials</h2>" in (tmp_path / "report.html").read_text()


def test_pareto():
    points = [(1, 0.1), (2, 0.5), (2, 0.4), (3, 0.45), (4, 0.9), (0.5, -math.inf)]
    assert pareto(points) == [0, 1, 4]


def test_importance_of_what_matters(tmp_path):
    dimensions = space(config_of(tmp_path), {"model.depth": "1..4", "optim.lr": "1e-4..1 log in 9"})
    points = [
        ({"model.depth": depth, "optim.lr": lr}, math.log10(lr))
        for depth in range(1, 5)
        for lr in dimensions[1].values
    ]
    shares = importances(points, dimensions)
    assert shares["optim.lr"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
