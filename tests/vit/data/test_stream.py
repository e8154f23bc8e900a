"""Streamed sets beside resident ones: the same batches, read once each, in bounded memory."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from jobs.classifier.task import VitTask, load
from jobs.training.ranks import Ranks
from jobs.training.steps import batch, shard, steps_per_epoch
from tests.conftest import ROOT
from tests.tasks import RecordingTask, small_config, train_small
from tests.vit.data.test_sets import FOLDER, encoded, folder_with_sets, pixels
from vit.config import DatasetConfig
from vit.data import feed, pool
from vit.data import sets as data
from vit.data.decode import DataError, Pack, Slots
from vit.data.pool import Pool

CPU = torch.device("cpu")


def jpegs(n, sizes=((32, 32),), seed=0):
    """Smooth pictures, so that JPEG keeps them; of one size after the other."""
    return [
        encoded(
            np.asarray(
                Image.fromarray(small).resize(sizes[i % len(sizes)][::-1], Image.Resampling.BICUBIC)
            ),
            "jpeg",
        )
        for i, small in enumerate(pixels(n, 6, 6, seed=seed))
    ]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """240 training and 30 test images in Parquet, of sizes that are cut, scaled and left."""
    root = tmp_path_factory.mktemp("shards")
    sizes = ((32, 32), (40, 57), (150, 100))
    for i, name in enumerate(("train-0", "train-1", "test-0")):
        n = 30 if name == "test-0" else 120
        table = pa.table({"image": jpegs(n, sizes, seed=i), "label": np.arange(n) % 5})
        pq.write_table(table, root / f"{name}.parquet", row_group_size=50)
    return root


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


def placed(root, cache, gigabytes, name="parquet", size=32):
    config = DatasetConfig(name, cache_gb=gigabytes, val_fraction=0.25)
    ours = data.load(config, [root], size, cache)
    return ours, feed.place({"train": ours.train, "val": ours.val, "test": ours.test}, CPU)


def plan(n, world=1, rank=0, size=16, epochs=2):
    steps = steps_per_epoch(n, size)
    for step in range(epochs * steps):
        yield shard(batch(n, size, 0, *divmod(step, steps)), rank, world)


def taken(source, batches):
    batches = list(batches)
    return [source.take(part, batches[i + 1 :]) for i, part in enumerate(batches)]


def same(some, others):
    assert len(some) == len(others)
    for (images, labels), (wanted, expected) in zip(some, others, strict=True):
        assert images.dtype == torch.uint8
        assert torch.equal(images, wanted)
        assert torch.equal(labels, expected)


# --- The same as decoded once --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "imagefolder", "digits"])
def test_streamed_is_resident(tmp_path, shards, kept, kind):
    root = folder_with_sets(tmp_path / "root") if kind == "imagefolder" else shards
    sets = []
    for gigabytes in (1.0, 0.0):
        config = DatasetConfig(kind, cache_gb=gigabytes, val_fraction=0.25)
        ours = data.load(config, [] if kind == "digits" else [root], 20, kept)
        sets.append(feed.place({"train": ours.train, "val": ours.val, "test": ours.test}, CPU))
    resident, streamed = sets
    assert isinstance(resident["train"], feed.Resident)
    assert isinstance(streamed["train"], feed.Streamed)
    for name in ("train", "val", "test"):
        n = len(resident[name])
        assert len(streamed[name]) == n
        rows = torch.arange(n)
        same(list(feed.each(streamed[name], rows, 7)), list(feed.each(resident[name], rows, 7)))


def test_pixels_are_those_of_pillow_and_torchvision(shards, kept):
    _, sets = placed(shards, kept, 0.0)
    geometry = v2.Compose([v2.Resize(32), v2.CenterCrop(32), v2.PILToTensor()])
    images = pq.read_table(shards / "test-0.parquet").column("image").to_pylist()
    ((ours, labels),) = feed.each(sets["test"], torch.arange(30), 30)
    assert labels.tolist() == [row % 5 for row in range(30)]
    for row, content in enumerate(images):
        picture = Image.open(pa.BufferReader(content))
        if row % 3 == 2:  # 100 x 150: at a third of its size, not at one
            assert picture.draft(None, (32, 32))[1] == (0, 0, 100 / 2, 150 / 2)
        difference = (ours[row].int() - geometry(picture)).abs().max()
        assert difference <= (row % 3 > 0)  # ties of what is resized may round the other way


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_same_batches_on_any_number_of_ranks(shards, kept, world):
    ours, sets = placed(shards, kept, 1.0)
    n = len(ours.train)
    whole = taken(sets["train"], plan(n))
    parts = []
    for rank in range(world):
        streamed = placed(shards, kept, 0.0)[1]["train"]
        parts.append(taken(streamed, plan(n, world, rank)))
    for pieces, found in zip(zip(*parts, strict=True), whole, strict=True):
        same([tuple(map(torch.cat, zip(*pieces, strict=True)))], [found])


@pytest.mark.parametrize("processes", [1, 3])
def test_order_holds_whatever_finishes_first(shards, kept, processes):
    """One slow image among fast ones, on one process and on three."""
    ours, _ = placed(shards, kept, 0.0)
    pack = ours.train.images
    decoding = Pool(pack, 32, processes)
    rows = np.random.default_rng(0).permutation(len(pack)).astype(np.int64)
    expected = [pack.decode(int(row)) for row in rows]
    got = []
    batches = [rows[i : i + 32] for i in range(0, len(rows), 32)]
    waiting = iter(batches)
    for _ in batches:
        while not decoding.full and (batch := next(waiting, None)) is not None:
            decoding.submit(batch)
        images, failed = decoding.receive()
        assert failed == []
        got.extend(images.copy())
    np.testing.assert_array_equal(got, expected)


# --- What is read, and when ----------------------------------------------------------------------

LOGGING = """
import os, sys
from vit.data import decode
read = decode.Pack.read
def logged(self, row):
    os.write(log, b"%d\\n" % row)
    return read(self, row)
