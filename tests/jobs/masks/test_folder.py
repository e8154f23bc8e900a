"""Where a mask run keeps what: names on disk that never collide, and results that are not sound."""

import itertools
import json
import random
import shutil

import pytest

from jobs import mask
from jobs.masks import batch
from jobs.masks.folder import file_name, id_path, marker_place, masks_place, read_markers
from jobs.masks.results import read_results
from jobs.storage.location import Location, StorageError
from tests.masked import mask_without_ray, masker, plan

HARD = [
    "p", "p.parquet", "p.parquet/q", "p.parquet/q.parquet", "p%2Eparquet/q", "p%252Eparquet/q",
    "r", "r/00000.png", "r/1", "r/1/00000.png", "r/00000%2Epng", "s", "s.mp4", "s.mp4/t", "s.mov/t",
    "s.MP4/t", ".patchray-x", "a/.patchray-x", ".patchray-x/a", "%2Epatchray-x", "%2Epatchray-x/a",
    "clip%20one", "x" * 247, "長い名前/" * 60 + "clip", "長い名前/" * 60 + "clip2", "a.b/c.d",
    "%23" + "0" * 64, "." * 240, "%2E" * 80,
]  # fmt: skip


def files_of(video_id):
    """Paths of all files that an id may have in a run."""
    yield f"masks/{id_path(video_id, '.parquet')}"
    yield f"commits/{file_name(video_id)}.json"
    for frame in ("00000", "1"):
        yield f"davis/{id_path(video_id)}/{frame}.png"
        for number in (1, 2):
            yield f"png/{id_path(video_id)}/{number}/{frame}.png"
    yield f"cutout/{id_path(video_id, '.mov')}"
    yield f"overlay/{id_path(video_id, '.mp4')}"


def check_apart(ids):
    """Check that no file is another one's, or is where another one needs a folder."""
    files = [path for video_id in ids for path in files_of(video_id)]
    assert len(set(files)) == len(files)
    folders = {"/".join(path.split("/")[:n]) for path in files for n in range(1, path.count("/"))}
    folders |= {path.rpartition("/")[0] for path in files}
    assert not folders & set(files)
    for path in files:
        assert all(len(part.encode()) <= 255 for part in path.split("/"))
        assert len(path.encode()) < 900
        assert not any(part.startswith(".patchray-") for part in path.split("/"))


def test_names_on_disk_never_collide(tmp_path):
    check_apart(HARD)
    out = Location.parse(tmp_path)
    for video_id in HARD:
        for path in files_of(video_id):
            (out / path).write_bytes(b"")
    parts = ["p", "a.png", "1", "00000.png", "s.mp4", ".patchray-1", "%2E", "%25", "b.parquet", "."]
    parts += ["p.parquet", "%2Epatchray-1", "%23", "é", "x.MOV", "x%2EMOV"]
    draw = random.Random(0)
    for _ in range(200):
        ids = {"/".join(draw.choices(parts, k=draw.randint(1, 4))) for _ in range(12)}
        check_apart(ids)


def test_plain_ids_keep_their_names():
    for video_id in ("clip", "day 1/cam.2/clip.mp4", "clip%20one", "a.png", "é", "x.parquet"):
        assert id_path(video_id, ".parquet") == f"{video_id}.parquet"
    assert file_name("a/b c") == "a%2Fb%20c"


@pytest.fixture(scope="module")
def done(clips, settings, tmp_path_factory):
    """Two videos that are masked and published: the run's folder, its plan and records."""
    out = Location.parse(tmp_path_factory.mktemp("done") / "out")
    worker, found = masker(out.local_path, clips, settings), plan(clips, settings)
    records = [json.loads(worker({"work": w.to_json()})["record"]) for w in found.work[:2]]
    for record in records:
        batch.publish(record, out, out / ".parts/token")
    return out, found.work[:2], records


@pytest.fixture
def run(done, tmp_path):
    """A copy of such a run, to be damaged."""
    out, work, records = done
    shutil.copytree(out.path, tmp_path / "out")
    return Location.parse(tmp_path / "out"), work, records


