"""Whether workers fit on nodes, and the flags that a refusal recommends."""

import itertools
import math
from fractions import Fraction

import pytest

from jobs.cluster import capacity, connect, nodes
from jobs.cluster.capacity import Demand, Fit, Node, Nodes, NodeType


def packed(demand, cpus, gpus):
    """Return how many workers fit on a node by placing them one by one."""
    cpu, gpu = Fraction(str(demand.cpus)), Fraction(str(demand.gpus))
    left, cards, placed = Fraction(str(cpus)), [Fraction(1)] * int(gpus), 0
    while placed < demand.workers and left >= cpu:
        if gpu >= 1:
            whole = [card for card in cards if card == 1]
            if len(whole) < gpu:
                break
            for _ in range(int(gpu)):
                cards.remove(1)
        elif gpu:
            fits = [i for i, card in enumerate(cards) if card >= gpu]
            if not fits:
                break
            cards[fits[0]] -= gpu
        left -= cpu
        placed += 1
    return placed


@pytest.mark.parametrize("gpus", [0, 0.3, 0.5, 0.6, 1, 2, 4])
@pytest.mark.parametrize("cpus", [0, 0.33, 0.66, 0.6667, 1, 1.5, 3])
def test_workers_per_node_equals_placing_one_by_one(cpus, gpus):
    if not cpus and not gpus:
        return
    for has_cpus, has_gpus in itertools.product((0, 1, 2, 3.5, 8), (0, 1, 2, 4, 8)):
        expected = packed(Demand(50, cpus, gpus), has_cpus, has_gpus)
        assert (
            min(50, capacity.workers_per_node(Demand(50, cpus, gpus), has_cpus, has_gpus))
            == expected
        )


def grown(demand, nodes):
    """Return how many workers fit, by trying all ways to add nodes within the limits."""
    now = sum(packed(demand, node.cpus, node.gpus) for node in nodes.present)
    workers = [node for node in nodes.present if not node.head]
    best = now
    for adds in itertools.product(*(range(kind.limit + 1) for kind in nodes.types)):
        counts = zip(adds, nodes.types, strict=True)
        within = all(
            add + sum(node.type == kind.name for node in workers) <= kind.limit
            for add, kind in counts
            if add
        )
        if within and (not sum(adds) or sum(adds) + len(workers) <= nodes.limit):
            more = zip(adds, nodes.types, strict=True)
            best = max(
                best, now + sum(add * packed(demand, kind.cpus, kind.gpus) for add, kind in more)
            )
    return Fit(now, best)


SMALL, LARGE = Node(4, 1, "small"), Node(8, 4, "large")
HEAD = Node(0, head=True)
TYPES = (NodeType("head", 0, 0, 0), NodeType("small", 4, 1, 3), NodeType("large", 8, 4, 2))


@pytest.mark.parametrize(
    "demand", [Demand(50, 1), Demand(50, 1, 1), Demand(50, 5), Demand(50, 0.5, 0.5)]
)
@pytest.mark.parametrize("limit", [0, 1, 3, 9])
def test_fit_equals_trying_all_ways_to_grow(demand, limit):
    for small, large in itertools.product(range(4), range(3)):
        nodes = Nodes((HEAD, *[SMALL] * small, *[LARGE] * large), TYPES, limit)
        assert capacity.fit(demand, nodes) == grown(demand, nodes)


def test_a_bundle_must_fit_on_one_node_whatever_the_totals():
    four_small = Nodes((SMALL,) * 4)
    assert capacity.fit(Demand(1, 5), four_small) == Fit(0, 0)
    assert capacity.fit(Demand(2, 3), four_small) == Fit(4, 4)


def test_an_autoscaler_that_cannot_be_read_is_waited_for():
    assert capacity.fit(Demand(3, 4), Nodes((HEAD,), None)) == Fit(0, math.inf)


@pytest.mark.parametrize(
    ("demand", "nodes", "said"),
    [
        (
            Demand(3, 1),
            Nodes((Node(2, head=True),)),
            "3 workers need 1 CPU each; this machine has 2 CPUs: "
            "use --workers 2, or --cpus-per-worker 0.66",
        ),
        (
            Demand(2, 1, 1),
            Nodes((Node(2, head=True),)),
            "2 workers need 1 CPU and 1 GPU each; this machine has 2 CPUs and no GPU: "
            "use --gpus-per-worker 0",
        ),
        (
            Demand(1, 4),
            Nodes((Node(2, head=True),)),
            "1 worker needs 4 CPUs; this machine has 2 CPUs: use --cpus-per-worker 2",
        ),
        (
            Demand(4, 8, 1),
            Nodes((HEAD, SMALL), TYPES, 4),
            "4 workers need 8 CPUs and 1 GPU each; the cluster has 1 head (0 CPUs and no GPU), "
            "1 small (4 CPUs and 1 GPU) and may grow to 3 small (4 CPUs and 1 GPU), "
            "2 large (8 CPUs and 4 GPUs), at most 4 beside the head: "
            "use --workers 2, or --cpus-per-worker 4",
        ),
    ],
)
def test_a_refusal_names_need_supply_and_flags_that_fit(demand, nodes, said):
    assert capacity.fit(demand, nodes).ever < demand.workers
    assert capacity.refusal_message(demand, nodes) == said


