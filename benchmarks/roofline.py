"""What limits each job on a GPU, on paper: arithmetic, memory, launches or the host's cores.

    python -m benchmarks.roofline --json benchmarks/results/roofline.json
    python -m benchmarks.roofline --host host.json --price H200=5.2

Nothing runs on a GPU. Models are computed on torch's meta device, operator by operator, in
bfloat16, and for each the floating-point operations, the bytes that are read and written if nothing
is fused (but attention is), and the launches are counted. A unit of work takes the longest of

    operations / the peak of the tensor cores      bytes / the bandwidth of the memory
    launches x 5 us of the host's one thread       the host's processor time / its cores

so the table is a bound that no program reaches: well-written kernels reach half of it. Training is
a step of forward, backward and AdamW; masking a frame is encoding it in a micro-batch of 8 and
decoding one object; without CUDA graphs, without torch.compile. The host's milliseconds a frame
come from a file of `benchmarks.masking.host`, measured; without it that bound is left out.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from segment_anything import sam_model_registry
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.gpu_parts import S16, SEED
from masking.segmenter.mini import Mini
from masking.segmenter.official import Official
from vit.config import ModelConfig
from vit.cost import parameters
from vit.model import outline

LAUNCH_SECONDS = 5e-6
"""Host time of a kernel launch: about 3 microseconds in CUDA, at least 2 in torch."""
ADAMW_BYTES = 28
"""Memory traffic in bytes for each parameter and step: the weight, its gradient and two moments are
read; all but the gradient are written."""
BATCH, MICRO_BATCH = 256, 8


@dataclass(frozen=True)
class Gpu:
    """A GPU as its data sheet has it, and an hour of it as AWS lists it."""

    name: str
    tflops: float
    """bfloat16, dense."""
    bandwidth: float
    """Bytes/s."""
    cores: int
    """Physical cores of the host for each GPU."""
    dollars: float
    """An hour; on demand, in us-east-1, of the instance's share for one GPU."""


GPUS = (
    Gpu("A10G", 70, 600e9, 4, 1.21),  # g5.2xlarge
    Gpu("H100", 989, 3350e9, 12, 6.88),  # p5.48xlarge / 8
    Gpu("H200", 989, 4800e9, 12, 7.91),  # p5en.48xlarge / 8
)


class Counted(TorchDispatchMode):
    """Counts what the operators of a block cost."""

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        self.flops = self.bytes = 0.0
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view or func._schema.name.startswith(("aten::empty", "aten::new_empty")):
            return out
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        self.launches += 1
        self.bytes += sum(x.nbytes for x in tensors)
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        return out


class _Fused(torch.autograd.Function):
    """Attention as a fused kernel: one launch that reads its operands, and writes its result."""

    @staticmethod
    def forward(ctx: Any, counted: Counted, q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Any:
        ctx.counted, ctx.operands = counted, (q, k, v, *bias)
        _count(counted, (q, k, v, *bias), backward=False)
        return torch.empty_like(q)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        _count(ctx.counted, ctx.operands, backward=True)
        return (None, *(torch.empty_like(x) for x in ctx.operands))


def _count(counted: Counted, operands: tuple[Tensor, ...], *, backward: bool) -> None:
    q, k = operands[:2]
    products = 5 if backward else 2  # scores again, then four gradients; scores and their use
    counted.flops += products * 2 * q.numel() * k.shape[-2]
    counted.bytes += (2 if backward else 1) * (sum(x.nbytes for x in operands) + q.nbytes)
    counted.launches += 2 if backward else 1


@contextmanager
def counting() -> Iterator[Counted]:
    """Count what is computed in the block."""
    counted = Counted()

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, **_: Any) -> Any:
        bias = () if attn_mask is None else (attn_mask,)
        return _Fused.apply(counted, q, k, v, *bias)

    precise = mock.patch.object(torch, "autocast", return_value=nullcontext())  # not on meta
    with precise, counted, mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield counted


@dataclass
class Work:
    """What a unit of work costs."""

    name: str
    unit: str
    flops: float
    bytes: float
    launches: float
    host_ms: float = 0.0
    """Processor time of the host beside launches."""


def training(name: str, shape: ModelConfig) -> Work:
    """Return the cost of an image of a training step."""
    model = outline(shape, 10).bfloat16()
    images = torch.empty(BATCH, 3, shape.image_size, shape.image_size, device="meta").bfloat16()
    with counting() as counted:
        model(images).float().logsumexp(dim=1).sum().backward()
    optimizer = ADAMW_BYTES * parameters(shape, 10)
    return Work(
        name,
        "image",
        counted.flops / BATCH,
        (counted.bytes + optimizer) / BATCH,
        counted.launches / BATCH,
    )


