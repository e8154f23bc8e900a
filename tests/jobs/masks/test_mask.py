"""`jobs.mask` without a cluster: plans and keys, one video on a worker, exports, bad input."""

import errno
import json
import os
import re
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import mask
from jobs.masks import batch, exports, video
from jobs.masks import plan as mask_plan
from jobs.masks.attempts import Attempts
from jobs.masks.folder import marker_place, masks_place, read_markers
from jobs.masks.plan import VideoWork
from jobs.masks.results import read_results
from jobs.masks.video import WorkerError
from jobs.run.signals import Stop
from jobs.storage.lease import exclusive
from jobs.storage.location import Location, StorageError
from jobs.weights.segmenter import locate
from masking.outputs.rows import frames_of, mask_of
from masking.segmenter.sam import load
from masking.tracking.masking import mask_video
from masking.tracking.state import TrackConfig
from tests.masked import CPU, mask_without_ray, masker, plan


def test_the_largest_come_first_and_survive_json(clips, settings):
    found = plan(clips, settings)
    assert found.faults == []
    assert [work.size for work in found.work] == sorted((w.size for w in found.work), reverse=True)
    assert {work.video_id for work in found.work} == {"c0", "c1", "c2", "c3", "none"}
    assert all(VideoWork.from_json(work.to_json()) == work for work in found.work)
    assert next(w for w in found.work if w.video_id == "c0").extra == {"camera": "north"}


def test_a_key_depends_on_file_prompts_and_settings(clips, settings, tmp_path):
    def keys(settings=settings, manifest=None):
        text = (clips / "clicks.csv").read_text() if manifest is None else manifest
        (tmp_path / "m.csv").write_text(text)
        found = mask_plan.plan_batch([str(tmp_path / "m.csv")], str(clips), settings)
        return {work.video_id: work.key for work in found.work}

    same = keys()
    text = (clips / "clicks.csv").read_text()
    assert keys(manifest=text.replace("c0.mp4,1,0,30,40,1,north", "")) == {
        name: key for name, key in same.items() if name != "c0"
    }  # other rows' numbers do not matter
    moved = keys(manifest=text.replace("c1.mp4,1,1,32", "c1.mp4,1,1,33"))
    assert [name for name in same if moved[name] != same[name]] == ["c1"]
    other = keys(mask_plan.settings_of(locate("mini"), "bfloat16", TrackConfig()))
    assert all(other[name] != same[name] for name in same)
    os.utime(clips / "c2.mp4", ns=(1, 1))
    touched = keys()
    assert [name for name in same if touched[name] != same[name]] == ["c2"]


def test_every_fault_of_all_manifests_is_listed(clips, settings, tmp_path):
    (tmp_path / "m.csv").write_text("uri,object_id,frame,x,y\nc0.mp4,1,0,-3,4\nlost.mp4,1,0,3,4\n")
    (tmp_path / "n.jsonl").write_text(
        '{"uri": "c0.mp4", "object_id": 0, "frame": 0, "x": 1, "y": 1}'
    )
    found = mask_plan.plan_batch(
        [str(tmp_path / n) for n in ("m.csv", "n.jsonl")], str(clips), settings
    )
    assert found.work == ()
    faults = "\n".join(found.faults)
    assert "m.csv: row 1: x is '-3'; expected a number from 0" in faults
    assert "m.csv: row 2: uri is" in faults
    assert "lost.mp4'; expected a file or folder: it does not exist" in faults
    assert "n.jsonl: line 1: object_id is 0" in faults


def test_a_worker_writes_what_mask_video_gives(clips, settings, tmp_path):
    worker = masker(tmp_path, clips, settings)
    work = next(w for w in plan(clips, settings).work if w.video_id == "c1")
    record = json.loads(worker({"work": work.to_json()})["record"])
    assert (record["status"], record["frames"], record["key"]) == ("ok", 5, work.key)
    assert record["objects"]["1"]["prompted"] == 1
    table = pq.read_table(tmp_path / ".parts/token/masks/c1")
    rows = [{"object_id": 1, "frame": 1, "x": 32, "y": 40}]
    expected = mask_video(clips / "c1.mp4", rows, load(locate("mini"), CPU, "float32"))
    for (frame, found), each in zip(frames_of(table), expected, strict=True):
        assert frame == each.index
        assert np.array_equal(mask_of(found[0]), each.masks[0])
        assert found[0]["state"] == each.states[0]
    assert not list((tmp_path / ".parts/token/attempts/c1").iterdir())
    again = json.loads(worker({"work": work.to_json()})["record"])
    assert again["masks_sha256"] == record["masks_sha256"]


