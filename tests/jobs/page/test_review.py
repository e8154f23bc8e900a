"""The review of a mask run: what is corrected is masked again, what is accepted is not."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import mask, prompt
from jobs.masks import batch
from jobs.masks import plan as mask_plan
from jobs.masks.folder import masks_place, part_place
from jobs.masks.results import read_results
from jobs.page import videos as prompt_videos
from jobs.page.review import MaskRun
from jobs.page.session import Session
from jobs.page.store import Store
from jobs.run.config import parse
from jobs.storage.location import Location
from masking.images.masks import decode_rle
from tests.moving import SIZE, segmenter


@pytest.fixture(scope="module")
def masked(videos, tmp_path_factory):
    """A run of jobs.mask over both videos, with a doubtful span in each."""
    folder = tmp_path_factory.mktemp("run")
    manifest = folder / "clicks.csv"
    lines = [f"{videos / name}.mp4,{name},1,0,30,40,1" for name in "ab"]
    manifest.write_text("\n".join(["uri,video_id,object_id,frame,x,y,label", *lines]) + "\n")
    out = Location.parse(folder / "masks")
    config = mask.MaskConfig(out=str(out), manifest=(str(manifest),), precision="float32")
    run_by_hand(config, out)
    return out, manifest


def run_by_hand(config, out, only=None):
    """The stages of jobs.mask, in this process; returns which videos were masked."""
    from jobs.masks import video as mask_work
    from jobs.run.folder import describe
    from jobs.weights.segmenter import locate

    wanted = mask_plan.settings_of(locate("mini"), "float32", config.track)
    plan = mask_plan.plan_batch(config.manifest, None, wanted)
    assert plan.faults == []
    results = read_results(out, plan.work, read=False)
    todo = [work for work in plan.work if not results.is_done(work, config.retry_failed)]
    describe(out, config)
    records = []
    for work in todo:
        local = Path(str(out)) / "part"
        record = mask_work.mask(work, segmenter(), config.track, local)
        spans = [
            {"video_id": work.video_id, "object_id": 1, "first_frame": first, "last_frame": last,
             "reason": "uncertain", "click_frame": first, "severity": 1.0 + last - first}
            for first, last in ((2, 3), (5, 7))
        ]  # fmt: skip
        record["review"] = [] if only else spans
        place = part_place(out / ".parts" / "token", work.video_id)
        place.write_bytes(local.read_bytes())
        batch.publish(record, out, out / ".parts" / "token")
        records.append(record)
    mask.conclude(config, out, plan, records, 1.0)
    return [work.video_id for work in todo]


def test_review_end_to_end_redoes_only_what_was_corrected(masked, tmp_path, capsys):
    out, _ = masked
    path = tmp_path / "corrected.csv"
    source = prompt_videos.find(str(out), path, None)
    run = MaskRun(source.run)
    store = Store(path, source.rows)
    session = Session(store, source.clips, segmenter(), run)

    def answers(video_id):
        about = session.video(video_id)
        return about["status"], [span["answer"] for span in about["spans"]]

    assert answers("a") == answers("b") == ("done", ["", ""])
    assert session.state("a")["states"][1][0] == (0, 0, "prompted")
    (found,) = session.masks("a", 5)
    assert decode_rle(found["rle"], SIZE)[40, 40]
    accepted = {"object_id": 1, "frame": 2, "until": 3, "role": "accept"}
    session.change("b", session.rows("b")["revision"], [{"row": 0}, accepted])
    assert answers("b") == ("done", ["accepted", ""])  # nothing to mask again
    fixed = {"object_id": 1, "frame": 6, "x": 42, "y": 40, "label": 1, "role": "correct"}
    session.change("a", session.rows("a")["revision"], [{"row": 0}, fixed])
    assert answers("a") == ("changed", ["", "corrected"])
    asked = [{"object_id": 1, "corrects": True, "clicks": [{"x": 42, "y": 40, "label": 1}]}]
    prompt.conclude(SimpleNamespace(session=session), prompt.PromptConfig(videos="v", out="m.csv"))
    (line,) = [text for text in capsys.readouterr().out.splitlines() if "next:" in text]
    flags = shlex.split(line.partition("jobs.mask ")[2])
    again = parse(mask.MaskConfig, flags, "jobs.mask", "")
    assert (again.out, again.manifest, again.precision) == (str(out), (str(path),), "float32")
    assert again.root == str(tmp_path)
    (preview,) = session.preview("a", 6, session.state("a")["version"], asked)
    assert preview["width"] == SIZE[1]
    session.close()
    config = mask.MaskConfig(out=str(out), manifest=(str(path),), precision="float32")
    assert run_by_hand(config, out, only=True) == ["a"]
    review = (out / "review.csv").read_text()
    assert "b,1,5,7" in review
    assert "b,1,2,3" not in review  # accepted
    again = Session(Store(path), source.clips, segmenter(), MaskRun(out))
    assert again.video("a")["status"] == again.video("b")["status"] == "done"
    again.close()


def test_damaged_masks_cost_only_their_video_until_they_are_made_again(masked, tmp_path):
    out, _ = masked
    source = prompt_videos.find(str(out), tmp_path / "m.csv", None)
    session = Session(
        Store(tmp_path / "m.csv", source.rows), source.clips, segmenter(), MaskRun(out)
    )
    before, status = session.state("a")["states"], session.video("b")["status"]
    place = masks_place(out, "b")
    content = place.read_bytes()
    place.write_bytes(content[:100])
    assert session.state("b")["states"] == {}
    assert session.masks("b", 3) == []
    assert session.video("b")["status"] == "changed"
    assert "run jobs.mask again" in session.video("b")["failure"]
    assert session.state("a")["states"] == before
    place.write_bytes(content)
    assert session.videos()[1]["status"] == status
    assert session.state("b")["states"]
    session.close()


def test_accepts_change_no_key_and_no_prompt(videos, tmp_path):
    lines = ["uri,object_id,frame,x,y,role,until", "a.mp4,1,0,30,40,,"]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    before = mask_plan.plan_batch([str(tmp_path / "m.csv")], str(videos), "settings")
    lines += ["a.mp4,1,4,,,accept,9", "a.mp4,1,12,,,accept,"]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    after = mask_plan.plan_batch([str(tmp_path / "m.csv")], str(videos), "settings")
    assert after.work == before.work
    span = {"object_id": 1, "first_frame": 4, "last_frame": 9}
    rows = after.accepted["a"]
    assert mask_plan.is_accepted(rows, span)
    assert mask_plan.is_accepted(rows, span | {"first_frame": 12, "last_frame": 12})
    for other in ({"last_frame": 10}, {"first_frame": 3}, {"object_id": 2}, {"last_frame": 13}):
        assert not mask_plan.is_accepted(rows, span | other)
