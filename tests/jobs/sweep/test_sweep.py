"""Sweeps without a cluster: stopping, resuming, limits, training the best again."""

import json
import shutil

import pytest
import yaml

from jobs import tune
from jobs.run.config import ConfigError, as_settings
from jobs.storage.location import StorageError
from jobs.sweep.state import Sweep
from jobs.sweep.tables import summarize, summarize_retrained
from tests.sweeps import SUMMARY, config_of, row_of, run, sweep_of


def written(folder, *flags):
    """Return a sweep that writes its record."""
    return sweep_of(folder, *flags, kind=Sweep)


def record(sweep):
    """Return the contents of all trial.json files."""
    paths = [sweep.trial_folder(trial) / "trial.json" for trial in sweep.trials]
    return [path.read_json() for path in paths]


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_early_stopping_finds_the_best_for_less(scheduler, tmp_path):
    sweep = sweep_of(tmp_path, "--searcher", "random", "--scheduler", scheduler, "--trials", "40")
    run(sweep)
    summary = summarize(sweep, None)
    assert summary["finished"] + summary["stopped"] == summary["trials"] == 40
    assert summary["flops_spent"] < 0.6 * summary["flops_grid"]
    best = summary["best"]["params"]
    assert best["optim.lr"] == 1e-2
    assert best["model.depth"] in (2, 3, 4)


def test_trials_cost_the_same(tmp_path):
    """Deep trials get fewer epochs; every whole trial spends the budget, to within an epoch."""
    sweep = sweep_of(tmp_path, "--searcher", "grid", "--scheduler", "none", "--trials", "100")
    run(sweep)
    for trial in sweep.trials:
        epoch = 640 * trial.flops
        assert (
            sweep.plan.trial_budget - epoch
            < trial.flops_spent
            <= sweep.plan.trial_budget * (1 + 1e-9)
        )
    by_depth = {trial.sample["model.depth"]: trial.epochs for trial in sweep.trials}
    assert by_depth[2] == 27
    assert by_depth[1] > by_depth[2] > by_depth[3] > by_depth[4]
    settings = sweep.settings(sweep.trials[0])
    assert settings.optim.warmup_epochs / settings.epochs == pytest.approx(1 / 27)


@pytest.mark.parametrize("searcher", ["tpe", "random"])
def test_a_killed_sweep_resumes_to_the_same_result(searcher, tmp_path):
    """A sweep that is killed after every few reports has the same trials, rungs and fates."""
    flags = ("--searcher", searcher, "--trials", "14")
    whole = written(tmp_path / "whole", *flags)
    run(whole, slots=1)
    for _ in range(200):
        events = run(written(tmp_path / "killed", *flags), slots=1, reports=7)
        if not events:
            break
    killed = written(tmp_path / "killed", *flags)
    assert record(killed) == record(whole)
    assert killed.is_over


def test_unfinished_trials_are_resumed_first(tmp_path):
    sweep = written(tmp_path)
    run(sweep, slots=3, reports=5)
    begun = len(sweep.trials)
    again = written(tmp_path)
    assert [again.next_trial().number for _ in range(begun)] == list(range(begun))
    assert again.next_trial().number == begun
    assert [len(t.rows) for t in again.trials[:begun]] == [len(t.rows) for t in sweep.trials]


def test_a_repeated_epoch_changes_nothing(tmp_path):
    sweep = written(tmp_path)
    trial = sweep.next_trial()
    rows = [row_of(sweep, trial, epoch) for epoch in range(1, 5)]
    assert all(sweep.report(0, row) for row in rows)
    before = record(sweep)
    assert sweep.report(0, rows[2] | {"ema_accuracy": 0.0})
    assert record(sweep) == before


