"""Whether workers fit on the nodes that a cluster has, and on those that may be added."""

import math
from collections import Counter
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Demand:
    """A number of workers, and what each of them takes from one node."""

    workers: int
    cpus: float
    gpus: float = 0.0
    trial: bool = False
    """Whether they are the processes of one trial of a sweep, whose flags name the amounts of all
    of them together."""

    @property
    def gpus_flag(self) -> str:
        """The flag that sets the number of GPUs."""
        return "--gpus-per-trial" if self.trial else "--gpus-per-worker"

    @property
    def workers_flag(self) -> str:
        """The flag that sets the number of workers."""
        return "--workers-per-trial" if self.trial else "--workers"


@dataclass(frozen=True)
class Node:
    """The CPUs and GPUs of a node in the cluster, whether in use or free."""

    cpus: float
    gpus: float = 0.0
    type: str = ""
    """Name of its type in the autoscaler's configuration; empty if no autoscaler started it."""
    head: bool = False


@dataclass(frozen=True)
class NodeType:
    """A type of node that the autoscaler may add."""

    name: str
    cpus: float
    gpus: float
    limit: int
    """Maximum number of nodes of this type."""


@dataclass(frozen=True)
class Nodes:
    """The nodes of a cluster, and the node types that its autoscaler may add."""

    present: tuple[Node, ...]
    types: tuple[NodeType, ...] | None = ()
    """Empty if nothing scales this cluster; None if its autoscaler cannot be read (KubeRay)."""
    limit: int = 0
    """Maximum number of nodes, the head not counted."""


@dataclass(frozen=True)
class Fit:
    """How many workers fit on the idle present nodes, and how many after the cluster has grown."""

    now: int
    ever: float


