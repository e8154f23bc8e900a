"""The first steps of `benchmarks.gpu` on a CPU: its figures mean nothing there."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu, gpu_parts
from vit.config import ModelConfig

TINY = ModelConfig(image_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=1)


@pytest.fixture
def setting(tmp_path):
    return gpu_parts.Setting(torch.device("cpu"), seconds=0.0, batch=2, work=tmp_path)


def test_a_vit_is_measured_beside_timms(setting):
    rows = gpu_parts.vit(setting, TINY)
    assert rows.keys() == {"batch", "ours", "timm"}


def test_a_whole_step_is_measured(setting, monkeypatch):
    small = ModelConfig(image_size=32, patch_size=16, embed_dim=16, depth=1, num_heads=1)
    monkeypatch.setattr(gpu_parts, "SEED", small)
    assert gpu_parts.step_calls(setting).keys() == {"adamw", "muon"}


def test_mini_is_measured(setting, monkeypatch):
    monkeypatch.setattr(gpu_parts, "SIZES", {"tiny": (32, 48)})
    rows = gpu_parts.encoder(setting, "mini")
    assert rows["tiny"].keys() == {"frames_per_s", "prepare_ms"}


def test_parts_are_written_one_by_one_and_what_failed_is_measured_again(tmp_path, monkeypatch):
    file, asked = tmp_path / "gpu.json", []
    answers = {"step": {"adamw": 1}, "encode mini": {"failed": ["no GPU"]}}

    def run(name, options, until):
        asked.append(name)
        if len(asked) == 2:
            assert json.loads(file.read_text())["parts"] == {"step": {"adamw": 1}}
        return answers[name]

    monkeypatch.setattr(gpu, "in_process", run)
    flags = ["--json", str(file), "--device", "cpu", "--parts", "step", "encode mini"]
    assert gpu.main(flags) == 1
    answers["encode mini"] = {"480p": 5}
    assert gpu.main(flags) == 0
    assert asked == ["step", "encode mini", "encode mini"]


def test_a_part_runs_in_a_process_and_its_failure_is_kept(tmp_path, monkeypatch):
    ran = subprocess.run

    def fail(command, **more):
        return ran([sys.executable, "-c", "raise SystemExit('no driver')"], **more)

    monkeypatch.setattr(subprocess, "run", fail)
    file = tmp_path / "gpu.json"
    assert gpu.main(["--json", str(file), "--device", "cpu", "--parts", "step"]) == 1
    assert json.loads(file.read_text())["parts"]["step"] == {"failed": ["no driver"]}