decode.Pack.read = logged
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
decode.main(sys.argv[2:])
"""


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """Counts what decoding processes read: a call gives the rows since the last one."""
    program, log = tmp_path / "counting_reads.py", tmp_path / "reads"
    program.write_text(LOGGING)
    log.touch()
    popen = subprocess.Popen

    def start(command, env, **options):
        command = [sys.executable, str(program), str(log), *command[3:]]
        return popen(command, env=env | {"PYTHONPATH": str(ROOT)}, **options)

    monkeypatch.setattr(pool.subprocess, "Popen", start)

    def rows():
        found = [int(line) for line in log.read_text().split()]
        os.truncate(log, 0)
        return found

    return rows


def config_of(shards, out, gigabytes=0.0, **changes):
    dataset = DatasetConfig("parquet", cache_gb=gigabytes, val_fraction=0.25)
    settings = {"data": (str(shards),), "dataset": dataset, "epochs": 2, "batch_size": 32}
    return small_config(out, **(settings | changes))


def test_a_resume_reads_nothing_that_was_read(tmp_path, shards, reads):
    """Steps 0 to 6 of 10, then the rest: each sample of the rest once, no other at all."""
    config = config_of(shards, tmp_path / "run")
    load(config)
    reads()
    n = len(load(config).train)
    assert n // 32 == 5
    taken_up = []

    class Counting(RecordingTask):
        def evaluate(self, model, split):
            self.splits["train"]._stop()  # what was decoded ahead when the run ends is not counted
            taken_up.append(reads())
            return super().evaluate(model, split)

        def gradients(self, model, epoch, index, step):
            if step in (0, 7):
                reads()
            return super().gradients(model, epoch, index, step)

    train_small(config, stop_before=7, task=Counting)
    taken_up.clear()
    train_small(config, task=Counting)
    train = load(config).train.rows
    rest = torch.cat([batch(n, 32, config.seed, 1, index) for index in (2, 3, 4)])
    assert sorted(taken_up[0]) == sorted(train[rest].tolist())


def test_losses_are_those_of_the_resident_set(tmp_path, shards):
    """Also through an epoch's end, an evaluation and a stop in mid-epoch."""
    expected = train_small(config_of(shards, tmp_path / "a", 1.0))
    whole = train_small(config_of(shards, tmp_path / "b"))
    first = train_small(config_of(shards, tmp_path / "c"), stop_before=7)
    second = train_small(config_of(shards, tmp_path / "c"))
    assert whole[1] == expected[1]
    assert first[1] | second[1] == expected[1]
    for result in (whole[0], second[0]):
        assert result.test == expected[0].test