def workers_per_node(demand: Demand, cpus: float, gpus: float) -> int:
    """Return how many workers fit on an idle node with so many CPUs and GPUs.

    Amounts are compared in Ray's units of 1/10000: three times 0.66 fit in 2, three times 0.6667 do
    not. A fraction of a GPU is taken from one GPU: three times 0.6 do not fit on two.
    """
    cpu, gpu = round(demand.cpus * 10_000), round(demand.gpus * 10_000)
    by_cpu = round(cpus * 10_000) // cpu if cpu else demand.workers
    if not gpu:
        by_gpu = demand.workers
    elif gpu < 10_000:
        by_gpu = int(gpus) * (10_000 // gpu)
    else:
        by_gpu = round(gpus * 10_000) // gpu
    return min(by_cpu, by_gpu)


def fit(demand: Demand, nodes: Nodes) -> Fit:
    """Return how many workers of this size fit on the nodes.

    All workers are equal, so filling greedily is best: nodes are added within the limit of their
    type and of the cluster, the types that hold the most workers first.
    """
    now = sum(workers_per_node(demand, node.cpus, node.gpus) for node in nodes.present)
    if nodes.types is None:
        return Fit(now, math.inf)
    count = Counter(node.type for node in nodes.present if not node.head)
    left, ever = nodes.limit - count.total(), now
    for kind in sorted(
        nodes.types, key=lambda kind: -workers_per_node(demand, kind.cpus, kind.gpus)
    ):
        more = max(0, min(left, kind.limit - count[kind.name]))
        ever += more * workers_per_node(demand, kind.cpus, kind.gpus)
        left -= more
    return Fit(now, ever)


def share_of_gpu(demand: Demand, nodes: Nodes, most: int) -> float | None:
    """Return the GPUs of each worker with which all fit: one, or else an equal share of one.

    Args:
        demand: the workers; its `gpus` are not used.
        nodes: an autoscaler that cannot be read counts as none.
        most: number of workers that may share a GPU.

    Returns:
        1, 1/2, 1/3 ..., rounded down to Ray's unit; None: they do not fit, even `most` on a GPU.
    """
    known = nodes if nodes.types is not None else replace(nodes, types=())
    for sharing in range(1, most + 1):
        gpus = 10_000 // sharing / 10_000
        if fit(replace(demand, gpus=gpus), known).ever >= demand.workers:
            return gpus
    return None


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def amounts(cpus: float, gpus: float) -> str:
    """Return numbers of CPUs and GPUs in words."""
    return _count(cpus, "CPU") + (f" and {_count(gpus, 'GPU')}" if gpus else "")


def _describe_demand(demand: Demand) -> str:
    if demand.workers == 1:
        return f"1 worker needs {amounts(demand.cpus, demand.gpus)}"
    return f"{demand.workers} workers need {amounts(demand.cpus, demand.gpus)} each"


def _describe_nodes(demand: Demand, nodes: Nodes) -> str:
    """Name the present nodes by type and size, and those that may be added."""

    def size(node: Node | NodeType) -> str:
        no_gpu = " and no GPU" if demand.gpus and not node.gpus else ""
        return amounts(node.cpus, node.gpus) + no_gpu

    if nodes.types == () and len(nodes.present) == 1:
        return f"this machine has {size(nodes.present[0])}"
    kinds = Counter(
        f"{node.type or ('head' if node.head else 'node')} ({size(node)})" for node in nodes.present
    )
    text = "the cluster has " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    grow = [f"{kind.limit} {kind.name} ({size(kind)})" for kind in nodes.types or () if kind.limit]
    if grow:
        text += f" and may grow to {', '.join(grow)}, at most {nodes.limit} beside the head"
    return text


def waiting_message(demand: Demand, nodes: Nodes) -> str:
    """Say what is waited for while the workers do not fit yet."""
    need, have = _describe_demand(demand), _describe_nodes(demand, nodes)
    now = fit(demand, nodes).now
    if now >= demand.workers:
        return f"waiting: {need}; {have}, but other jobs hold some of it"
    return f"waiting for nodes, {now} of {demand.workers} fit: {need}; {have}"


def timeout_message(demand: Demand, nodes: Nodes, seconds: float) -> str:
    """Say why the job ends: nodes were missing for too long."""
    now = fit(demand, nodes).now
    cure = f"use {demand.workers_flag} {now}, or" if now else "no worker fits; use"
    waited = f", after {seconds:g} s of waiting for nodes" if seconds else ""
    return (
        f"{_describe_demand(demand)}; {_describe_nodes(demand, nodes)}{waited}: {cure} a longer"
        " --wait-for-nodes"
    )


def refusal_message(demand: Demand, nodes: Nodes) -> str:
    """Say why the workers can never fit, and which flags would make them fit."""
    flags = []
    per, times = ("trial", demand.workers) if demand.trial else ("worker", 1)
    if ever := int(fit(demand, nodes).ever):
        flags.append(f"{demand.workers_flag} {ever}")
    if cpus := _fewer_cpus(demand, nodes):
        flags.append(f"--cpus-per-{per} {cpus * times:g}")
    no_gpus = replace(demand, gpus=0.0)
    if demand.gpus and demand.cpus and fit(no_gpus, nodes).ever >= demand.workers:
        flags.append(f"{demand.gpus_flag} 0")
    cure = f"use {', or '.join(flags)}" if flags else "lower what workers need, or add larger nodes"
    return f"{_describe_demand(demand)}; {_describe_nodes(demand, nodes)}: {cure}"


def _fewer_cpus(demand: Demand, nodes: Nodes) -> float | None:
    """Return the most CPUs per worker with which all workers fit, None if there is no such number.

    It is a whole number of hundredths, and an equal share of some node.
    """
    sizes = {node.cpus for node in nodes.present} | {kind.cpus for kind in nodes.types or ()}
    shares = {
        math.floor(size / k * 100) / 100 for size in sizes for k in range(1, demand.workers + 1)
    }
    for cpus in sorted(shares, reverse=True):
        smaller = replace(demand, cpus=cpus)
        if 0 < cpus < demand.cpus and fit(smaller, nodes).ever >= demand.workers:
            return cpus
    return None
