"""What `benchmarks.gpu` measures: each part is a function that returns figures as JSON values."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.masking.sam import random_sam
from benchmarks.stand_in import write_clip, write_manifest
from benchmarks.training import timm_train
from jobs.run.device import choose_device
from jobs.weights.segmenter import load_segmenter
from masking.segmenter.official import Official
from masking.segmenter.sam import Segmenter
from vit.config import AugmentConfig, DatasetConfig, ModelConfig, OptimConfig
from vit.graphs import use_graphs
from vit.model import build
from vit.numerics import autocast
from vit.optim import Optimizer
from vit.steps import Batch, StepConfig, gradients

SIZES = {"480p": (480, 854), "1080p": (1080, 1920)}
SEED = ModelConfig(image_size=32, patch_size=4, embed_dim=384, depth=12, num_heads=6)
S16 = ModelConfig(image_size=224, patch_size=16, embed_dim=384, depth=12, num_heads=6)
CUDA_CALLS = (
    *("cudaLaunchKernel", "cudaLaunchKernelExC", "cudaGraphLaunch", "cudaMemcpyAsync"),
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaHostAlloc"),
)
"""Calls of the CUDA runtime that a trace counts: launches, copies, waits, pinned allocations."""


@dataclass(frozen=True)
class Setting:
    """Where and how long to measure."""

    device: torch.device
    seconds: float = 2.0
    """Time that a rate is measured for."""
    batch: int = 256
    """Images of a batch."""
    frames: int = 64
    """Frames of a clip."""
    work: Path = Path("runs/gpu")
    """Folder of what has to outlive a part: the training on CIFAR-10, and weights."""
    until: float = float("inf")
    """When the part must be over, by `time.time`."""


def rate(work: Callable[[], object], setting: Setting) -> float:
    """Return how often a second `work` is done, after three times to warm up."""
    cuda = setting.device.type == "cuda"
    for _ in range(3 if cuda else 1):
        work()
    if cuda:
        torch.cuda.synchronize()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < setting.seconds:
        work()
        count += 1
        if cuda and count % 8 == 0:
            torch.cuda.synchronize()  # else launches would run ahead of the clock
    if cuda:
        torch.cuda.synchronize()
    return count / (time.perf_counter() - start)


def vit(setting: Setting, shape: ModelConfig) -> dict[str, Any]:
    """Images/s of forward, backward and AdamW in bfloat16: ours, with CUDA graphs, timm's, and both
    compiled."""
    images = torch.randn(setting.batch, 3, shape.image_size, shape.image_size).to(setting.device)
    labels = torch.zeros(setting.batch, dtype=torch.int64, device=setting.device)
    rows: dict[str, Any] = {"batch": setting.batch}

    def measure(model: nn.Module) -> float:
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def step() -> None:
            with autocast(setting.device, "bfloat16"):
                logits = model(images)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return setting.batch * rate(step, setting)

    def ours() -> nn.Module:
        return build(shape, 10, seed=0).to(setting.device)

    def timms() -> nn.Module:
        return timm_train.build(shape, 10).to(setting.device)

    rows["ours"], rows["timm"] = measure(ours()), measure(timms())
    if setting.device.type == "cuda":
        model = ours()
        rows["graphs were"] = use_graphs(model, images, None, "bfloat16")
        rows["ours, graphs"] = measure(model)
        rows["ours, compiled"] = measure(torch.compile(ours(), dynamic=False))
        rows["timm, compiled"] = measure(torch.compile(timms(), dynamic=False))
    return rows


def step_calls(setting: Setting) -> dict[str, Any]:
    """Steps/s of a whole step of the seed's model, and its calls of the CUDA runtime a step."""
    from torch.profiler import ProfilerActivity, profile

    rows: dict[str, Any] = {}
    for name in ("adamw", "muon"):
        optim = OptimConfig(optimizer=name)  # type: ignore[arg-type]
        step = _whole_step(setting, optim)
        found: dict[str, Any] = {"images_per_s": setting.batch * rate(step, setting)}
        if setting.device.type == "cuda":
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
                for _ in range(5):
                    step()
            events = {event.key: event.count / 5 for event in trace.key_averages()}
            found |= {call: events[call] for call in CUDA_CALLS if call in events}
        rows[name] = found
    return rows