def test_every_image_of_an_evaluation_is_read_once(shards, kept, reads):
    ours, sets = placed(shards, kept, 0.0)
    reads()
    for _ in range(2):
        list(feed.each(sets["test"], torch.arange(30), 8))
        assert sorted(reads()) == ours.test.rows.tolist()


def test_the_same_batch_again_is_not_read_again(shards, kept, reads):
    ours, sets = placed(shards, kept, 0.0)
    batches = [torch.arange(i, i + 10) for i in range(0, 100, 10)]
    reads()
    for i in (0, 0, 1, 2, 2, *range(3, 10)):
        _, labels = sets["train"].take(batches[i], batches[i + 1 :])
        assert labels.tolist() == ours.train.labels[ours.train.rows[batches[i]]].tolist()
    assert sorted(reads()) == ours.train.rows[:100].tolist()


def test_no_more_than_a_few_batches_are_decoded_ahead(shards, kept, reads):
    _, sets = placed(shards, kept, 0.0)
    batches = [torch.arange(i, i + 10) for i in range(0, 180, 10)]
    reads()
    sets["train"].take(batches[0], batches[1:])
    deadline = time.monotonic() + 30
    found = []
    while len(found) < 10 * (1 + pool.AHEAD) and time.monotonic() < deadline:
        time.sleep(0.05)
        found += reads()
    time.sleep(0.2)
    assert len(found + reads()) == 10 * (1 + pool.AHEAD)


def test_another_batch_than_was_announced(shards, kept):
    ours, sets = placed(shards, kept, 0.0)
    resident = placed(shards, kept, 1.0)[1]["train"]
    batches = list(plan(len(ours.train)))
    for i in (0, 1, 5, 2, 3, 0):
        same([sets["train"].take(batches[i], batches[i + 1 :])], [resident.take(batches[i])])
    large = torch.arange(100)
    same([sets["train"].take(large)], [resident.take(large)])
    same([sets["train"].take(large[:3])], [resident.take(large[:3])])


# --- Memory and processes ------------------------------------------------------------------------


def decoders():
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "decode.py" in " ".join(child.cmdline())]


def test_processes_end_with_their_plan_and_with_their_owner(shards, kept):
    ours, sets = placed(shards, kept, 0.0)
    batches, others = list(plan(len(ours.train))), set(decoders())
    taken(sets["train"], batches)
    assert set(decoders()) <= others
    sets["train"].take(batches[0], batches[1:])
    assert set(decoders()) - others
    del sets
    assert set(decoders()) <= others


def test_memory_does_not_grow(shards, kept):
    """A thousand batches and no more memory than after a hundred, here and in the processes."""
    ours, sets = placed(shards, kept, 0.0)
    me, sizes = psutil.Process(), []
    batches = list(plan(len(ours.train), size=45, epochs=60))
    for i, part in enumerate(batches):
        sets["train"].take(part, batches[i + 1 :])
        if i in (60, len(batches) - 2):
            sizes.append(sum(process.memory_info().rss for process in [me, *decoders()]))
    assert sizes[1] - sizes[0] < 4 * 2**20


