"""Whether workers fit on the nodes that are there, and on those that may be added."""

import math
from collections import Counter
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Ask:
    """Workers, and what each of them takes from one node."""

    workers: int
    cpus: float
    gpus: float = 0.0
    trial: bool = False
    """They are the processes of one trial of a sweep, whose flags say what all of them take."""

    @property
    def flag_of_gpus(self) -> str:
        """What says how many GPUs."""
        return "--gpus-per-trial" if self.trial else "--gpus-per-worker"


@dataclass(frozen=True)
class Node:
    """What a node that is there has, busy or not."""

    cpus: float
    gpus: float = 0.0
    type: str = ""
    """Its name among the autoscaler's node types; empty if that did not start it."""
    head: bool = False


@dataclass(frozen=True)
class NodeType:
    """A kind of node that the autoscaler may add."""

    name: str
    cpus: float
    gpus: float
    limit: int
    """Most nodes of this type."""


@dataclass(frozen=True)
class Nodes:
    """The nodes of a cluster, and what it may grow by."""

    there: tuple[Node, ...]
    types: tuple[NodeType, ...] | None = ()
    """Empty: nothing scales this cluster. None: something out of sight may (KubeRay)."""
    limit: int = 0
    """Most nodes beside the head."""


@dataclass(frozen=True)
class Room:
    """How many workers fit on the nodes that are there when idle, and how many after growth."""

    now: int
    ever: float


def slots(ask: Ask, cpus: float, gpus: float) -> int:
    """How many workers fit on an idle node of so many CPUs and GPUs.

    In Ray's units of 1/10000: three times 0.66 fit in 2, three times 0.6667 do not. A share of a
    GPU is of one GPU: three times 0.6 do not fit on two.
    """
    cpu, gpu = round(ask.cpus * 10_000), round(ask.gpus * 10_000)
    by_cpu = round(cpus * 10_000) // cpu if cpu else ask.workers
    if not gpu:
        by_gpu = ask.workers
    elif gpu < 10_000:
        by_gpu = int(gpus) * (10_000 // gpu)
    else:
        by_gpu = round(gpus * 10_000) // gpu
    return min(by_cpu, by_gpu)


def room(ask: Ask, nodes: Nodes) -> Room:
    """How many workers like those of `ask` the nodes hold; alike, so that greedy filling is best.

    Added nodes count within the limit of their type and of the cluster, the roomiest types first.
    """
    now = sum(slots(ask, node.cpus, node.gpus) for node in nodes.there)
    if nodes.types is None:
        return Room(now, math.inf)
    count = Counter(node.type for node in nodes.there if not node.head)
    left, ever = nodes.limit - count.total(), now
    for kind in sorted(nodes.types, key=lambda kind: -slots(ask, kind.cpus, kind.gpus)):
        more = max(0, min(left, kind.limit - count[kind.name]))
        ever += more * slots(ask, kind.cpus, kind.gpus)
        left -= more
    return Room(now, ever)


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def amounts(cpus: float, gpus: float) -> str:
    """CPUs and GPUs in words."""
    return _count(cpus, "CPU") + (f" and {_count(gpus, 'GPU')}" if gpus else "")


def _wish(ask: Ask) -> str:
    if ask.workers == 1:
        return f"1 worker asks for {amounts(ask.cpus, ask.gpus)}"
    return f"{ask.workers} workers ask for {amounts(ask.cpus, ask.gpus)} each"


def _supply(ask: Ask, nodes: Nodes) -> str:
    """The nodes that are there, by type and size, and what may be added."""

    def size(node: Node | NodeType) -> str:
        no_gpu = " and no GPU" if ask.gpus and not node.gpus else ""
        return amounts(node.cpus, node.gpus) + no_gpu

    if nodes.types == () and len(nodes.there) == 1:
        return f"this machine has {size(nodes.there[0])}"
    kinds = Counter(
        f"{node.type or ('head' if node.head else 'node')} ({size(node)})" for node in nodes.there
    )
    text = "the cluster has " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    grow = [f"{kind.limit} {kind.name} ({size(kind)})" for kind in nodes.types or () if kind.limit]
    if grow:
        text += f" and may grow to {', '.join(grow)}, {nodes.limit} in all beside the head"
    return text


def waiting(ask: Ask, nodes: Nodes) -> str:
    """The line for people while the workers do not fit yet."""
    now = room(ask, nodes).now
    if now >= ask.workers:
        return f"waiting: {_wish(ask)}; {_supply(ask, nodes)}, but other jobs hold some of it"
    return f"waiting for nodes, {now} of {ask.workers} fit: {_wish(ask)}; {_supply(ask, nodes)}"


def late(ask: Ask, nodes: Nodes, seconds: float) -> str:
    """Why it is not gone on: nodes were waited for long enough."""
    now = room(ask, nodes).now
    flag = "--workers-per-trial" if ask.trial else "--workers"
    cure = f"{flag} {now} would fit" if now else "not one fits"
    waited = f", after {seconds:g} s of waiting for nodes" if seconds else ""
    return f"{_wish(ask)}; {_supply(ask, nodes)}{waited}: {cure}; --wait-for-nodes waits longer"


def refusal(ask: Ask, nodes: Nodes) -> str:
    """Why the workers can never fit, and which flags would make them fit."""
    flags = []
    per, times = ("trial", ask.workers) if ask.trial else ("worker", 1)
    if ever := int(room(ask, nodes).ever):
        flags.append(f"--workers{'-per-trial' if ask.trial else ''} {ever}")
    if cpus := _smaller_cpus(ask, nodes):
        flags.append(f"--cpus-per-{per} {cpus * times:g}")
    if ask.gpus and ask.cpus and room(replace(ask, gpus=0.0), nodes).ever >= ask.workers:
        flags.append(f"{ask.flag_of_gpus} 0")
    cure = (
        f"use {', or '.join(flags)}" if flags else "lower what a worker takes, or add larger nodes"
    )
    return f"{_wish(ask)}; {_supply(ask, nodes)}: {cure}"


def _smaller_cpus(ask: Ask, nodes: Nodes) -> float | None:
    """The most CPUs a worker, in hundredths, with which all fit: an equal share of some node."""
    sizes = {node.cpus for node in nodes.there} | {kind.cpus for kind in nodes.types or ()}
    shares = {math.floor(size / k * 100) / 100 for size in sizes for k in range(1, ask.workers + 1)}
    for cpus in sorted(shares, reverse=True):
        if 0 < cpus < ask.cpus and room(replace(ask, cpus=cpus), nodes).ever >= ask.workers:
            return cpus
    return None
