"""The manifest of `jobs.prompt` on disk: saved, undone, journalled, whatever refuses."""

import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.page.store import StaleError, Store
from jobs.storage.location import Location, StorageError
from masking.manifest.faults import ManifestError
from tests.conftest import ROOT
from tests.jobs.page.rows import add, row


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_what_is_added_is_on_disk_and_columns_that_are_not_known_survive(tmp_path, ending):
    path = tmp_path / f"m.{ending}"
    when = pd.Timestamp("2026-01-02 03:04:05")
    table = pd.DataFrame([row(camera="north", when=when, weight=7), row(uri="b.mp4", weight=8)])
    if ending == "csv":
        table.to_csv(path, index=False)
    elif ending == "jsonl":
        table.to_json(path, orient="records", lines=True, date_format="iso")
    else:
        table.to_parquet(path)
    store = Store(path)
    add(store, "a", row(x=50, y=9, role="correct"))
    store.close()
    again = Store(path)
    first, second = again.rows("a")
    assert first["camera"] == "north"
    assert str(first["when"])[:10] == "2026-01-02"
    assert str(first["weight"]) == "7"
    assert second.get("camera") is None
    assert second["role"] == "correct"
    assert [str(one["weight"]) for one in again.rows("b")] == ["8"]
    if ending == "parquet":
        assert pd.read_parquet(path)["when"].tolist()[0] == when
    table = again.table()
    assert table["x"].tolist() == [30, 50, 30]
    again.close()


def test_a_change_of_rows_that_changed_meanwhile_is_refused(tmp_path):
    store = Store(tmp_path / "m.csv", [row(), row(uri="b.mp4")])
    old = store.revision("a"), store.revision("b")
    add(store, "a", row(x=1))
    with pytest.raises(StaleError, match="another tab"):
        store.replace("a", old[0], [row(x=2)])
    store.replace("b", old[1], [])  # of another video: nothing to do with it
    assert [one["x"] for one in store.rows("a")] == [30, 1]
    assert store.rows("b") == []


def test_a_manifest_that_another_program_wrote_is_read_again(tmp_path):
    store = Store(tmp_path / "m.csv", [row()])
    revision = store.revision("a")
    (tmp_path / "m.csv").write_text("uri,object_id,frame,x,y\na.mp4,1,5,6,7\n")
    with pytest.raises(StaleError, match="another program"):
        store.replace("a", revision, [row(), row(x=9)])
    assert [one["frame"] for one in store.rows("a")] == ["5"]
    add(store, "a", row(x=8))
    assert (tmp_path / "m.csv").read_text().splitlines()[1].startswith("a.mp4,1,5,6,7")


def test_undo_and_redo_survive_a_restart(tmp_path):
    store = Store(tmp_path / "m.csv")
    for x in range(3):
        add(store, "a", row(x=x))
    store.undo("a", store.revision("a"))
    store.close()
    again = Store(tmp_path / "m.csv")

    def places():
        return [int(one["x"]) for one in again.rows("a")]

    assert (places(), again.undo_counts("a")) == ([0, 1], (2, 1))
    again.undo("a", again.revision("a"))
    assert places() == [0]
    again.undo("a", again.revision("a"), redo=True)
    again.undo("a", again.revision("a"), redo=True)
    assert places() == [0, 1, 2]
    again.undo("a", again.revision("a"))
    add(again, "a", row(x=7))
    assert (places(), again.undo_counts("a")) == ([0, 1, 7], (3, 0))
    for _ in range(5):
        again.undo("a", again.revision("a"))
    assert (places(), again.undo_counts("a")) == ([], (0, 3))


def test_undo_after_a_restart_gives_back_what_json_does_not_know(tmp_path):
    path, when = tmp_path / "m.parquet", pd.Timestamp("2026-01-02 03:04:05.000006")
    pd.DataFrame([row(when=when, blob=b"\x00\xff")]).to_parquet(path)
    before = pq.read_table(path)
    store = Store(path)
    store.replace("a", store.revision("a"), [row(x=1)])
    store.close()
    again = Store(path)
    again.undo("a", again.revision("a"))
    after = pq.read_table(path).select(before.column_names)
    assert after.cast(before.schema).to_pylist() == before.to_pylist()
    assert after.schema.field("when").type == pa.timestamp("us")


