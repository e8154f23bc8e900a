"""The device of the stand-in: its memory, its streams, and what the host does with it.

Time is counted in ticks: each kernel or copy that is launched on a stream is one tick of it.
"""

import contextlib
import math
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import torch

CUDA = torch.device("cuda", 0)
STAGED_BYTES = 64 << 10
"""Size up to which CUDA takes a copy from pageable memory along with its command. For a larger one
the host waits, although the copy is `non_blocking`."""
LISTS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
"""Tensors that one launch of a `_foreach` kernel takes, by the number of lists of them
(`MultiTensorApply.cuh`)."""
CHUNK, CHUNKS = 65536, 320
"""Elements of a chunk of those kernels, and chunks of a launch."""


class StandInError(RuntimeError):
    """What CUDA would refuse, or compute wrongly without a word."""


@dataclass
class Log:
    """What was done with the device since the log was started."""

    waits: Counter = field(default_factory=Counter)
    """Waits of the host for the device, by reason."""
    kernels: Counter = field(default_factory=Counter)
    """Launches by operator; the launch of a CUDA graph is one."""
    copies: Counter = field(default_factory=Counter)
    """Copies that are launched without a wait, by kind: `pinned`, `pageable` (a small one, which
    CUDA takes along), `staged` (a large one, for which the host waits all the same), `down`."""
    pins: int = 0
    """Allocations of pinned memory."""
    attention: Counter = field(default_factory=Counter)
    """Calls by kernel of attention."""
    tf32: int = 0
    """Convolutions whose operands are rounded to TF32."""

    @property
    def launches(self):
        """Launches of kernels; each costs the host about 5 us."""
        return self.kernels.total()


class Stream:
    """A stand-in for torch.cuda.Stream: work in order."""

    def __init__(self, device=None, priority=0, **_):
        self.device, self.priority = CUDA, priority
        self.tick, self.seen = 0, defaultdict(int)

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        for stream, tick in event.seen.items():
            self.seen[stream] = max(self.seen[stream], tick)

    def wait_stream(self, other):
        self.wait_event(other.record_event())

    def synchronize(self):
        self.record_event().synchronize()

    def query(self):
        return True


class Event:
    """A stand-in for torch.cuda.Event: what had been launched, stream by stream."""

    def __init__(self, *_, **__):
        self.seen = {}

    def record(self, stream=None):
        stream = stream or DEVICE.stream
        self.seen = {**stream.seen, stream: stream.tick}

    def wait(self, stream=None):
        (stream or DEVICE.stream).wait_event(self)

    def query(self):
        return True

    def synchronize(self):
        DEVICE.log.waits["event"] += 1
        DEVICE.arrive(self.seen)

    def elapsed_time(self, other):
        return sum(other.seen.values()) - sum(self.seen.values())


class Lease:
    """Holds the bytes of a storage for as long as a stand-in tensor of it lives."""

    def __init__(self, storage):
        self.key = storage._cdata
        DEVICE.take(self.key, storage.nbytes())

    def __del__(self):
        DEVICE.give(self.key)


class Pinned:
    """Holds host memory pinned for as long as its first tensor lives."""

    def __init__(self, storage):
        self.key = storage._cdata
        DEVICE.pinned.add(self.key)

    def __del__(self):
        DEVICE.pinned.discard(self.key)


