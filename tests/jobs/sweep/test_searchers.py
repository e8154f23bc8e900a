"""Searchers: samples are valid and new, and depend on earlier trials and the seed only."""

import math

import pytest
from safetensors.torch import save_file

from jobs.sweep.plan import SweepPlan
from jobs.sweep.searchers import PastTrial, Searcher
from tests.sweeps import SUMMARY, config_of, run, sweep_of
from vit.config import ModelConfig
from vit.model import build
from vit.search import SearchError, Values, space
from vit.weights import read


@pytest.mark.parametrize("kind", ["tpe", "random", "grid"])
def test_samples_are_valid_and_new(kind, tmp_path):
    sweep = sweep_of(tmp_path, "--searcher", kind, "--trials", "30")
    run(sweep)
    samples = [trial.sample for trial in sweep.trials]
    assert len(samples) == 30
    assert all(samples.count(sample) == 1 for sample in samples)
    assert all(sample["model.num_heads"] != 5 for sample in samples)  # does not divide 48


def test_a_small_space_ends(tmp_path):
    sweep = sweep_of(tmp_path, "--space", "model.depth", "1..3", "model.num_heads", "2, 5")
    run(sweep)
    assert sorted(trial.sample["model.depth"] for trial in sweep.trials) == [1, 2, 3]
    assert sweep.is_over


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ("--max-budget", "1e6", "--space", "depth", "1..4"),
            "one epoch takes .* FLOP, but a whole",
        ),
        (("--space", "model.num_heads", "5, 7"), "does not divide model.embed_dim 48"),
        (("--space", "epochs", "3..5"), "epochs cannot vary"),
        (("--space", "dataset.val_fraction", "0.1, 0.2"), "dataset.val_fraction cannot vary"),
        (
            ("--space", "optim.ema_half_life", "0"),
            "--metric ema_accuracy is not reported by trials",
        ),
        (("--space", "optim.schedule", "cosine"), "compares unfinished trials"),
        (("--space", "optim.warmup_epochs", "20"), "lies in the warm-up"),
        (("--searcher", "grid", "--space", "lr", "1e-4..1 log"), "a grid needs values"),
    ],
)
def test_spaces_without_a_sample(flags, words, tmp_path):
    with pytest.raises(SearchError, match=words):
        sweep_of(tmp_path, *flags)


def test_tpe_learns():
    """After thirty trials TPE's samples are better than random ones."""
    space_ = (Values("a", tuple(range(30))), Values("b", tuple(range(30))))

    def mean(kind):
        found = []
        for seed in range(4):
            searcher, past = Searcher(kind, space_, lambda sample: None, seed), []
            for _ in range(40):
                sample = searcher.next(past)
                value = -abs(sample["a"] - 21) - abs(sample["b"] - 8)
                past.append(PastTrial(sample, final=float(value), over=True))
            found += [trial.final for trial in past[20:]]
        return sum(found) / len(found)

    assert mean("tpe") > mean("random") + 4


def test_searchers_have_no_state():
    space_ = (Values("a", tuple(range(30))), Values("b", tuple(range(30))))
    past = [PastTrial({"a": i, "b": 29 - i}, final=i / 30, over=True) for i in range(12)]
    past.append(PastTrial({"a": 3, "b": 3}, values={0: -math.inf}, over=True))
    past.append(PastTrial({"a": 4, "b": 4}, over=True, failed=True))
    past.append(PastTrial({"a": 5, "b": 4}))
    answers = [Searcher("tpe", space_, lambda s: None, 7).next(past) for _ in range(2)]
    assert answers[0] == answers[1]
    assert Searcher("tpe", space_, lambda s: None, 8).next(past) != answers[0]


def test_weights_that_do_not_fit_a_sample_are_never_tried(tmp_path):
    config = config_of(tmp_path, "--space", "model.depth", "1..4", "model.num_heads", "2, 3")
    model = build(ModelConfig(image_size=16, embed_dim=48, num_heads=2, depth=2), 3, seed=0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    plan = SweepPlan.of(config, SUMMARY, read(tmp_path / "model.safetensors"))
    samples = plan.searcher(space(config, config.space)).listed
    assert {sample["model.depth"] for sample in samples} == {2}