def test_a_video_that_fails_is_a_record_with_its_code(clips, settings, tmp_path):
    worker = masker(tmp_path, clips, settings)
    by_id = {work.video_id: work for work in plan(clips, settings).work}
    broken = json.loads(worker({"work": by_id["none"].to_json()})["record"])
    assert (broken["status"], broken["code"]) == ("failed", "not_a_video")
    late = replace(by_id["c0"], rows=(replace(by_id["c0"].rows[0], frame=99),))
    record = json.loads(worker({"work": late.to_json()})["record"])
    assert record["code"] == "prompts"
    assert record["error"] == "row 1: frame is 99; expected 0 to 3, the last frame"
    gone = replace(by_id["c0"], uri=str(clips / "gone.mp4"))
    assert json.loads(worker({"work": gone.to_json()})["record"])["code"] == "not_found"


def test_a_video_that_ends_its_worker_twice_is_quarantined_unless_nodes_failed(tmp_path):
    nodes = {"a": True, "b": True}
    attempts = Attempts(Location.parse(tmp_path), lambda name: nodes[name])
    assert attempts.begin("v/1", "a") is None
    assert attempts.begin("v/1", "b") is None
    assert attempts.begin("v/1", "a") == "quarantined"
    nodes["b"] = False
    assert attempts.begin("v/1", "a") is None
    assert attempts.begin("v/2", "a") is None
    attempts.done()
    attempts.fail("time_limit")
    assert attempts.begin("v/2", "a") == "time_limit"


def test_a_decoder_that_hangs_ends_its_process(clips, settings, tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr("jobs.masks.attempts.os._exit", ended.append)
    monkeypatch.setattr(video, "mask", lambda *args: time.sleep(1) or {"status": "failed"})
    worker = masker(tmp_path, clips, settings)
    worker.time_limit = 0.2
    work = plan(clips, settings).work[0]
    worker.attempts.done = lambda: None  # the process would be gone by now
    worker({"work": work.to_json()})
    assert ended == [1]
    record = json.loads(worker({"work": work.to_json()})["record"])
    assert record["code"] == "time_limit"
    assert record["error"] == "the video was not done after 0.2 s (--time-limit)"


def test_other_weights_on_a_worker_are_refused(clips, tmp_path):
    with pytest.raises(WorkerError, match="node here has other weights"):
        masker(tmp_path, clips, "other settings")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--export", "gif"], "--export gif: expected davis, png, coco"),
        (["--time-limit", "0"], "--time-limit is 0"),
        (["--polish.fill-holes", "1"], "--polish.fill-holes is 1; expected a share"),
        (["--polish.drop-specks", "1.5"], "--polish.drop-specks is 1.5; expected a share"),
        (["--polish.smooth", "-1"], "--polish.smooth is -1; expected 0 to 100 pixels"),
        (["--polish.min-area", "-1"], "--polish.min-area is -1; expected at least 0"),
        (["--weights", "vit_x"], "vit_x"),
        (["--manifest", "lost.csv"], "lost.csv"),
    ],
)
def test_bad_flags(clips, tmp_path, capsys, flags, message):
    argv = ["--manifest", str(clips / "clicks.csv"), "--out", str(tmp_path / "out"), *flags]
    try:
        code = mask.main(argv)
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert message in re.sub(r"\s+", " ", "".join(capsys.readouterr()))
    assert not (tmp_path / "out").exists()