def test_recommended_flags_fit_and_a_hundredth_more_does_not():
    for workers, cpus, size in itertools.product((2, 3, 5, 7), (1, 2.5, 4), (1, 2, 3, 6)):
        demand, nodes = Demand(workers, cpus), Nodes((Node(size), Node(size + 1)))
        if capacity.fit(demand, nodes).ever < workers:
            advice = capacity._fewer_cpus(demand, nodes)
            assert capacity.fit(Demand(workers, advice), nodes).ever >= workers
            assert capacity.fit(Demand(workers, advice + 0.01), nodes).ever < workers


def test_a_wait_names_nodes_and_types():
    nodes = Nodes((HEAD, SMALL), TYPES, 9)
    grow = capacity.waiting_message(Demand(3, 2, 1), nodes)
    assert grow.startswith("waiting for nodes, 1 of 3 fit: 3 workers need 2 CPUs and 1 GPU each")
    assert "1 small (4 CPUs and 1 GPU) and may grow to 3 small" in grow
    assert "other jobs" in capacity.waiting_message(Demand(1, 2, 1), nodes)


def test_node_types_have_rays_defaults():
    worker = {"resources": {"CPU": 4, "GPU": 1}, "node_config": {}}
    config = {
        "head_node_type": "head",
        "available_node_types": {"head": {"resources": {}}, "gpu": worker},
    }
    assert nodes.node_types(config) == (
        (NodeType("head", 0, 0, 0), NodeType("gpu", 4, 1, 2)),
        2,
    )
    assert nodes.node_types({}) == ((), 2)
    assert nodes.node_types(None)[0] is None


GPU = Nodes((Node(16, 1),))
TWO = Nodes((Node(8, 1), Node(8, 1)))


@pytest.mark.parametrize(
    ("workers", "found", "most", "share"),
    [
        (1, GPU, 4, 1.0),
        (2, TWO, 4, 1.0),
        (3, GPU, 4, 0.3333),
        (4, GPU, 4, 0.25),
        (4, TWO, 4, 0.5),
        (5, GPU, 4, None),
        (2, GPU, 1, None),
        (1, Nodes((Node(8),)), 4, None),
        (2, Nodes((Node(8, head=True),), (NodeType("gpu", 8, 1, 1),), limit=1), 4, 0.5),
        (1, Nodes((Node(8),), None), 4, None),
    ],
)
def test_workers_share_gpus_only_where_not_each_gets_one(workers, found, most, share):
    demand = Demand(workers, 1)
    assert capacity.share_of_gpu(demand, found, most) == share


@pytest.mark.parametrize(
    ("found", "asked", "expected", "said"),
    [
        (GPU, {"workers": 4}, (True, 0.25), "4 on each: --gpus-per-worker 0.25;"),
        (GPU, {"workers": 4, "trial": True}, (True, 0.25), "--gpus-per-trial 1;"),
        (GPU, {"workers": 4, "sharing": 1}, (False, 0.0), "--gpus-per-worker 0.25 to share one"),
        (GPU, {"workers": 8}, (False, 0.0), "8 workers do not fit on the GPUs, even 4 on each"),
        (GPU, {"workers": 1}, (True, 1.0), "every worker gets a GPU"),
        (GPU, {"workers": 4, "gpus": 0.25, "sharing": 1}, (True, 0.25), "every worker gets"),
        (GPU, {"workers": 4, "gpus": 0.5}, (False, 0.5), "too few GPUs"),
        (GPU, {"workers": 4, "device": "cpu"}, (False, 0.0), None),
        (GPU, {"workers": 4, "device": "cuda"}, (True, 0.25), "4 on each"),
        (GPU, {"workers": 9, "device": "cuda"}, (True, 1.0), None),
        (Nodes((Node(8),)), {"workers": 4}, (False, 0.0), "there are no GPUs"),
    ],
)
def test_what_is_said_of_the_device(monkeypatch, found, asked, expected, said):
    monkeypatch.setattr(nodes, "current_nodes", lambda: found)
    settings = {"device": "auto", "cpus": 1, "gpus": None, "sharing": 4} | asked
    lines = []
    assert connect.choose_device(say=lines.append, **settings) == expected
    assert (said is None and not lines) or said in lines[0]