def masking(name: str, network: Any, side: tuple[int, int], host_ms: float) -> Work:
    """Return the cost of a frame of `jobs.mask` with one object."""
    images = torch.empty(MICRO_BATCH, 3, *side, device="meta")
    with torch.no_grad(), counting() as encoding:
        features = network.encode(images)
    one = tuple(x[:1] for x in features)
    points, labels = torch.zeros(1, 4, 2, device="meta"), torch.ones(1, 4, device="meta").long()
    boxes = torch.full((1, 4), torch.nan, device="meta")
    with torch.no_grad(), counting() as decoding:
        network.decode(one, None, points, labels, boxes, None)
    return Work(
        name,
        "frame",
        encoding.flops / MICRO_BATCH + decoding.flops,
        encoding.bytes / MICRO_BATCH + decoding.bytes,
        encoding.launches / MICRO_BATCH + decoding.launches,
        host_ms,
    )


def sam(kind: str) -> Official:
    """Return a SAM of the package without numbers, its encoder in bfloat16."""
    with torch.device("meta"):
        network = sam_model_registry[kind]()
    network.pixel_mean, network.pixel_std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    found = Official(network)
    found.lower()
    network.pixel_mean, network.pixel_std = (x.to("meta") for x in (network.pixel_mean,) * 2)
    return found


def works(host: dict[str, float]) -> list[Work]:
    """Return all units of work; `host` has milliseconds a frame by the height of the frame."""
    with torch.device("meta"):
        mini = Mini()
    found = [training("train the seed's ViT, 32 px", SEED), training("train ViT-S/16, 224 px", S16)]
    for kind, make in (("mini", lambda: mini), ("vit_b", lambda: sam("vit_b")),
                       ("vit_h", lambda: sam("vit_h"))):  # fmt: skip
        network = make()
        for height, width in ((480, 854), (1080, 1920)):
            side = network.canvas((height, width))
            ms = host.get(f"{height}p", 0.0)
            found.append(masking(f"mask with {kind}, {height}p", network, side, ms))
    return found


def bounds(work: Work, gpu: Gpu) -> dict[str, float]:
    """Return the units/s that each part of the machine allows."""
    found = {
        "arithmetic": gpu.tflops * 1e12 / work.flops,
        "memory": gpu.bandwidth / work.bytes,
        "launches": 1 / (work.launches * LAUNCH_SECONDS),
    }
    if work.host_ms:
        found["cores"] = 1000 * gpu.cores / work.host_ms
    return found


def line(work: Work, gpu: Gpu) -> str:
    """Return a row of the table."""
    found = bounds(work, gpu)
    limit = min(found, key=found.__getitem__)
    pace = found[limit]
    device = min(found[name] for name in ("arithmetic", "memory"))
    cores = f"{device * work.host_ms / 1000:.0f}" if work.host_ms else "-"
    cost = gpu.dollars / 3600 * 1e6 / pace
    return (
        f"| {work.name} | {gpu.name} | {work.flops / 1e9:,.2f} | {work.bytes / 1e6:,.1f} |"
        f" {work.launches:,.1f} | {limit} | {pace:,.0f} | {device:,.0f} | {cores} | {cost:,.2f} |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the counts there")
    parser.add_argument("--host", type=Path, help='JSON like {"480p": 9.1, "1080p": 25.0}, ms')
    parser.add_argument("--price", nargs="*", default=[], help="GPU=DOLLARS an hour")
    options = parser.parse_args(argv)
    host = json.loads(options.host.read_text()) if options.host else {}
    prices = {name: float(price) for name, price in (each.split("=") for each in options.price)}
    gpus = [Gpu(**{**asdict(gpu), "dollars": prices.get(gpu.name, gpu.dollars)}) for gpu in GPUS]
    found = works(host)
    print(
        "| job | GPU | GFLOP a unit | MB | launches | limited by | units/s | without the host |"
        " cores wanted | $ a million |\n| --- | --- |" + " ---: |" * 3 + " --- |" + " ---: |" * 4
    )
    for work in found:
        for gpu in gpus:
            print(line(work, gpu))
    if options.json:
        rows = {"works": [asdict(work) for work in found], "gpus": [asdict(gpu) for gpu in gpus]}
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
