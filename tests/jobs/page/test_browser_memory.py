"""Previews and tracking in a real browser with a model with a memory."""

import re

import torch

from masking.sam2.weights import load
from tests.jobs.page.rows import saved
from tests.masking.sam2.tiny import save


def test_preview_and_track(page, serve, tmp_path):
    segmenter = load(save(tmp_path / "weights"), torch.device("cpu"), "float32")
    page.open(serve(segmenter).address + "#discs")
    page.click(30, 40)
    page.wait("return patchray.layers.preview.size === 1 && patchray.view.layers.length === 1")
    page.click(36, 44)
    page.says("#saved", "Saved")
    page.keys("t")
    page.says("#track-state", "frames 0 to 11")
    page.keys("\ue014" * 3)
    page.wait("return patchray.state.frame === 3 && patchray.view.picture")
    assert re.search("tracked|uncertain|lost|recovered", page.text("#objects"))
    assert [(row["frame"], row["x"]) for row in saved(tmp_path / "m.csv")] == [
        ("0", "30"), ("0", "36"),
    ]  # fmt: skip
