"""The nodes of the cluster that this process is connected to, and how long some are missing."""

import time
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.cluster.capacity import Demand, Node, Nodes, NodeType, fit, timeout_message

SETTLE_SECONDS = 5.0
"""A node that does not show for less time than this is not lost."""


class MissingNodes:
    """Measures for how long the workers do not fit on the present nodes."""

    def __init__(self, demand: Demand, wait: float | None) -> None:
        """Measure for the workers of `demand`; `wait` is that of `jobs.cluster.connect.require`."""
        self.demand, self._wait = demand, wait
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Whole seconds since nodes are missing; 0 while none is."""
        return 0.0 if self._since is None else float(int(time.monotonic() - self._since))

    def too_long(self, nodes: Nodes) -> bool:
        """Take note of the present nodes; return whether nodes are missing for too long."""
        found = fit(self.demand, nodes)
        if found.now >= self.demand.workers:
            self._since = None
            return False
        if self._since is None:
            self._since = time.monotonic()
        gone = time.monotonic() - self._since
        if self._wait is None:
            return found.ever < self.demand.workers and gone >= SETTLE_SECONDS
        return gone >= self._wait

    def message(self, nodes: Nodes) -> str:
        """Say why the job ends, once it was too long."""
        return timeout_message(self.demand, nodes, self.seconds)


def current_nodes() -> Nodes:
    """Read the present nodes from Ray's control store, and node types from its autoscaler."""
    gcs_address = ray.get_runtime_context().gcs_address
    status = get_cluster_status(gcs_address)
    found, head_id = [], ""
    for node in (*status.active_nodes, *status.idle_nodes):
        has, kind = node.total_resources(), node.ray_node_type_name
        head = HEAD_NODE_RESOURCE_NAME in has
        head_id = node.node_id or "" if head else head_id
        # Ray calls a node that no autoscaler started node_<its id>.
        kind = "" if kind == f"node_{node.node_id}" else kind
        found.append(Node(has.get("CPU", 0.0), has.get("GPU", 0.0), kind, head))
    if head_id in ("", ray.get_runtime_context().get_node_id()):
        config = autoscaler_config(gcs_address)
    else:
        pin = NodeAffinitySchedulingStrategy(head_id, soft=False)
        task: Any = ray.remote(autoscaler_config)
        config = ray.get(task.options(num_cpus=0, scheduling_strategy=pin).remote(gcs_address))
    return Nodes(tuple(found), *node_types(config))


def autoscaler_config(gcs_address: str) -> dict[str, Any] | None:
    """Read the YAML file of the cluster's autoscaler; call it on the head node.

    Open-source Ray 2.60 has no call for the node types: `get_cluster_config` of its global state
    stays empty, and the autoscaler's status only counts nodes. But the autoscaler's process,
    `monitor.py`, names its YAML file on its command line and reads it again at each step.

    Returns:
        The parsed file; {} if nothing scales this cluster; None if the autoscaler's process cannot
        be seen, as with KubeRay, where it has a container of its own.
    """
    for process in psutil.process_iter(["cmdline"]):
        flags = dict(part.partition("=")[::2] for part in process.info["cmdline"] or ())
        monitor = any(flag.endswith("/monitor.py") for flag in flags)
        if monitor and flags.get("--gcs-address") == gcs_address:
            path = flags.get("--autoscaling-config")
            return yaml.safe_load(Path(path).expanduser().read_text()) if path else {}
    return None


def node_types(config: dict[str, Any] | None) -> tuple[tuple[NodeType, ...] | None, int]:
    """Return the node types of a cluster YAML and its maximum number of nodes beside the head.

    What the YAML leaves out has Ray's defaults. `config` is the result of `autoscaler_config`.
    """
    if config is None:
        return None, 0
    limit, types = config.get("max_workers", 2), []
    for name, kind in config.get("available_node_types", {}).items():
        has, default = kind.get("resources", {}), 0 if name == config["head_node_type"] else limit
        cpus, gpus = float(has.get("CPU", 0)), float(has.get("GPU", 0))
        types.append(NodeType(name, cpus, gpus, kind.get("max_workers", default)))
    return tuple(types), limit