class Device:
    """The one CUDA device."""

    def __init__(self):
        self.log = Log()
        self.total = 141 * 10**9
        """Bytes of memory: an H200's."""
        self.capability = (9, 0)
        self.sync_mode = "default"
        self.sizes_only = False
        """Whether tensors have no numbers, only sizes: a model of any size then fits."""
        self.live = self.peak = 0
        self.fraction = 1.0
        self.pinned = set()
        self.homes = {}
        """By storage: the stream that its memory is given back to; None: another one uses it too,
        and `record_stream` was called."""
        self._held, self._bytes = Counter(), {}
        self._late = []
        self._lock, self._local, self._first = threading.RLock(), threading.local(), Stream()
        self._in_graph = False

    # Memory

    def take(self, key, size):
        with self._lock:
            self._held[key] += 1
            if self._held[key] == 1:
                self._bytes[key], self.homes[key] = size, self.stream
                self.live += size
                self.peak = max(self.peak, self.live)
                if self.live > self.total * self.fraction:
                    raise torch.OutOfMemoryError(f"{self.live:,} of {self.total:,} bytes")

    def give(self, key):
        with self._lock:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key], self.homes[key]
                self.live -= self._bytes.pop(key)

    # Time

    @property
    def stream(self):
        """The current stream of this thread."""
        return getattr(self._local, "stream", self._first)

    @contextlib.contextmanager
    def on(self, stream):
        """Stand in for torch.cuda.stream."""
        before = self.stream
        self._local.stream = stream or before
        try:
            yield
        finally:
            self._local.stream = before

    def wait(self, why):
        """Have the host wait until all that was launched on this stream is done."""
        self.log.waits[why] += 1
        if self._in_graph:
            raise StandInError(f"operation not permitted when stream is capturing: {why}")
        if self.sync_mode == "error":
            raise StandInError(f"called a synchronizing CUDA operation: {why}")
        self.arrive({**self.stream.seen, self.stream: self.stream.tick})

    def synchronize(self, device=None):
        """Stand in for torch.cuda.synchronize."""
        self.log.waits["synchronize"] += 1
        self.arrive(None)

    def arrive(self, seen):
        """Deliver the copies to the host that `seen` covers; None: all."""
        with self._lock:
            left = []
            for stream, tick, target, value in self._late:
                if seen is None or seen.get(stream, 0) >= tick:
                    target.copy_(value)
                else:
                    left.append((stream, tick, target, value))
            self._late = left

    def later(self, target, value):
        """Start a copy to the host: until it arrives, its target holds rubbish."""
        self.log.copies["down"] += 1
        self.stream.tick += 1
        value = value.to(target.dtype, copy=True)
        target.fill_(math.nan if target.is_floating_point() else 85)
        with self._lock:
            self._late.append((self.stream, self.stream.tick, target, value))
        return target

    def upload(self, tensor, non_blocking):
        """Count a copy of a host tensor to the device."""
        self.stream.tick += 1
        if not non_blocking:
            self.wait("copy to the device")
        elif tensor.untyped_storage()._cdata in self.pinned:
            self.log.copies["pinned"] += 1
        elif tensor.numel() * tensor.element_size() <= STAGED_BYTES:
            self.log.copies["pageable"] += 1
        else:
            self.log.copies["staged"] += 1

    def pin(self, tensor):
        """Mark a host tensor's memory as pinned."""
        self.log.pins += 1
        tensor.pinned = Pinned(tensor.untyped_storage())
        return tensor

    # Launches

    def launch(self, func, args):
        """Count the kernels of an operator."""
        self.stream.tick += 1
        if func.is_view or self._in_graph:
            return
        name = func._schema.name.removeprefix("aten::")
        self.log.kernels[name] += _launches(args) if name.startswith(("_foreach", "_fused")) else 1

    @contextlib.contextmanager
    def graph(self):
        """Replay a CUDA graph: whatever is launched within is one launch."""
        self.log.kernels["graph"] += 1
        self.stream.tick += 1
        before, self._in_graph = self._in_graph, True
        try:
            yield
        finally:
            self._in_graph = before

    @contextlib.contextmanager
    def measured(self):
        """Yield a log of what is done within the block."""
        before, self.log = self.log, Log()
        self.peak = self.live
        try:
            yield self.log
        finally:
            self.log = before


def _launches(args):
    """The number of launches of a kernel for lists of tensors."""
    lists = [arg for arg in args if isinstance(arg, (list, tuple)) and len(arg)]
    lists = [each for each in lists if isinstance(each[0], torch.Tensor)]
    if not lists:
        return 1
    chunks = sum(math.ceil(each.numel() / CHUNK) for each in lists[0])
    most = LISTS[min(5, len(lists))]
    return max(1, math.ceil(len(lists[0]) / most), math.ceil(chunks / CHUNKS))


DEVICE = Device()