def _whole_step(setting: Setting, optim: OptimConfig) -> Callable[[], object]:
    """Return a training step as `jobs.train` takes it, on random images, with all augmentation."""
    shape = replace(SEED, drop_path_rate=0.1)
    augment = AugmentConfig(
        crop_padding=4, policy="autoaugment-cifar10", erasing=0.25, mixup=0.8, cutmix=1.0
    )
    config = StepConfig(shape, augment, DatasetConfig(), optim, "bfloat16", seed=0)
    device, count = setting.device, setting.batch
    model = build(shape, 10, seed=0).to(device)
    optimizer = Optimizer(model, optim)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8).to(device)
    labels = torch.zeros(count, dtype=torch.int64, device=device)
    done = iter(range(10**9))

    def step() -> None:
        number = next(done)
        samples = torch.arange(count) + number * count
        batch = Batch(images, labels, samples, count)
        gradients(model, batch, config, epoch=0, step=number, mixing=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def segmenter_of(name: str, device: torch.device) -> Segmenter:
    """Return mini, or a SAM with random weights."""
    if name == "mini":
        return load_segmenter("mini", device)
    return Segmenter(Official(random_sam(name)), device)


def encoder(setting: Setting, name: str) -> dict[str, Any]:
    """Frames/s of the encoder, and milliseconds that the host takes to prepare a frame."""
    segmenter, rows = segmenter_of(name, setting.device), {}
    for shown, (height, width) in SIZES.items():
        count = segmenter.frames_at_once
        frames = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
        start = time.perf_counter()
        prepared = segmenter.prepare(frames)
        host = (time.perf_counter() - start) / count
        per_second = count * rate(lambda p=prepared: segmenter.encode(p), setting)
        rows[shown] = {"frames_per_s": per_second, "prepare_ms": 1000 * host}
    if setting.device.type == "cuda":
        rows["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return {"precision": segmenter.precision, **rows}


def masks(setting: Setting, name: str) -> dict[str, Any]:
    """Frames/s of `jobs.mask` with 1, 2 and 4 workers on one GPU, as far as the time reaches."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, weights = Path(temporary), name
        if name != "mini":
            weights = f"{temporary}/{name}.pth"
            torch.save(random_sam(name).state_dict(), weights)
        for shown, size in SIZES.items():
            names = [f"{shown}-{number}.mp4" for number in range(4)]
            for number, clip in enumerate(names):
                write_clip(folder / clip, setting.frames, size, seed=number)
            manifest = write_manifest(folder / f"{shown}.csv", names, size)
            for workers in (1, 2, 4):
                key = f"{shown}, {workers} workers"
                if time.time() + 45 > setting.until:
                    rows[key] = "no time left"
                    continue
                out = folder / f"{shown}-{workers}"
                flags = ["--manifest", str(manifest), "--root", temporary, "--out", str(out)]
                flags += ["--weights", weights, "--workers", str(workers)]
                flags += ["--device", setting.device.type]
                _job("jobs.mask", flags)
                rows[key] = json.loads((out / "summary.json").read_text())["frames_per_s"]
    return rows


def tests(setting: Setting) -> dict[str, Any]:
    """The tests that need a GPU: how many passed and failed, and the end of what pytest says."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "tests.fail_if_all_skipped"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"exit": done.returncode, "output": done.stdout.splitlines()[-30:]}


def cifar10(setting: Setting) -> dict[str, Any]:
    """Train `cifar10_vit.yaml` for the time that is left; the next run resumes it."""
    out = setting.work / "cifar10_vit"
    command = [sys.executable, "-m", "jobs.train", "--config", "cifar10_vit.yaml"]
    command += ["--out", str(out), "--device", setting.device.type, "--cpus-per-worker", "4"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = process.communicate(timeout=max(1, setting.until - time.time() - 20))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # saves, and the same command resumes
        output, _ = process.communicate()
    history = out / "metrics.csv"
    rows = history.read_text().splitlines() if history.exists() else []
    return {"exit": process.returncode, "output": output.splitlines()[-8:], "metrics": rows[-2:]}


def _job(module: str, flags: list[str]) -> None:
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    command = [sys.executable, "-m", module, *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-5:]))


PARTS: dict[str, tuple[float, Callable[[Setting], dict[str, Any]]]] = {
    "tests": (120, tests),
    "vit seed": (60, lambda setting: vit(setting, SEED)),
    "step": (30, step_calls),
    "encode mini": (20, lambda setting: encoder(setting, "mini")),
    "encode vit_b": (30, lambda setting: encoder(setting, "vit_b")),
    "masks mini": (180, lambda setting: masks(setting, "mini")),
    "masks vit_b": (150, lambda setting: masks(setting, "vit_b")),
    "vit s16": (90, lambda setting: vit(setting, S16)),
    "encode vit_h": (60, lambda setting: encoder(setting, "vit_h")),
    "masks vit_h": (150, lambda setting: masks(setting, "vit_h")),
    "cifar10": (float("inf"), cifar10),
}
"""Seconds that a part may take at most, and the part; the most telling ones come first."""


def run_part(name: str, setting: Setting) -> dict[str, Any]:
    """Measure one part in this process."""
    choose_device(setting.device.type)
    torch.cuda.empty_cache()
    return PARTS[name][1](setting)
