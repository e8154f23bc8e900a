"""SAM's encoder and decoder beside the `segment_anything` package and beside a matrix product.

    python -m benchmarks.masking.sam --json sam.json
    python -m benchmarks.masking.sam --model vit_l --threads 8 --repeats 5 --compile
    python -m benchmarks.masking.sam --device cuda --compile

Weights are random: speed does not depend on them. Every repeat runs each path once, in turn, so
that a noisy machine is noisy for all of them; times are wall time, for one frame and for one prompt
set.

- `predictor`: `SamPredictor.set_image` and `.predict`, float32, as people use the package;
- `ours`: `Segmenter.encode` and `.decode` at the precision that `auto` takes;
- `product`: two square matrices of `SIDE` multiplied, at that precision; its FLOP/s are what plain
  torch reaches on the processor. The encoder's are counted without the padding of its windows.

One set is a click whose best mask is upsampled to the frame. A GPU is synchronised. On two cores it
takes about five minutes, nearly all of them for the predictor.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import nn

from jobs.cluster.workers import keep_memory
from jobs.run.machine import hardware, versions
from masking.segmenter.official import Official
from masking.segmenter.sam import Prompts, Segmenter, resolve

FRAME = (480, 854)
"""(H, W) of the frames, in pixels."""
SETS = 16
"""Prompt sets decoded in one call."""
SINGLY = "ours, a call each"
SIDE = 4096
"""Side of the matrices that are multiplied."""
Run = Callable[[], object]


def random_sam(model: str) -> Sam:
    """Build one of the package's models, all of its weights random, positions as well."""
    torch.manual_seed(0)
    sam = sam_model_registry[model]().eval()
    for name, parameter in sam.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            nn.init.normal_(parameter, std=0.02)
    return sam


def encoder_flops(encoder: ImageEncoderViT) -> int:
    """Count the operations for one image; a multiply-add is two.

    Padding of windows, norms and softmax do not count.
    """
    grid = encoder.img_size // 16
    tokens, width = grid * grid, encoder.pos_embed.shape[-1]
    channels = encoder.neck[0].out_channels
    total = tokens * (3 * 16 * 16 * width + channels * width + 9 * channels * channels)
    for block in encoder.blocks:
        side = block.window_size or grid
        hidden = block.mlp.lin1.out_features
        linear = 4 * width * width + 2 * width * hidden
        total += tokens * (linear + 2 * side * side * width + 2 * side * width)
    return 2 * total