def test_another_polish_masks_again_all_but_the_frames_of_prompts(clips, tmp_path, monkeypatch):
    mask_without_ray(monkeypatch)
    (tmp_path / "m.csv").write_text("uri,object_id,frame,x,y\nc1.mp4,1,1,32,40\n")
    flags = ["--manifest", str(tmp_path / "m.csv"), "--root", str(clips), "--out"]

    def run(*polish):
        assert mask.main([*flags, str(tmp_path / "out"), *polish]) == 0
        rows = pq.read_table(tmp_path / "out/masks/c1.parquet").to_pylist()
        return [(row["state"], row["rle"]) for row in rows]

    plain = run()
    rough = run("--polish.smooth", "6")
    assert rough[1] == plain[1]
    assert plain[1][0] == "prompted"
    assert [state for state, _ in rough] == [state for state, _ in plain]
    assert all(rough[i][1] != plain[i][1] for i in (0, 2, 3, 4))
    assert run() == plain


def test_faults_stop_the_job_before_it_starts_and_check_only_checks(clips, tmp_path, capsys):
    (tmp_path / "m.csv").write_text("uri,object_id,frame,x,y\nc0.mp4,1,0,-3,4\nc1.mp4,1,0,3,4\n")
    flags = [
        "--manifest",
        str(tmp_path / "m.csv"),
        "--root",
        str(clips),
        "--out",
        f"{tmp_path}/out",
    ]
    assert mask.main(flags) == 2
    assert "1 fault in the manifests; nothing was started" in capsys.readouterr().err
    assert mask.main([*flags, "--check", "--skip-invalid"]) == 0
    said = capsys.readouterr().out
    assert "1 videos, 1 objects, 0 videos done, 1 with faults" in said
    assert "row 1: x is '-3'" in said
    assert not (tmp_path / "out").exists()


def made(clips, settings, out, count=2):
    """Mask and publish some videos without Ray; returns the plan and their records."""
    worker, found = masker(out.local_path, clips, settings), plan(clips, settings)
    records = [json.loads(worker({"work": w.to_json()})["record"]) for w in found.work[:count]]
    for record in records:
        batch.publish(record, out, out / ".parts/token")
    return found, records


def test_an_export_that_fails_costs_the_others_nothing(clips, settings, tmp_path, capsys):
    out = Location.parse(tmp_path / "out")
    found, records = made(clips, settings, out)
    records[0]["uri"] = str(clips / "gone.mp4")
    config = mask.MaskConfig(out=str(out), manifest=("m.csv",), export=("overlay", "youtube-vos"))
    assert mask.finish(config, out, found, records, 0, Stop()) == 1
    assert (
        f"not exported: {records[0]['video_id']} as overlay: VideoError" in capsys.readouterr().out
    )
    assert (out / f"export/overlay/{records[1]['video_id']}.mp4").exists()
    assert (out / "export/youtube-vos/meta.json").exists()


def test_exports_of_masks_that_are_made_again_are_deleted(clips, settings, tmp_path):
    out = Location.parse(tmp_path / "out")
    found, (first, second) = made(clips, settings, out)
    kinds = ("overlay", "davis", "png", "coco")
    config = mask.MaskConfig(out=str(out), manifest=("m.csv",), export=kinds)
    assert mask.finish(config, out, found, [first, second], 0, Stop()) == 0
    exports.delete_exports(out, [first["video_id"]])
    left = {entry.path for entry in (out / "export").walk()}
    assert left
    assert all(second["video_id"] in path for path in left)
    assert any(path.startswith("png/") for path in left)


def test_a_marker_without_its_masks_is_not_done(clips, settings, tmp_path):
    out = Location.parse(tmp_path / "out")
    found, records = made(clips, settings, out)
    masks_place(out, records[0]["video_id"]).delete()
    results = read_results(out, found.work, read=False)
    assert [results.is_done(work, False) for work in found.work[:2]] == [False, True]
    assert f"{records[0]['video_id']} is masked again" in results.messages()[0]


def test_a_failure_of_storage_costs_one_video_and_not_the_batch(clips, settings, tmp_path):
    worker, work = masker(tmp_path, clips, settings), plan(clips, settings).work[0]

    def refuse(*args):
        raise StorageError("the disk is full", errno.ENOSPC)

    worker.attempts.begin = refuse
    record = json.loads(worker({"work": work.to_json()})["record"])
    assert (record["status"], record["code"], record["error"]) == (
        "failed", "storage", "the disk is full",
    )  # fmt: skip
    assert record["video_id"] == work.video_id


