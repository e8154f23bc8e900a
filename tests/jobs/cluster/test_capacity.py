"""Which workers fit on which nodes, and what a refusal advises."""

import itertools
import math
from fractions import Fraction

import pytest

from jobs.cluster import capacity, nodes
from jobs.cluster.capacity import Demand, Fit, Node, Nodes, NodeType


def packed(ask, cpus, gpus):
    """How many workers fit on a node, placed one by one: the plain way to `workers_per_node`."""
    cpu, gpu = Fraction(str(ask.cpus)), Fraction(str(ask.gpus))
    left, cards, placed = Fraction(str(cpus)), [Fraction(1)] * int(gpus), 0
    while placed < ask.workers and left >= cpu:
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
def test_slots_equal_placing_one_by_one(cpus, gpus):
    if not cpus and not gpus:
        return
    for has_cpus, has_gpus in itertools.product((0, 1, 2, 3.5, 8), (0, 1, 2, 4, 8)):
        expected = packed(Demand(50, cpus, gpus), has_cpus, has_gpus)
        assert (
            min(50, capacity.workers_per_node(Demand(50, cpus, gpus), has_cpus, has_gpus))
            == expected
        )


def grown(ask, nodes):
    """Most workers over all ways to add nodes within the limits: the plain way to `fit`."""
    now = sum(packed(ask, node.cpus, node.gpus) for node in nodes.present)
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
                best, now + sum(add * packed(ask, kind.cpus, kind.gpus) for add, kind in more)
            )
    return Fit(now, best)


SMALL, LARGE = Node(4, 1, "small"), Node(8, 4, "large")
HEAD = Node(0, head=True)
TYPES = (NodeType("head", 0, 0, 0), NodeType("small", 4, 1, 3), NodeType("large", 8, 4, 2))


@pytest.mark.parametrize(
    "ask", [Demand(50, 1), Demand(50, 1, 1), Demand(50, 5), Demand(50, 0.5, 0.5)]
)
@pytest.mark.parametrize("limit", [0, 1, 3, 9])
def test_room_equals_trying_all_ways_to_grow(ask, limit):
    for small, large in itertools.product(range(4), range(3)):
        nodes = Nodes((HEAD, *[SMALL] * small, *[LARGE] * large), TYPES, limit)
        assert capacity.fit(ask, nodes) == grown(ask, nodes)


def test_a_bundle_must_fit_on_one_node_whatever_the_totals():
    four_small = Nodes((SMALL,) * 4)
    assert capacity.fit(Demand(1, 5), four_small) == Fit(0, 0)
    assert capacity.fit(Demand(2, 3), four_small) == Fit(4, 4)


def test_node_types_out_of_sight_are_waited_for():
    assert capacity.fit(Demand(3, 4), Nodes((HEAD,), None)) == Fit(0, math.inf)


@pytest.mark.parametrize(
    ("ask", "nodes", "said"),
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
def test_a_refusal_names_both_values_and_flags_that_would_fit(ask, nodes, said):
    assert capacity.fit(ask, nodes).ever < ask.workers
    assert capacity.refusal_message(ask, nodes) == said


def test_advised_flags_fit_and_a_hundredth_more_does_not():
    for workers, cpus, size in itertools.product((2, 3, 5, 7), (1, 2.5, 4), (1, 2, 3, 6)):
        ask, nodes = Demand(workers, cpus), Nodes((Node(size), Node(size + 1)))
        if capacity.fit(ask, nodes).ever < workers:
            advice = capacity._fewer_cpus(ask, nodes)
            assert capacity.fit(Demand(workers, advice), nodes).ever >= workers
            assert capacity.fit(Demand(workers, advice + 0.01), nodes).ever < workers


def test_what_is_waited_for_is_said_by_node_and_type():
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