ALONE = """
import os, signal, sys
from pathlib import Path
import torch
from vit.data import feed, sets as data
from vit.config import DatasetConfig
ours = data.load(DatasetConfig("parquet", cache_gb=0.0), [Path(sys.argv[1])], 32, Path(sys.argv[2]))
train = feed.place({"train": ours.train}, torch.device("cpu"))["train"]
train.take(torch.arange(16), [torch.arange(16)] * 100)
print(*[process.pid for process in train._pool._processes], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_do_not_outlive_a_killed_training(shards, kept):
    ran = run(ALONE, shards, kept)
    assert ran.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in ran.stdout.split()]
    assert pids
    deadline = time.monotonic() + 30
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, pids))


def running(pid):
    try:
        process = psutil.Process(pid)
        return "decode.py" in " ".join(process.cmdline()) and process.status() != "zombie"
    except psutil.NoSuchProcess:
        return False


def run(script, *args):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)


# --- What goes wrong -----------------------------------------------------------------------------


def test_an_image_that_changed_is_named(tmp_path):
    root = folder_with_sets(tmp_path / "root")
    config = DatasetConfig("imagefolder", cache_gb=0.0)
    ours = data.load(config, [root], 16, tmp_path / "cache")
    train = feed.place({"train": ours.train}, CPU)["train"]
    (root / "train/b/1.png").write_bytes(b"no image")
    (root / "train/c/2.png").unlink()
    whole = torch.arange(len(train))
    with pytest.raises(DataError, match=r"train/b/1\.png: not an image .* it changed after"):
        train.take(whole[:5])
    with pytest.raises(DataError, match=r"train/c/2\.png: .*No such file.* it changed after"):
        train.take(whole[5:])


def test_a_process_that_is_killed_is_an_error(shards, kept):
    ours, _ = placed(shards, kept, 0.0)
    decoding = Pool(ours.train.images, 16, 1)
    os.kill(decoding._processes[0].pid, signal.SIGKILL)
    decoding._processes[0].wait()
    decoding.submit(np.arange(16))
    with pytest.raises(RuntimeError, match=r"ended with code -9.*out of memory"):
        decoding.receive()


def test_the_image_that_ended_a_process_is_named(tmp_path, shards, kept, monkeypatch):
    program = tmp_path / "dying.py"
    program.write_text(
        "import os, sys\nfrom vit.data import decode\nread = decode.Pack.read\n"
        "decode.Pack.read = lambda self, row: os.abort() if row == 11 else read(self, row)\n"
        "decode.main(sys.argv[1:])\n"
    )
    popen = subprocess.Popen
    monkeypatch.setattr(
        pool.subprocess,
        "Popen",
        lambda command, env, **options: popen(
            [sys.executable, str(program), *command[3:]],
            env=env | {"PYTHONPATH": str(ROOT)},
            **options,
        ),
    )
    ours, _ = placed(shards, kept, 0.0)
    decoding = Pool(ours.train.images, 16, 2)
    decoding.submit(np.arange(16))
    with pytest.raises(RuntimeError, match=r"ended with code -6 at image 11 of "):
        decoding.receive()


def test_slots_are_shared():
    memory = os.memfd_create("test")
    mine, theirs = Slots(memory, 5, 3), Slots(memory, 5, 3)
    mine.rows[4], mine.pixels[3] = 2**40, 7
    assert theirs.rows.tolist() == [0, 0, 0, 0, 2**40]
    assert theirs.pixels.sum(axis=(1, 2, 3)).tolist() == [0, 0, 0, 27 * 7, 0]


# --- Packing -------------------------------------------------------------------------------------


def test_a_pack_holds_the_files(tmp_path, shards):
    ours, _ = placed(shards, tmp_path, 0.0)
    images = [pq.read_table(path).column("image").to_pylist() for path in sorted(shards.iterdir())]
    test, *train = images  # sorted by name
    expected = [*train[0], *train[1], *test]
    assert [ours.train.images.read(row) for row in range(270)] == expected
    folder = Path(ours.train.images.folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "dataset.json", "images", "index.npy", "test.labels.npy", "train.labels.npy",
    ]  # fmt: skip


def test_a_pack_of_a_folder_holds_paths(tmp_path):
    root = folder_with_sets(tmp_path / "root")
    ours, _ = placed(root, tmp_path / "cache", 0.0, "imagefolder", 16)
    pack = ours.train.images
    assert pack.read(0) == root / "train/a/0.png"
    assert pack.place(4) == str(root / "train/b/1.png")
    assert sum(path.stat().st_size for path in pack.folder.iterdir()) < 10_000


def test_cache_gb_decides(tmp_path, shards):
    """270 images of 32x32 take 829,440 bytes."""
    for gigabytes, kind in ((829_440 / 2**30, np.ndarray), (829_439 / 2**30, Pack)):
        ours, _ = placed(shards, tmp_path, gigabytes)
        assert isinstance(ours.train.images, kind)
    assert isinstance(placed(shards, tmp_path, 1.0)[0].train.images, np.ndarray)  # both are there
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_store_size_is_the_side_of_the_images(shards, kept):
    for gigabytes in (1.0, 0.0):
        config = DatasetConfig("parquet", cache_gb=gigabytes, store_size=24)
        ours = data.load(config, [shards], 16, kept)
        images, _ = feed.place({"train": ours.train}, CPU)["train"].take(torch.arange(3))
        assert images.shape == (3, 3, 24, 24)


PACKING = """
import os, signal, sys, time
from pathlib import Path
from vit.data import cache as caches
from vit.data import sets as data
from vit.config import DatasetConfig