class Bench:
    """Every path on the same frame and clicks."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Build the models; `args` are those of `main`."""
        self.device = torch.device(args.device)
        self.precision = resolve("auto", self.device)
        rng = np.random.default_rng(0)
        self.frame = rng.integers(0, 256, (*FRAME, 3), dtype=np.uint8)
        self.clicks = rng.uniform((0, 0), FRAME[::-1], (SETS, 1, 2))
        plain = random_sam(args.model)
        self.flops = encoder_flops(plain.image_encoder)
        self.predictor = SamPredictor(plain.to(self.device))
        sam = random_sam(args.model)
        network, ours = Official(sam), f"ours, {self.precision}"
        if self.precision == "bfloat16":
            network.lower()
        self.segmenters = {ours: Segmenter(network, self.device, self.precision)}
        if args.compile:
            compiled = Segmenter(network, self.device, self.precision, compile=True)
            self.segmenters[f"{ours}, compiled"] = compiled

    def encoding(self) -> dict[str, Run]:
        """Return the paths that encode one frame, and the matrix product."""
        kind = getattr(torch, self.precision)
        a, b = (torch.randn(SIDE, SIDE, device=self.device).to(kind) for _ in range(2))
        return {
            "predictor": lambda: self.predictor.set_image(self.frame),
            **{n: partial(s.encode, self.frame[None]) for n, s in self.segmenters.items()},
            "product": lambda: a @ b,
        }

    def decoding(self) -> dict[str, Run]:
        """Return the paths that decode all prompt sets, in a call each and in one."""
        segmenter = next(iter(self.segmenters.values()))
        embeddings, label = segmenter.encode(self.frame[None]), np.array([1])
        self.predictor.set_image(self.frame)
        singly = [Prompts.of(FRAME, [click], [label]) for click in self.clicks]
        together = Prompts.of(FRAME, list(self.clicks), [label] * SETS)
        return {
            "predictor": lambda: [self.predictor.predict(c, label) for c in self.clicks],
            SINGLY: lambda: [segmenter.decode(embeddings, p) for p in singly],
            "ours, one call": lambda: segmenter.decode(embeddings, together),
        }

    def seconds(self, paths: dict[str, Run], repeats: int) -> dict[str, list[float]]:
        """Time every path in turn, after one round to warm up; the predictor needs none."""
        times: dict[str, list[float]] = {name: [] for name in paths}
        for number in range(repeats + 1):
            for name, path in paths.items():
                if number == 0 and name == "predictor":
                    continue
                start = self.now()
                path()
                spent = self.now() - start
                print(f"{number} of {repeats} {name}: {spent:.3f} s", file=sys.stderr)
                if number > 0:
                    times[name].append(spent)
        return times

    def now(self) -> float:
        """Return wall time in seconds once the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format median, least and most."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratios(times: dict[str, list[float]], name: str, base: str = "predictor") -> list[float]:
    """Return how many times as fast as `base` a path is, repeat by repeat."""
    return [a / b for a, b in zip(times[base], times[name], strict=True)]


def encode_table(times: dict[str, list[float]], flops: int) -> str:
    """Return Markdown: seconds for a frame, speed over the predictor, % of the product's FLOP/s."""
    product = [2 * SIDE**3 / t for t in times["product"]]
    lines = [
        "| a frame | s | predictor over it | GFLOP/s | % of the product's |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, values in times.items():
        work = 2 * SIDE**3 if name == "product" else flops
        rates = [work / t for t in values]
        shares = [100 * a / b for a, b in zip(rates, product, strict=True)]
        faster = "" if name == "product" else spread(ratios(times, name))
        giga = spread([rate / 1e9 for rate in rates], 0)
        lines.append(f"| {name} | {spread(values)} | {faster} | {giga} | {spread(shares, 0)} |")
    return "\n".join(lines)


def decode_table(times: dict[str, list[float]]) -> str:
    """Return Markdown: milliseconds for a prompt set, speed over the predictor and single calls."""
    lines = [
        f"| a set of {SETS} | ms | predictor over it | our own calls over it |",
        "| --- | --- | --- | --- |",
    ]
    for name, values in times.items():
        each = [1000 * t / SETS for t in values]
        faster = [spread(ratios(times, name, base)) for base in ("predictor", SINGLY)]
        lines.append(f"| {name} | {spread(each, 1)} | {' | '.join(faster)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="vit_b", choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--device", default="cpu", help="cpu, cuda (cpu)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch, on a CPU (2)")
    parser.add_argument("--repeats", type=int, default=5, help="how often each is timed (5)")
    parser.add_argument("--compile", action="store_true", help="a compiled encoder, too")
    parser.add_argument("--json", type=Path, help="write times, settings and environment here")
    args = parser.parse_args(argv)
    keep_memory()  # as in a job's workers, for all paths alike
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    encoding = bench.seconds(bench.encoding(), args.repeats)
    decoding = bench.seconds(bench.decoding(), args.repeats)
    print(encode_table(encoding, bench.flops))
    print(f"\n{decode_table(decoding)}\n")
    result: dict[str, Any] = {
        "model": args.model,
        "frame": FRAME,
        "n": args.repeats,
        "sets": SETS,
        "gflop": bench.flops / 1e9,
        "product_gflop": 2 * SIDE**3 / 1e9,
        "encode_seconds": encoding,
        "decode_seconds": decoding,
        "hardware": hardware(),
        "versions": versions() | {"segment_anything": metadata.version("segment_anything")},
    }
    print(f"{args.model}, {bench.flops / 1e9:.0f} GFLOP a frame, n = {args.repeats}")
    print(f"{json.dumps(result['hardware'])}\n{json.dumps(result['versions'])}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
