"""The nodes of the cluster that this process is in, and for how long some have been missing."""

import time
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.cluster.capacity import Ask, Node, Nodes, NodeType, late, room

SETTLE_SECONDS = 5.0
"""A node that is out of sight for less is not lost."""


class Missing:
    """For how long nodes for all workers have not been there, and whether that is too long."""

    def __init__(self, ask: Ask, wait: float | None) -> None:
        """`wait`: seconds, as of `require`."""
        self.ask, self._wait = ask, wait
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Since they went missing, in whole ones; 0 while they are there."""
        return 0.0 if self._since is None else float(int(time.monotonic() - self._since))

    def too_long(self, nodes: Nodes) -> bool:
        """Take a look at the nodes there are."""
        found = room(self.ask, nodes)
        if found.now >= self.ask.workers:
            self._since = None
            return False
        if self._since is None:
            self._since = time.monotonic()
        gone = time.monotonic() - self._since
        if self._wait is None:
            return found.ever < self.ask.workers and gone >= SETTLE_SECONDS
        return gone >= self._wait

    def late(self, nodes: Nodes) -> str:
        """Why it must not be waited any longer."""
        return late(self.ask, nodes, self.seconds)


def there() -> Nodes:
    """The cluster as it is: nodes from its control store, node types from its autoscaler."""
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
    """On the head node: the yaml that the cluster's autoscaler runs by.

    {} if nothing scales this cluster, None if what does is out of sight: KubeRay's autoscaler has
    a container of its own.

    Open-source Ray 2.60 tells its node types to nobody: `get_cluster_config` of its global state
    stays empty, and the autoscaler's status counts nodes only. But its process, `monitor.py`,
    names the yaml on its command line and reads it anew at each step, as this does.
    """
    for process in psutil.process_iter(["cmdline"]):
        flags = dict(part.partition("=")[::2] for part in process.info["cmdline"] or ())
        monitor = any(flag.endswith("/monitor.py") for flag in flags)
        if monitor and flags.get("--gcs-address") == gcs_address:
            path = flags.get("--autoscaling-config")
            return yaml.safe_load(Path(path).expanduser().read_text()) if path else {}
    return None


def node_types(config: dict[str, Any] | None) -> tuple[tuple[NodeType, ...] | None, int]:
    """Node types of a cluster yaml, and most nodes beside the head, with Ray's defaults."""
    if config is None:
        return None, 0
    limit, types = config.get("max_workers", 2), []
    for name, kind in config.get("available_node_types", {}).items():
        has, default = kind.get("resources", {}), 0 if name == config["head_node_type"] else limit
        cpus, gpus = float(has.get("CPU", 0)), float(has.get("GPU", 0))
        types.append(NodeType(name, cpus, gpus, kind.get("max_workers", default)))
    return tuple(types), limit
