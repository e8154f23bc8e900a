"""What a run gives away: read by timm with the card's own five lines, and nothing private in it."""

import json
import re

import pytest
import torch
import yaml

from tests.trained import train_and_conclude
from vit import classifier, weights
from vit.config import ModelConfig, OptimConfig


def lines_of(card):
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


def run_card(folder, monkeypatch):
    """The card's lines, run beside the export: the names that they leave."""
    monkeypatch.chdir(folder)
    names = {}
    exec(lines_of((folder / "export/README.md").read_text()), names)
    return names


def ours(folder):
    found = weights.read(folder)
    about = found.about
    return classifier.load(
        found, about.model, about.dataset, about.numerics, torch.device("cpu")
    ).model


def test_timm_loads_it_by_the_lines_of_the_card(trained, monkeypatch):
    names = run_card(trained.out, monkeypatch)
    assert names["logits"].shape == (1, 10)
    images = torch.randn(4, 3, 8, 8)
    with torch.inference_mode():
        expected = ours(trained.out)(images)
        torch.testing.assert_close(names["model"](images), expected, rtol=1e-5, atol=1e-5)
    config = names["model"].pretrained_cfg
    assert tuple(config["mean"]) == (0.5, 0.5, 0.5)
    assert config["label_names"] == list("0123456789")


def test_the_transform_of_the_card_is_that_of_training(trained, digits, monkeypatch, tmp_path):
    import io

    from PIL import Image

    from vit.augment.augment import normalize
    from vit.data.decode import decode

    transform = run_card(trained.out, monkeypatch)["transform"]
    content = digits[0][0]
    theirs = transform(Image.open(io.BytesIO(content)).convert("RGB"))
    half = (0.5, 0.5, 0.5)
    mine = normalize(torch.from_numpy(decode(content, 8))[None], half, half)[0]
    torch.testing.assert_close(theirs, mine)


def test_the_head_of_the_card_is_the_hubs(trained):
    card = (trained.out / "export/README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "timm"
    assert head["license"] == "unknown"
    assert head["metrics"] == ["accuracy"]
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == trained.result.test["test_accuracy"]
    assert f"{trained.result.test['test_accuracy']:.2%}" in card
    assert str(trained.out) not in card
    recipe = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)[0])
    assert recipe["model"]["embed_dim"] == 32


@pytest.mark.parametrize("kind", ["conv stem", "average"])
def test_a_conv_stem_and_an_average(kind, tmp_path, monkeypatch):
    shape = {"image_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    stem = "conv" if kind == "conv stem" else "patch"
    optim = OptimConfig(warmup_epochs=0, ema_half_life=0 if stem == "conv" else 2000)
    run = train_and_conclude(tmp_path, epochs=1, model=ModelConfig(stem=stem, **shape), optim=optim)
    names = run_card(tmp_path, monkeypatch)
    images = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        assert torch.allclose(names["model"](images), ours(tmp_path)(images), atol=1e-6)
    card = (tmp_path / "export/README.md").read_text()
    if stem == "conv":
        assert "Plain timm cannot load these weights" in card
        assert not (tmp_path / "export/config.json").exists()
    else:
        assert "average of its weights (half-life 2,000 samples)" in card
        checkpoint = json.loads((tmp_path / "export/model.json").read_text())["checkpoint"]
        from safetensors.torch import load_file

        average = load_file(tmp_path / "checkpoints" / checkpoint / "average.safetensors")
        stored = weights.read(tmp_path).tensors
        assert all(torch.equal(tensor, stored[name]) for name, tensor in average.items())
    assert run.result.test