def test_what_is_stopped_stays_stopped(tmp_path):
    sweep = written(tmp_path, "--trials", "9")
    run(sweep)
    stopped = next(trial for trial in sweep.trials if trial.fate == "stopped")
    assert stopped.stopped_at is not None
    assert "trials at this rung" in stopped.reason
    assert not sweep.report(stopped.number, row_of(sweep, stopped, len(stopped.rows) + 1))
    sweep.end(stopped.number, "finished")
    assert stopped.fate == "stopped"
    assert written(tmp_path, "--trials", "9").next_trial() is None


def test_diverged_and_failed(tmp_path):
    """Both are counted, pass no rung, and are never the best."""
    sweep = written(tmp_path, "--trials", "4")
    numbers = [sweep.next_trial().number for _ in range(4)]
    for number in numbers:
        sweep.report(number, row_of(sweep, sweep.trials[number], 1))
    sweep.end(0, "diverged", "the loss is not finite at step 12")
    sweep.end(1, "failed", "out of memory")
    assert sweep.trials[0].stopped_at == len(
        [arrival for arrival in sweep.trials[0].arrivals if arrival["passed"]]
    )
    for number in (2, 3):
        sweep.release(number)
    run(sweep)
    summary = summarize(sweep, None)
    assert (summary["diverged"], summary["failed"], summary["left"]) == (1, 1, 0)
    assert summary["best"]["trial"] in (2, 3)
    assert [trial.number for trial in sweep.ranking()][-2:] in ([0, 1], [1, 0])
    json.loads((tmp_path / "trials/0000/trial.json").read_text(), parse_constant=pytest.fail)


def test_trials_at_a_limit_resume_with_a_higher_one(tmp_path):
    most = written(tmp_path / "a").plan.trial_budget
    sweep = written(tmp_path / "b", "--max-flops", str(1.5 * most))
    run(sweep)
    assert "--max-flops" in sweep.halted
    assert 1.5 * most <= sweep.flops_spent < 1.6 * most
    assert sweep.unfinished
    assert summarize(sweep, None)["limit"] == sweep.halted
    more = written(tmp_path / "b")
    run(more)
    assert not more.unfinished
    assert len(more.trials) == 27


def test_wall_time_counts_over_starts(tmp_path):
    sweep = written(tmp_path, "--max-hours", "1")
    sweep.clock._started -= 3000
    assert sweep.report(sweep.next_trial().number, row_of(sweep, sweep.trials[0], 1))
    sweep.clock.save()
    again = written(tmp_path, "--max-hours", "1")
    assert again.clock.seconds >= 3000
    again.clock._started -= 3000
    assert again.next_trial() is None
    assert "--max-hours 1 is reached" in again.halted


@pytest.mark.parametrize(
    ("flags", "whole"),
    [
        (("--budget", "samples"), 27 * 640),
        (("--budget", "epochs"), 27),
        (("--budget", "epochs", "--max-budget", "30"), 30),
    ],
)
def test_other_budgets(flags, whole, tmp_path):
    sweep = sweep_of(tmp_path, *flags)
    assert sweep.plan.trial_budget == whole
    run(sweep)
    assert {trial.epochs for trial in sweep.trials} == {30 if whole == 30 else 27}


def test_seconds_end_a_trial(tmp_path):
    flags = ("--budget", "seconds", "--max-budget", "0.02", "--optim.schedule", "constant")
    sweep = sweep_of(tmp_path, *flags, "--scheduler", "none", "--trials", "6")
    run(sweep)
    for trial in sweep.trials:
        assert trial.fate == "finished"
        assert trial.train_seconds >= 0.02 or len(trial.rows) == trial.epochs


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--metric", "val_acc"), "--metric val_acc is not reported by trials; use one of ema_"),
        (("--metric", "ema_loss", "--optim.ema-half-life", "0"), "is not reported by trials"),
        (("--optim.schedule", "cosine"), "compares unfinished trials"),
        (("--first-rung", "0.02"), "lies in the warm-up"),
        (("--budget", "seconds"), "needs --max-budget"),
        (("--budget", "seconds", "--max-budget", "9"), "needs --optim.schedule constant, not wsd"),
        (("--trials", "0"), "--trials is 0"),
        (("--reduction", "1"), "--reduction is 1"),
        (("--max-hours", "0"), "--max-hours is 0.0; expected a number above 0"),
    ],
)
def test_bad_settings(flags, words, tmp_path, capsys):
    with pytest.raises((SystemExit, ValueError)):
        sweep_of(tmp_path, *flags)
    assert words in " ".join(capsys.readouterr().err.split())