root, cache, log = map(Path, sys.argv[1:])
to_bytes = caches.to_bytes

def start(pause):
    if child := os.fork():
        return child
    def slow(image):
        time.sleep(pause)
        with log.open("a") as file:
            file.write(f"{os.getpid()}\\n")
        return to_bytes(image)
    caches.to_bytes = slow
    ours = data.load(DatasetConfig("parquet", cache_gb=0.0), [root], 32, cache)
    os.write(1, f"{len(ours.train.images)}\\n".encode())
    os._exit(0)

def folders():
    return [path.suffix for path in cache.iterdir() if path.is_dir()]

killed = start(0.2)
while not (log.exists() and log.read_text().count("\\n") > 2):
    time.sleep(0.01)
os.kill(killed, signal.SIGKILL)
os.waitpid(killed, 0)
assert folders() == [".partial"], folders()
log.unlink()
assert [os.waitpid(child, 0)[1] for child in [start(0.001) for _ in range(3)]] == [0, 0, 0]
assert folders() == [""], folders()
"""


def test_three_processes_pack_once_after_one_was_killed_packing(tmp_path, shards):
    log = tmp_path / "log"
    ran = run(PACKING, shards, tmp_path / "cache", log)
    assert ran.returncode == 0
    assert ran.stdout.splitlines() == ["270"] * 3
    pids = log.read_text().split()
    assert (len(pids), len(set(pids))) == (270, 1)


def test_a_folder_is_told_of_bad_images_in_a_stream_too(tmp_path):
    root = folder_with_sets(tmp_path / "root")
    (root / "train/b/1.png").write_bytes(b"no image")
    config = DatasetConfig("imagefolder", cache_gb=0.0)
    message = f"images cannot be used (1):\n  {root}/train/b/1.png: not an image"
    with pytest.raises(DataError, match=re.escape(message)):
        data.load(config, [root], 16, tmp_path / "cache")
    assert FOLDER.max_bad_images == 0


def test_labels_follow_their_images_past_bad_ones(tmp_path):
    root = folder_with_sets(tmp_path / "root")
    (root / "train/a/1.png").write_bytes(b"")
    for gigabytes in (1.0, 0.0):
        config = DatasetConfig("imagefolder", cache_gb=gigabytes, max_bad_images=1)
        ours = data.load(config, [root], 16, tmp_path / "cache")
        assert ours.train.labels[ours.train.rows].tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
        assert ours.val.labels[ours.val.rows].tolist() == [1, 1, 1, 2, 2, 2]


def test_the_task_decodes_with_its_own_numbers(tmp_path, shards):
    """What ranks ask for on their own is what the task asks for: parts of the global batch."""
    config = config_of(shards, tmp_path, workers=2)
    task = VitTask(config, load(config), CPU, Ranks(1, 2))
    announced = [task._samples(0, 3), *task._after(0, 3)]
    steps = task.steps_per_epoch
    assert len(announced) == 2 * steps - 3
    assert torch.equal(announced[steps - 3], task._samples(1, 0))
