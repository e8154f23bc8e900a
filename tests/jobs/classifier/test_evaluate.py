"""`jobs.train --evaluate`: the training's own accuracy to the image, and what it refuses."""

import json

import pytest
import torch

from jobs.classifier.evaluate import check_classes, choose_split, report
from jobs.run.config import ConfigError
from jobs.run.plots import confusions_png, curves_png
from jobs.train import main


def test_the_same_accuracy_as_the_training(trained, tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert main(["--evaluate", "--weights", str(trained.out), "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert (found["split"], found["n"], found["correct"]) == ("test", 359, trained.correct)
    assert found["accuracy"] == trained.result.test["test_accuracy"]
    assert found["loss"] == pytest.approx(trained.result.test["test_loss"], rel=1e-6)
    confusion = torch.tensor(found["confusion"])
    assert int(confusion.diagonal().sum()) == trained.correct
    assert [row["n"] for row in found["classes"]] == confusion.sum(dim=1).tolist()
    assert [row["predicted"] for row in found["classes"]] == confusion.sum(dim=0).tolist()
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"accuracy {found['accuracy']:.2%} ({trained.correct} of 359)" in printed
    assert printed.count("%") == 11  # all, and each class


def test_other_splits(trained, tmp_path):
    file = tmp_path / "figures.json"
    flags = ["--evaluate", "--weights", str(trained.out / "export"), "--json", str(file)]
    best = trained.result.best_row
    assert main([*flags, "--split", "val"]) == 0
    found = json.loads(file.read_text())
    assert (found["n"], found["accuracy"]) == (144, best["val_accuracy"])
    assert main([*flags, "--split", "all"]) == 0
    assert json.loads(file.read_text())["n"] == 1797


def test_a_folder_of_images_like_the_data_set(trained, digits, tmp_path, capsys):
    for number, (content, label) in enumerate(digits):
        folder = tmp_path / "digits" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(content)
    file = tmp_path / "figures.json"
    flags = ["--evaluate", "--weights", str(trained.out), "--json", str(file)]
    flags += ["--data", str(tmp_path / "digits"), "--dataset.name", "imagefolder"]
    assert main(flags) == 0
    found = json.loads(file.read_text())
    assert (found["split"], found["n"], found["correct"]) == ("all", 359, trained.correct)
    assert "the data contain no other set" in capsys.readouterr().out

    (tmp_path / "digits" / "7").rename(tmp_path / "digits" / "seven")
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert "classes that are not among the weights' classes: seven\n" in error
    assert "that the data lack: 7\n" in error


def test_a_folder_that_could_not_be_split(trained, digits, tmp_path):
    """One image of each class: too few to train on, enough to measure."""
    for label, content in {label: content for content, label in digits}.items():
        (tmp_path / "digits" / str(label)).mkdir(parents=True)
        (tmp_path / "digits" / str(label) / "one.png").write_bytes(content)
    file = tmp_path / "figures.json"
    flags = ["--evaluate", "--weights", str(trained.out), "--json", str(file)]
    flags += ["--data", str(tmp_path / "digits"), "--dataset.name", "imagefolder"]
    assert main(flags) == 0
    found = json.loads(file.read_text())
    assert (found["split"], [row["n"] for row in found["classes"]]) == ("all", [1] * 10)


def test_bad_input(trained, tmp_path, capsys):
    def refused(*flags):
        assert main(["--evaluate", *map(str, flags)]) == 2
        return capsys.readouterr().err

    assert "nowhere" in refused("--weights", tmp_path / "nowhere")
    depth = refused("--weights", trained.out, "--model.depth", "3")
    assert "--model.depth is 3; the weights have 2" in depth
    assert "blocks.2.norm1.weight: missing" in depth
    flags = ["--dataset.store-size", 8, "--model.image-size", 24]
    with pytest.raises(SystemExit, match="2"):
        main(["--evaluate", *map(str, ["--weights", trained.out, *flags])])
    assert "is less than --model.image-size" in " ".join(capsys.readouterr().err.split())
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes((trained.out / "export/model.safetensors").read_bytes())
    assert "patch_embed.proj.weight: (32, 3, 4, 4)" in refused("--weights", bare)
    (tmp_path / "file").write_text("")
    blocked = tmp_path / "file" / "figures.json"
    assert str(tmp_path / "file") in refused("--weights", trained.out, "--json", blocked)


def test_flags_win_over_what_the_weights_say(trained, tmp_path):
    """Another image size: positions are resampled."""
    file = tmp_path / "figures.json"
    flags = ["--weights", str(trained.out), "--model.image-size", "12", "--json", str(file)]
    assert main(["--evaluate", *flags]) == 0
    assert json.loads(file.read_text())["n"] == 359


@pytest.mark.parametrize("left", [{"test": None}, {"test": []}], ids=["no folder", "empty folder"])
def test_a_class_without_an_image_is_measured_as_none(trained, digits, tmp_path, left, capsys):
    """A labelled test set rarely has every class; labels are matched by the names of classes."""
    for number, (content, label) in enumerate(digits):
        if label not in (0, 7):
            folder = tmp_path / "few" / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.png").write_bytes(content)
    if left["test"] is not None:
        (tmp_path / "few/7").mkdir()
    file = tmp_path / "figures.json"
    flags = ["--evaluate", "--weights", str(trained.out), "--json", str(file)]
    flags += ["--data", str(tmp_path / "few"), "--dataset.name", "imagefolder"]
    assert main(flags) == 0
    found = json.loads(file.read_text())
    main(["--evaluate", "--weights", str(trained.out), "--json", str(tmp_path / "all.json")])
    whole = json.loads((tmp_path / "all.json").read_text())["classes"]
    for row, all_of_it in zip(found["classes"], whole, strict=True):
        some = all_of_it["name"] not in "07"
        assert (row["name"], row["n"]) == (all_of_it["name"], all_of_it["n"] * some)
        assert row["correct"] == all_of_it["correct"] * some
    capsys.readouterr()


def test_classes_that_the_head_lacks_are_refused():
    check_classes(["a", "b", "c"], ["c", "a"], 3)
    check_classes(["caf\u00e9"], ["cafe\u0301"], 1)  # the same, as macOS writes it
    with pytest.raises(ConfigError, match=r"the weights' classes: x\n.* data lack: b\n"):
        check_classes(["a", "b"], ["a", "x"], 2)
    with pytest.raises(ConfigError, match="the weights have 3 classes, but the data have 2"):
        check_classes(None, ["a", "b"], 3)
    check_classes(None, ["a", "b"], 2)


def test_which_split():
    assert choose_split("auto", {"train", "val", "test"})[0] == "test"
    assert choose_split("auto", {"train", "val"})[0] == "val"
    assert choose_split("auto", {"train"})[0] == "all"
    assert choose_split("val", {"train"})[0] == "val"
    with pytest.raises(ConfigError, match="--split test"):
        choose_split("test", {"train"})


def test_a_class_without_an_image_has_no_accuracy():
    figures = report(0.5, torch.tensor([[3, 1], [0, 0]]), ["a", "b"])
    assert figures["accuracy"] == 0.75
    assert figures["classes"][1] == {
        "name": "b", "n": 0, "correct": 0, "predicted": 1, "accuracy": None,
    }  # fmt: skip


def test_the_settings_of_the_weights_hold_when_fields_are_checked(trained, capsys):
    """By default there are 3 heads, which do not divide 32; the weights have 2."""
    flags = ["--evaluate", "--weights", str(trained.out), "--model.embed-dim"]
    assert main([*flags, "32"]) == 0
    with pytest.raises(SystemExit):
        main([*flags, "33"])
    assert "num_heads 2 does not divide model.embed_dim 33" in capsys.readouterr().err


def test_names_of_classes_are_no_formulas():
    names = ["$", "$x$", "$\\frac$", "a_b^c", "{}"]
    counts = torch.eye(5, dtype=torch.int64).tolist()
    assert confusions_png(counts, names, title="runs/$x^$").startswith(b"\x89PNG")
    history = [{"epoch": 1, "train_loss": 1.0, "train_accuracy": 1.0}]
    assert curves_png(history, "runs/$x^$").startswith(b"\x89PNG")