def test_retrained_over_seeds(tmp_path):
    config = config_of(tmp_path, "--scheduler", "none", "--trials", "4")
    plan = sweep_of(tmp_path / "other").plan
    samples = [{"model.depth": d, "seed": s} for d in (1, 2) for s in (1, 2)]
    again = Sweep(
        type(plan)(config, SUMMARY, plan.trial_budget),
        plan_folder(tmp_path),
        lambda past: samples[len(past)],
    )
    for accuracy in (0.5, 0.7, 0.6, None):
        trial = again.next_trial()
        again.report(
            trial.number,
            row_of(
                again,
                trial.__class__(
                    trial.number, {"model.depth": 1, "optim.lr": 1e-2}, trial.flops, 1, 1
                ),
                1,
            ),
        )
        fate = "failed" if accuracy is None else "finished"
        again.end(trial.number, fate, facts={"test": {"test_accuracy": accuracy}})
    first, second = summarize_retrained(again.trials, "ema_accuracy")
    assert first["test_mean"] == pytest.approx(0.6)
    assert first["test_std"] == pytest.approx(0.1414, abs=1e-4)
    assert (second["seeds"], second["lost"], second["test_std"]) == (1, 1, None)


def test_retrained_trials_are_kept_when_retrain_top_grows(tmp_path, monkeypatch):
    """--retrain-top and --seeds may change between starts."""
    monkeypatch.setattr(tune, "run_on_cluster", lambda again, stop, test: run(again))
    once = written(tmp_path, "--retrain-top", "1", "--seeds", "1", "--trials", "5")
    run(once)
    (first,) = tune.retrain(once, None)
    more = written(tmp_path, "--retrain-top", "2", "--seeds", "2", "--trials", "5")
    found = tune.retrain(more, None)
    assert [trial.sample["seed"] for trial in found] == [1, 2, 1, 2]
    assert found[0].sample == first.sample
    assert len(list(tmp_path.glob("retrain/trials/*"))) == 4  # the first was not trained again
    fewer = tune.retrain(written(tmp_path, "--retrain-top", "1", "--trials", "5"), None)
    assert [trial.sample["seed"] for trial in fewer] == [1, 2, 3]
    assert len(list(tmp_path.glob("retrain/trials/*"))) == 5


def test_a_trial_that_seconds_ended_is_retrained_for_its_epochs(tmp_path):
    flags = ("--budget", "seconds", "--max-budget", "10", "--optim.schedule", "constant")
    sweep = written(tmp_path, *flags, "--scheduler", "none", "--trials", "3")
    run(sweep)
    best = sweep.ranking()[0]
    assert len(best.rows) < 27
    assert yaml.safe_load(tune.best_yaml(sweep, best))["epochs"] == len(best.rows)
    sample = tune.retraining_sample(sweep, best, seed=4)
    settings = sweep.plan.settings(sample, sweep.folder)
    assert (settings.epochs, settings.seed) == (len(best.rows), 4)
    assert settings.optim.warmup_epochs == 1


def test_trials_that_fail_in_the_same_way_end_the_sweep_and_are_repeated(tmp_path):
    """A faulty node must not use up the trials."""
    sweep = written(tmp_path, "--trials", "9")
    for why in ("no such mount", "other", "no such mount", "no such mount"):
        sweep.end(sweep.next_trial().number, "failed", why)
    assert not sweep.halted
    sweep.end(sweep.next_trial().number, "failed", "no such mount")
    assert "3 trials in a row failed for the same reason: no such mount" in sweep.halted
    assert not sweep.at_limit
    assert sweep.next_trial() is None
    again = written(tmp_path, "--trials", "9")
    assert [trial.fate for trial in again.trials] == ["failed", "failed", "", "", ""]
    for _ in range(9):
        if (trial := again.next_trial()) is not None:
            again.end(trial.number, "failed", "out of memory (3 GB)")  # of the model, not the node
    assert not again.halted
    assert len(again.trials) == 9