def left_to_do(out, work, read=False):
    results = read_results(out, work, read)
    return [w.video_id for w in work if not results.is_done(w, False)], results.messages()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "has 0 bytes instead of"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "bytes instead of"),
    ],
)
def test_masks_of_another_size_are_made_again(run, damage, why):
    out, work, records = run
    assert left_to_do(out, work) == ([], [])
    first = records[0]["video_id"]
    damage(masks_place(out, first).local_path)
    todo, said = left_to_do(out, work)
    assert todo == [first]
    assert said[0].startswith(f"{first} is masked again: ")
    assert why in said[0]


def test_masks_of_other_content_are_found_when_they_are_read(run, clips, capsys):
    out, work, records = run
    path = masks_place(out, records[0]["video_id"]).local_path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert left_to_do(out, work) == ([], [])
    todo, (said,) = left_to_do(out, work, read=True)
    assert todo == [records[0]["video_id"]]
    assert "has other content than was published" in said
    marker = marker_place(out, records[0]["video_id"])
    old = {k: v for k, v in marker.read_json().items() if k != "masks_bytes"}
    marker.write_json(old)  # as an earlier version wrote it
    assert left_to_do(out, work)[0] == todo


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"video_id": "c3"', b"[" * 100_000,
        b'{"a": 1e999}', b'{"video_id": "\\ud800"}',
    ],
)  # fmt: skip
def test_what_is_no_whole_marker_is_no_result(run, content):
    out, work, records = run
    name = records[0]["video_id"]
    marker_place(out, name).local_path.write_bytes(content)
    todo, said = left_to_do(out, work)
    assert todo == [name]
    assert said == [f"commits/{name}.json is no whole marker; it is ignored"]


def test_a_marker_with_a_value_of_another_kind_is_no_result(run):
    out, work, records = run
    marker = marker_place(out, records[1]["video_id"])
    whole = marker.read_json()
    for name, value in itertools.product(
        ("key", "status", "frames", "review", "masks_sha256", "masks_bytes", "objects", "height"),
        (None, "x", {}, [{}], 1e30, 10**30),
    ):
        marker.write_json(whole | {name: value})
        markers = read_markers(out)
        for found in markers.values():
            mask.ledger_bytes([found])
            mask.review_csv(mask.review_of([found], {}))
        left_to_do(out, work)


def test_other_files_among_the_markers_are_left_alone(run):
    out, work, _ = run
    for name in (".DS_Store", "note.txt", "c0.json~"):
        (out.local_path / "commits" / name).write_bytes(b"\x00\x01")
    (out.local_path / "commits/folder.json").mkdir()
    assert left_to_do(out, work) == ([], [])


def test_the_own_name_of_a_marker_counts(run):
    out, work, records = run
    name = records[0]["video_id"]
    (out / "commits/0000.json").write_json(records[0] | {"key": "an earlier one"})
    (out / "commits/zzzz.json").write_json(records[0] | {"key": "an earlier one"})
    assert left_to_do(out, work) == ([], [])
    assert read_markers(out)[name]["key"] == records[0]["key"]


def test_a_batch_of_hard_ids_is_masked_whole(clips, tmp_path, monkeypatch, capsys):
    mask_without_ray(monkeypatch)
    ids = ["p", "p.parquet/q", ".patchray-x", "s", "s.mp4/t", "p/00000.png"]
    rows = [f"{clips}/c0.mp4,{video_id},1,0,30,40" for video_id in ids]
    (tmp_path / "m.csv").write_text("\n".join(["uri,video_id,object_id,frame,x,y", *rows]) + "\n")
    flags = ["--manifest", str(tmp_path / "m.csv"), "--out", str(tmp_path / "out")]
    flags += ["--export", "davis", "overlay", "coco", "--precision", "float32"]
    assert mask.main(flags) == 0
    assert f"done: {len(ids)} ok, 0 partial, 0 failed" in capsys.readouterr().out
    export = tmp_path / "out/export"
    for video_id in ids:
        assert len(list((export / "davis" / id_path(video_id)).glob("*.png"))) == 4
        assert (export / "overlay" / id_path(video_id, ".mp4")).is_file()
    images = json.loads((export / "coco/annotations.json").read_text())["images"]
    assert {image["video_id"] for image in images} == set(ids)
    assert mask.main([*flags, "--check"]) == 0
    assert f"{len(ids)} videos done" in capsys.readouterr().out


