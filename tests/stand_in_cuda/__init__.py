"""A stand-in for a CUDA device: the GPU paths run on the CPU with real numbers and CUDA's rules.

    python -m pytest -p tests.stand_in_cuda -m gpu       # `make gpu-stand-in`

As a pytest plugin it makes this process see an H200. A tensor on it says cuda:0 and keeps its
numbers on the host. Every operator passes through `tensor.run`, which

    refuses   operands on different devices; operands of different precision where CUDA's kernels
              take one; operators without a CUDA kernel; use on another stream without an event and
              `record_stream`; waits while `set_sync_debug_mode("error")` is on
    counts    waits of the host, launches, copies by kind, pinned allocations, bytes in use
    delays    copies to the host: until they are waited for they hold rubbish
    rounds    operands of float32 convolutions to TF32 where cuDNN would

Autocast is torch's own for CUDA. What it cannot tell: speed, faults inside of kernels, kernels that
lack a precision, NCCL, `torch.compile`. Tests ask for the fixture `stand_in` where they count.
"""

import contextlib
import threading
import warnings
from unittest import mock

import pytest
import torch
import torch._dynamo  # before anything of torch is replaced: it compares signatures
import torch.nn.functional as F

from tests.stand_in_cuda import engine
from tests.stand_in_cuda.device import DEVICE, Event, StandInError, Stream
from tests.stand_in_cuda.kernels import attention
from tests.stand_in_cuda.tensor import Mode, StandIn

__all__ = ["DEVICE", "StandIn", "StandInError", "pretended"]

_SYNC = {0: "default", 1: "warn", 2: "error"}
_PLAIN_ATTENTION, _PLAIN_RUN = F.scaled_dot_product_attention, threading.Thread.run
_PLAIN_ALIKE = torch._has_compatible_shallow_copy_type


def _attention(query, *args, **kwargs):
    kernel = attention if isinstance(query, StandIn) else _PLAIN_ATTENTION
    return kernel(query, *args, **kwargs)


def _thread_run(self):
    """Run a thread with the stand-in: torch's modes belong to threads."""
    with Mode():
        torch._C._set_only_lift_cpu_tensors(True)
        _PLAIN_RUN(self)


def _alike(one, other):
    """A parameter that moves to the device becomes another tensor."""
    return isinstance(one, StandIn) == isinstance(other, StandIn) and _PLAIN_ALIKE(one, other)


def _set_sync(mode):
    DEVICE.sync_mode = _SYNC.get(mode, mode)


def _set_fraction(fraction, device=None):
    DEVICE.fraction = fraction


def _cuda():
    """What stands in for functions of torch.cuda."""
    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: DEVICE.capability >= (8, 0),
        "is_current_stream_capturing": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: "stand-in for an NVIDIA H200",
        "get_device_capability": lambda device=None: DEVICE.capability,
        "mem_get_info": lambda device=None: (DEVICE.total - DEVICE.live, DEVICE.total),
        "memory_allocated": lambda device=None: DEVICE.live,
        "memory_reserved": lambda device=None: DEVICE.live,
        "max_memory_allocated": lambda device=None: DEVICE.peak,
        "reset_peak_memory_stats": lambda device=None: setattr(DEVICE, "peak", DEVICE.live),
        "set_per_process_memory_fraction": _set_fraction,
        "get_per_process_memory_fraction": lambda device=None: DEVICE.fraction,
        "empty_cache": lambda: None,
        "synchronize": DEVICE.synchronize,
        "set_sync_debug_mode": _set_sync,
        "Event": Event,
        "Stream": Stream,
        "stream": DEVICE.on,
        "current_stream": lambda device=None: DEVICE.stream,
        "default_stream": lambda device=None: DEVICE._first,
        "make_graphed_callables": engine.make_graphed_callables,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
    }


@contextlib.contextmanager
def pretended():
    """Have this process see a CUDA device within the block, here and on threads started in it."""
    from torch.cuda.amp import common

    torch._C._ensureCUDADeviceGuardSet()
    lifting = torch._C._only_lift_cpu_tensors()
    with contextlib.ExitStack() as stack:
        for name, value in _cuda().items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for place, name, value in (
            (common, "amp_definitely_not_available", lambda: False),
            (torch.autograd, "backward", engine.backward),
            (F, "scaled_dot_product_attention", _attention),
            (threading.Thread, "run", _thread_run),
            (torch, "_has_compatible_shallow_copy_type", _alike),
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifting)
        torch._C._set_only_lift_cpu_tensors(True)
        stack.enter_context(Mode())
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=".*non-writable.*|.*is not writable.*")
        yield DEVICE


def pytest_configure(config):
    """Start the stand-in for the whole run."""
    context = pretended()
    context.__enter__()
    config.add_cleanup(lambda: context.__exit__(None, None, None))


@pytest.fixture(autouse=True)
def _as_new():
    """Leave nothing of a test's settings to the next one."""
    yield
    DEVICE.sync_mode, DEVICE.sizes_only, DEVICE.fraction = "default", False, 1.0
    DEVICE.total, DEVICE.capability = 141 * 10**9, (9, 0)