def test_a_record_with_a_gap_is_refused(tmp_path):
    run(written(tmp_path, "--trials", "4"))
    shutil.rmtree(tmp_path / "trials/0001")
    with pytest.raises(ConfigError, match="lacks trial 1"):
        written(tmp_path, "--trials", "4")


def test_expensive_trials_are_judged_at_no_rung_before_their_first_epoch(tmp_path):
    """Trials are compared at equal FLOPs or not at all."""
    flags = ("--space", "model.depth", "1, 12", "--epochs", "9", "--optim.warmup-epochs", "0.5")
    sweep = sweep_of(tmp_path, *flags, "--model.depth", "4", "--trials", "2")
    run(sweep)
    expensive = next(trial for trial in sweep.trials if trial.sample["model.depth"] == 12)
    assert sweep.curve(expensive)[0][0] > sweep.rungs[0]
    assert [arrival["rung"] for arrival in expensive.arrivals] == list(range(1, len(sweep.rungs)))
    assert expensive.last_rung == len(sweep.rungs) - 1


def test_a_limit_at_the_last_epoch_lets_the_trial_finish(tmp_path):
    sweep = written(tmp_path, "--trials", "1", "--max-flops", "1e30")
    trial = sweep.next_trial()
    for epoch in range(1, trial.epochs):
        assert sweep.report(0, row_of(sweep, trial, epoch))
    sweep.halt("a limit")
    assert sweep.report(0, row_of(sweep, trial, trial.epochs))


def plan_folder(folder):
    from jobs.storage.location import Location

    return Location.parse(str(folder / "retrain"))


def test_a_trial_trains_as_the_job_would(tmp_path):
    """The settings of a trial are those of the flags, except for its epochs and warm-up."""
    sweep = sweep_of(tmp_path)
    trial = sweep.next_trial()
    settings = as_settings(sweep.settings(trial))
    assert settings["optim"]["lr"] == trial.sample["optim.lr"]
    assert settings["model"]["depth"] == trial.sample["model.depth"]
    assert settings["epochs"] == trial.epochs
    assert settings["seed"] == 0


def test_what_is_over_never_changes(tmp_path):
    """A second sweep that read the record before a trial was over cannot undo it."""
    flags = ("--scheduler", "none", "--trials", "2", "--epochs", "4")
    run(written(tmp_path, *flags), slots=1, reports=3)
    late, first = (written(tmp_path, *flags) for _ in range(2))
    run(first, slots=1)
    before = record(first)
    assert [trial["fate"] for trial in before] == ["finished"] * 2
    with pytest.raises(StorageError, match=r"0000/trial\.json is not written: trial 0 is over"):
        run(late, slots=1)
    assert record(first) == before


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format": 1}', '{"format": 1, "x": 0}'])
def test_a_damaged_record_is_named(text, tmp_path):
    run(written(tmp_path, "--trials", "1", "--scheduler", "none"), reports=2)
    (tmp_path / "trials/0000/trial.json").write_text(text)
    with pytest.raises(ConfigError, match=r"0000/trial\.json is damaged: expected the record of"):
        written(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"wall_s": null}'])
def test_a_damaged_clock_costs_only_its_time(text, tmp_path, capsys):
    (tmp_path / "clock.json").write_text(text)
    assert written(tmp_path).clock.seconds < 5
    assert "clock.json is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{}", "[]", "7"])
def test_a_damaged_summary_of_the_data_is_named(text, tmp_path):
    (tmp_path / "data.json").write_text(text)
    sweep = sweep_of(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.json is damaged: expected train, val, test"):
        tune.check_data(sweep.plan, sweep.folder)