def test_storage_that_refuses_one_video_costs_that_video(run, monkeypatch):
    monkeypatch.setattr(batch, "PUBLISH_WAITS", (0.0,))
    out, _, records = run
    parts, move = out / ".parts/token", Location.move
    first, second = records

    def publish(refused):
        def refuse(source, target):
            if any(name in target.path for name in refused):
                raise StorageError("the bucket says no")
            move(source, target)

        monkeypatch.setattr(Location, "move", refuse)
        publisher = batch.Publisher(out, parts)
        for record in records:
            (parts / "masks" / file_name(record["video_id"])).write_bytes(b"masks")
        return [publisher.publish(record) for record in records]

    made = publish([first["video_id"]])
    assert [record["status"] for record in made] == ["failed", "ok"]
    assert (made[0]["code"], made[0]["frames"]) == ("storage", 0)
    assert made[0]["error"] == "the masks cannot be published: the bucket says no"
    assert read_markers(out)[first["video_id"]] == made[0]
    assert read_markers(out)[second["video_id"]] == made[1]

    monkeypatch.setattr(batch, "REFUSED_IN_A_ROW", 2)
    with pytest.raises(StorageError):
        publish([first["video_id"], second["video_id"]])


def test_a_file_where_a_folder_is_needed_costs_that_video_at_once(run, monkeypatch):
    monkeypatch.setattr(batch, "PUBLISH_WAITS", (60.0,))  # it would not get better
    out, _, records = run
    (out / "masks/day").write_bytes(b"not ours")
    record = records[0] | {"video_id": "day/clip"}
    (out / ".parts/token/masks" / file_name("day/clip")).write_bytes(b"masks")
    made = batch.Publisher(out, out / ".parts/token").publish(record)
    assert (made["status"], made["code"]) == ("failed", "storage")
    assert "a file is where a folder is needed" in made["error"]
    assert "day/clip" in read_markers(out)


def test_a_folder_in_the_way_is_one_row_and_the_next_start_masks_it(
    clips, tmp_path, monkeypatch, capsys
):
    mask_without_ray(monkeypatch)
    rows = [f"{clips}/c0.mp4,{video_id},1,0,30,40" for video_id in ("day/a", "b")]
    (tmp_path / "m.csv").write_text("\n".join(["uri,video_id,object_id,frame,x,y", *rows]) + "\n")
    flags = ["--manifest", str(tmp_path / "m.csv"), "--out", str(tmp_path / "out")]
    (tmp_path / "out/masks").mkdir(parents=True)
    (tmp_path / "out/masks/day").write_bytes(b"not ours")
    assert mask.main([*flags, "--precision", "float32"]) == 1
    said = capsys.readouterr().out
    assert "done: 1 ok, 0 partial, 1 failed" in said
    assert "failed: day/a: storage: the masks cannot be published" in said
    (tmp_path / "out/masks/day").unlink()
    assert mask.main([*flags, "--precision", "float32"]) == 0
    said = capsys.readouterr().out
    assert "2 videos, 2 objects, 1 videos done, 0 with faults" in said
    assert "done: 2 ok, 0 partial, 0 failed" in said


def test_a_video_without_a_marker_is_not_passed_over(run, settings, clips):
    out, _, records = run
    marker_place(out, records[0]["video_id"]).delete()
    config = mask.MaskConfig(out=str(out), manifest=("m.csv",))
    found = plan(clips, settings)
    masked, failed = mask.conclude(config, out, found, [], 1.0)
    assert len(masked) + len(failed) == len(found.work)
    lost = {record["video_id"]: record for record in failed}[records[0]["video_id"]]
    assert lost["code"] == "storage"
    assert "its marker in commits/ is gone or damaged" in lost["error"]
