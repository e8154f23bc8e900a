"""Run a function on several ranks of a gloo process group, without Ray."""

import multiprocessing
import os
import pickle
import socket
import traceback
from pathlib import Path


def on_ranks(world, function, *args, folder: Path):
    """Call function(*args) on `world` ranks; returns their results, in order of rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tasks", "torch._dynamo", "sklearn.datasets"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        context.Process(target=_rank, args=(rank, world, port, function, args, folder))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    results = []
    for rank in range(world):
        result, fault = pickle.loads((folder / f"rank-{rank}").read_bytes())
        assert fault is None, f"rank {rank}:\n{fault}"
        results.append(result)
    return results


def _rank(rank, world, port, function, args, folder):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    outcome = (None, "died")
    try:
        if world > 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            dist.init_process_group("gloo", rank=rank, world_size=world)
        outcome = (function(*args), None)
    except BaseException:
        outcome = (None, traceback.format_exc())
    finally:
        (folder / f"rank-{rank}").write_bytes(pickle.dumps(outcome))
    if world > 1:
        dist.destroy_process_group()