def test_a_journal_that_is_ahead_is_made_up_for(tmp_path):
    """Killed after the journal was written, before the manifest was."""
    path = tmp_path / "m.csv"
    store = Store(path)
    add(store, "a", row(x=1))
    before = path.read_bytes()
    add(store, "a", row(x=2))
    after = path.read_bytes()
    store.close()
    path.write_bytes(before)
    again = Store(path)
    assert path.read_bytes() == after
    assert again.undo_counts("a") == (2, 0)
    again.close()
    with path.with_name("m.csv.journal").open("ab") as journal:
        journal.write(b'{"kind": "edit", "video')  # and killed while it was written
    torn = Store(path)
    add(torn, "a", row(x=3))
    torn.close()
    assert len(Store(path).rows("a")) == 3


def test_a_journal_of_another_manifest_is_left_alone(tmp_path):
    store = Store(tmp_path / "m.csv")
    add(store, "a", row(x=1))
    store.close()
    (tmp_path / "m.csv").write_text("uri,object_id,frame,x,y\na.mp4,1,5,6,7\n")
    assert Store(tmp_path / "m.csv").undo_counts("a") == (0, 0)


def test_a_disk_that_refuses_leaves_all_as_it_was(tmp_path, monkeypatch):
    store = Store(tmp_path / "m.csv", [row()])
    before = store.revision("a")

    def full(self, data):
        raise StorageError("no space left")

    monkeypatch.setattr(Location, "write_bytes", full)
    with pytest.raises(StorageError, match="nothing was changed"):
        add(store, "a", row(x=1))
    assert store.revision("a") == before
    assert store.undo_counts("a") == (0, 0)
    monkeypatch.undo()
    store.close()
    assert len(Store(tmp_path / "m.csv").rows("a")) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the size of files")
def test_a_disk_that_fills_within_a_line_of_the_journal_brings_nothing_back_later(tmp_path):
    """What was refused is in no manifest, and what was taken before can still be undone."""
    code = """
import resource, sys
from pathlib import Path
from jobs.page.store import Store
from jobs.storage.location import StorageError

path = Path(sys.argv[1])
store = Store(path)

def click(x):
    row = {"uri": "a.mp4", "object_id": 1, "frame": 0, "x": x, "y": 40, "label": 1}
    store.replace("a", store.revision("a"), [*store.rows("a"), row])

for x in (1, 2, 3):
    click(x)
size = path.with_name("m.csv.journal").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, resource.RLIM_INFINITY))
try:
    click(777)
except StorageError as error:
    assert "nothing was changed" in str(error), error
else:
    raise AssertionError("the disk took it")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
click(4)
store.close()
"""
    path = tmp_path / "m.csv"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=ROOT)
    store = Store(path)
    assert [record["x"] for record in store.rows("a")] == ["1", "2", "3", "4"]
    assert store.undo_counts("a") == (4, 0)


def test_one_process_at_a_time(tmp_path):
    store = Store(tmp_path / "m.csv")
    with pytest.raises(StorageError, match=r"m\.csv is open in another jobs\.prompt"):
        Store(tmp_path / "m.csv")
    store.close()
    Store(tmp_path / "m.csv").close()


def test_faults_are_all_listed_but_what_is_only_not_ready_is_none(tmp_path):
    text = "uri,object_id,frame,x,y,label\na.mp4,0,0,3,4,1\na.mp4,1,-2,3,4,1\n,1,0,3,4,1\n"
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ManifestError) as caught:
        Store(tmp_path / "m.csv")
    assert [fault.row for fault in caught.value.faults] == [3, 1, 2]
    (tmp_path / "n.csv").write_text("uri,object_id,frame,x,y,label\na.mp4,1,0,3,4,0\n")
    store = Store(tmp_path / "n.csv")
    with pytest.raises(ManifestError, match="x is -4"):
        add(store, "a", row(x=-4))