@pytest.mark.parametrize("after", [False, True])
def test_publishing_is_tried_again(clips, settings, tmp_path, monkeypatch, after):
    """Storage refused the move, or moved the file and its answer was lost."""
    monkeypatch.setattr(batch, "PUBLISH_WAITS", (0.0, 0.0))
    out, move, tries = Location.parse(tmp_path / "out"), Location.move, []

    def stumble(source, target):
        tries.append(source)
        if len(tries) == 1 and not after:
            raise StorageError("timed out")
        move(source, target)
        if len(tries) == 1:
            raise StorageError("timed out")

    monkeypatch.setattr(Location, "move", stumble)
    _, (record,) = made(clips, settings, out, count=1)
    assert read_markers(out)[record["video_id"]] == record
    assert [entry.path for entry in (out / "masks").walk()] == [f"{record['video_id']}.parquet"]


def test_a_manifest_that_does_not_read_is_never_skipped(clips, tmp_path, capsys):
    (tmp_path / "half.parquet").write_bytes(b"PAR1")
    manifests = [str(clips / "clicks.csv"), str(tmp_path / "half.parquet")]
    flags = ["--manifest", *manifests, "--out", f"{tmp_path}/out", "--skip-invalid"]
    assert mask.main(flags) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/half.parquet: half.parquet is unreadable" in said
    assert "--skip-invalid leaves out videos, not unreadable manifests" in said


def test_a_second_start_on_the_same_folder_is_refused(clips, tmp_path, capsys):
    out = Location.parse(tmp_path / "out")
    flags = ["--manifest", str(clips / "clicks.csv"), "--out", str(out), "--skip-invalid"]
    with exclusive(out, "jobs.mask"):
        assert mask.main([*flags, "--check"]) == 0  # which writes nothing
        assert mask.main(flags) == 2
    assert f"--out {out} is in use by jobs.mask (process " in capsys.readouterr().err


def test_a_name_that_begins_with_a_tilde_is_not_the_home_folder(clips, tmp_path):
    (tmp_path / "~tmp.mp4").write_bytes((clips / "c0.mp4").read_bytes())
    (tmp_path / "m.csv").write_text("uri,object_id,frame,x,y\n~tmp.mp4,1,0,32,40\n")
    (work,) = mask_plan.plan_batch([str(tmp_path / "m.csv")], None, "settings").work
    assert work.uri == str(tmp_path / "~tmp.mp4")
    assert Location.parse(work.uri).exists()


def test_ids_that_are_too_long_for_a_file_name_have_markers(tmp_path):
    out, long = Location.parse(tmp_path), "長い名前/" * 60 + "clip"
    assert len(marker_place(out, long).name) < 100
    record = {"video_id": long, "uri": "v", "key": "k", "status": "failed", "code": "storage"}
    marker_place(out, long).write_json(record | {"error": "full", "frames": 0, "seconds": 0})
    assert list(read_markers(out)) == [long]


def test_a_uri_that_is_no_location_is_a_fault_of_its_row(clips, settings, tmp_path):
    (tmp_path / "m.csv").write_text("uri,object_id,frame,x,y\nhttps://x/a.mp4,1,0,3,4\n")
    found = mask_plan.plan_batch([str(tmp_path / "m.csv")], None, settings)
    assert "m.csv: row 1: uri is 'https://x/a.mp4'; expected a file" in found.faults[0]


def test_a_folder_with_a_gap_is_a_fault_of_its_row(tmp_path):
    for name in ("0.png", "1.png", "2.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    state = mask_plan.state_of(str(tmp_path))
    assert [name for name, _, _ in state] == ["0.png", "1.png", "2.png"]
    (tmp_path / "3.png").symlink_to("gone.png")
    (tmp_path / "m.csv").write_text(f"uri,object_id,frame,x,y\n{tmp_path},1,0,3,4\n")
    (fault,) = mask_plan.plan_batch([str(tmp_path / "m.csv")], None, "settings").faults
    assert "3.png: a link to nothing; a gap would shift all frames after it" in fault
    (tmp_path / "3.png").unlink()
    (tmp_path / "3.heic").write_bytes(b"a picture")
    (fault,) = mask_plan.plan_batch([str(tmp_path / "m.csv")], None, "settings").faults
    assert "3.heic: a format that is not read" in fault
