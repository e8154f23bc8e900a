"""Bounds in words, samples that are valid, what they cost."""

import pytest
import torch

from jobs.classifier.task import TrainConfig
from vit.config import ModelConfig
from vit.cost import flops, parameters, training_flops
from vit.model import VisionTransformer
from vit.search import (
    Interval,
    SearchError,
    Values,
    assign,
    grid,
    parse,
    size,
    space,
)

CONFIG = TrainConfig(out="x")


def test_words_to_bounds():
    for text, kind, values in (
        ("2..5", int, (2, 3, 4, 5)),
        ("64..256 step 64", int, (64, 128, 192, 256)),
        ("0..0.3 step 0.1", float, (0.0, 0.1, 0.2, 0.3)),
        ("1e-4..1e-2 log in 3", float, (1e-4, 1e-3, 1e-2)),
        ("16..128 log in 4", int, (16, 32, 64, 128)),
        ("0..1 in 3", float, (0.0, 0.5, 1.0)),
        ("6, 2, 3", int, (2, 3, 6)),
        ("none, 1e-5", float | None, (None, 1e-5)),
        ("true, false", bool, (True, False)),
    ):
        assert parse("a", text, kind) == Values("a", values)
    assert parse("a", "1e-4..1e-2 log", float) == Interval("a", 1e-4, 1e-2, log=True)
    assert parse("a", "0..1", float) == Interval("a", 0.0, 1.0, log=False)


def test_an_interval_is_even():
    log = Interval("a", 1e-4, 1e-2, log=True)
    assert [log.at(share) for share in (0, 0.5)] == pytest.approx([1e-4, 1e-3])
    assert Interval("a", 2.0, 4.0, log=False).at(0.25) == 2.5
    assert [Values("a", (1, 2, 3)).at(share) for share in (0, 0.34, 0.999)] == [1, 2, 3]


def test_marks_are_the_default():
    found = space(CONFIG, {})
    assert [each.name for each in found] == ["model.depth", "model.num_heads", "optim.lr"]
    assert space(CONFIG, {"mlp_ratio": ""}) == (Values("model.mlp_ratio", (1.0, 2.0, 3.0, 4.0)),)
    # Every mark can be read.
    for name in ("embed_dim", "drop_path_rate", "randaugment_magnitude", "mixup", "cutmix"):
        assert space(CONFIG, {name: ""})
    for name in ("muon_lr", "optim.weight_decay", "layer_decay", "label_smoothing"):
        assert space(CONFIG, {name: ""})


def test_any_field_by_name():
    found = space(CONFIG, {"optimizer": "muon, adamw", "batch_size": "32, 64"})
    assert found[0] == Values("optim.optimizer", ("muon", "adamw"))
    assert not found[0].ordered
    assert found[1].ordered
    assert size(found) == 4
    assert list(grid(found))[1] == {"optim.optimizer": "muon", "batch_size": 64}
    assert size((*found, Interval("optim.lr", 0, 1, log=False))) is None


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"lr": "1e-4...1e-2"}, "'1e-4...1e-2' has three dots; a range has two, as in 0..0.5"),
        ({"depth": "1\u20265"}, "has three dots"),
        ({"lr": "1e-4..1e-2 log in 99999999999999999999"}, "in 999999999"),
        ({"model.dept": "1..2"}, "perhaps you meant model.depth"),
        ({"heads": "1..2"}, "perhaps you meant model.num_heads"),
        ({"model.depth": "5..2"}, "model.depth '5..2' is empty: 5 is not below 2"),
        ({"model.depth": "2.5, 3"}, "'2.5' is not a value of it; expected a whole number"),
        ({"optim.lr": "0..1 log"}, "a logarithm needs a lower end above 0"),
        ({"optim.lr": "nan, 1"}, "'nan' is not a value of it"),
        ({"optim.lr": ""}, ""),
        ({"qk_norm": ""}, "no bounds of its own"),
        ({"optim.betas": "0.9, 0.99"}, "cannot be swept"),
        ({"optim.optimizer": "sgd, adamw"}, "'sgd' is not a value of it; expected adamw, muon"),
        ({"depth": "1..3", "model.depth": "1..3"}, "named twice"),
        ({"model.depth": "1, 2, 1"}, "a value twice"),
        ({"model.embed_dim": "1..100000"}, "the range has more than 10,000 values"),
        ({"model.embed_dim": "8..64 log"}, "needs `in N`"),
        ({"model.embed_dim": "8..64 step 0"}, "not above 0"),
        ({"model.embed_dim": "8..64 in 1"}, "`in 1`"),
        ({"qk_norm": "0..1"}, "not a value of it; expected true or false"),
    ],
)
def test_bad_bounds(bounds, words):
    if bounds == {"optim.lr": ""}:
        assert space(CONFIG, bounds)  # its own mark
        return
    with pytest.raises(SearchError) as error:
        space(CONFIG, bounds)
    assert words in str(error.value)


def test_a_grid_needs_values():
    with pytest.raises(SearchError, match="write how many"):
        list(grid(space(CONFIG, {})))


def test_assign_checks():
    changed = assign(CONFIG, {"model.depth": 3, "optim.lr": 0.1, "batch_size": 64})
    assert (changed.model.depth, changed.optim.lr, changed.batch_size) == (3, 0.1, 64)
    assert CONFIG.model.depth == 6
    with pytest.raises(ValueError, match="does not divide"):
        assign(CONFIG, {"model.num_heads": 5})


def test_costs():
    config = ModelConfig(embed_dim=64, depth=2, num_heads=2)
    model = VisionTransformer(config, 10)
    assert parameters(config, 10) == sum(each.numel() for each in model.parameters())
    assert training_flops(config, 10) == 3 * flops(config, 10)
    assert torch.empty(1).device.type == "cpu"  # counting left no default device behind


@pytest.mark.parametrize("text", ["0..1 step 1e-5", "-9e307..9e307 step 1"])
def test_a_range_of_too_many_values_is_refused(text):
    with pytest.raises(SearchError, match=r"optim\.lr: the range has more than 10,000 values"):
        parse("optim.lr", text, float)
