"""`jobs.prompt` in a real browser: nothing that was saved is lost; a review to its end."""

import signal
import subprocess
import sys

import pytest

from jobs import mask
from jobs.masks.folder import read_markers
from jobs.storage.location import Location, StorageError
from tests.conftest import ROOT
from tests.jobs.page.rows import saved
from tests.masked import mask_without_ray
from tests.masking.tracking.test_masking import film
from tests.moving import picture
from tests.moving import segmenter as seeing


class Job:
    """`python -m jobs.prompt` in a process of its own."""

    def __init__(self, *flags):
        argv = [
            sys.executable,
            "-m",
            "jobs.prompt",
            *map(str, flags),
            "--no-browser",
            "--device",
            "cpu",
        ]
        self.process = subprocess.Popen(
            argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        lines = iter(self.process.stdout.readline, "")
        self.address = next(line.strip() for line in lines if "token=" in line)

    def end(self, number):
        """End the job by a signal; returns its exit code and output."""
        self.process.send_signal(number)
        output = self.process.communicate(timeout=60)[0]
        return self.process.returncode, output


@pytest.mark.skipif(sys.platform != "linux", reason="kill -9 of a process group")
def test_kill_9_loses_no_click_that_was_acknowledged(page, clips, tmp_path):
    """In the middle of twenty clicks; then the same command again."""
    flags = [clips / "discs.mp4", "--out", tmp_path / "m.csv", "--port", 0]
    job = Job(*flags)
    page.open(job.address)
    page.run("""
        const places = [...Array(20).keys()].map((i) => [5 + 7 * i, 10 + 4 * i]);
        window.acknowledged = [];
        (async () => {
          for (const [x, y] of places) {
            const saved = await patchray.clicks.add(patchray.state.frame, 1, { x, y }, "init");
            if (saved) window.acknowledged.push([x, y]);
          }
        })();""")
    page.wait("return acknowledged.length >= 7")
    assert job.end(signal.SIGKILL)[0] == -signal.SIGKILL
    page.says("#saved", "Not saved")
    acknowledged = page.run("return acknowledged")
    assert 7 <= len(acknowledged) < 20
    on_disk = [[int(row["x"]), int(row["y"])] for row in saved(tmp_path / "m.csv")]
    assert on_disk[: len(acknowledged)] == acknowledged
    assert len(on_disk) <= len(acknowledged) + 1  # one may have been on its way
    job = Job(*flags)
    page.open(job.address)
    assert [[row["x"], row["y"]] for row in page.rows()][: len(acknowledged)] == acknowledged
    page.click(150, 90)
    code, output = job.end(signal.SIGINT)
    assert code == 130
    assert "next: python -m jobs.mask --manifest" in output
    assert saved(tmp_path / "m.csv")[-1]["x"] == "150"


def test_done_ends_the_job(page, clips, tmp_path):
    job = Job(clips / "discs.mp4", "--out", tmp_path / "m.csv", "--port", 0)
    page.open(job.address)
    page.click(30, 40)
    page.press("#done")
    output = job.process.communicate(timeout=60)[0]
    assert job.process.returncode == 0
    assert "1 clicks on 1 objects of 1 videos" in output
    assert "Everything is saved, and jobs.prompt has ended" in page.text("body")


def test_done_does_not_say_that_all_is_saved_where_it_is_not(page, serve, tmp_path, monkeypatch):
    page.open(serve(seeing()).address + "#discs")

    def full(self, content):
        raise StorageError("no space left")

    monkeypatch.setattr(Location, "write_bytes", full)
    page.click(30, 40, saved=False)
    page.says("#saved", "Not saved")
    page.press("#done")
    page.says("#message", "Your last change was not saved")
    monkeypatch.undo()
    page.click(30, 40)
    page.press("#done")
    page.says("body", "Everything is saved")
    assert len(saved(tmp_path / "m.csv")) == 1


@pytest.fixture
def masked(tmp_path, monkeypatch):
    """Two clips in which a disc disappears, masked by `jobs.mask`, and a function to mask again."""
    for name in "ab":
        places = [(30 + 2 * t, 40, 13) if t < 12 else None for t in range(30)]
        film(tmp_path / f"{name}.mp4", [picture({1: place}, ord(name)) for place in places])
    rows = [f"{name}.mp4,1,0,30,40,1" for name in "ab"]
    (tmp_path / "first.csv").write_text("\n".join(["uri,object_id,frame,x,y,label", *rows]) + "\n")
    out = Location.parse(tmp_path / "masks")
    mask_without_ray(monkeypatch)

    def run(manifest):
        assert mask.main(["--manifest", str(manifest), "--out", str(out)]) == 0

    run(tmp_path / "first.csv")
    return out, run


def correct(page, video):
    """Click on the last frame with the disc, and mark it as absent from the next frame on."""
    assert page.run("return patchray.state.video") == video
    page.show(11)
    page.wait("return patchray.layers.run.length === 1 && patchray.view.layers.length === 1")
    page.click(52, 41)
    page.show(12)
    page.keys("x")


def test_mask_review_and_redo_only_one_video(page, serve, masked, mini, tmp_path, capsys):
    """One of two videos is corrected; the doubtful spans of the other are accepted."""
    out, mask_again = masked
    before = read_markers(out)
    spans = sorted(
        (s for name in "ab" for s in before[name]["review"]), key=lambda s: -s["severity"]
    )
    worst = spans[0]
    other = "b" if worst["video_id"] == "a" else "a"
    assert {span["video_id"] for span in spans} == {"a", "b"}

    page.open(serve(mini, run=out).address)
    page.says("#span-count", f"{len(spans)} of {len(spans)} left")
    page.keys("]")
    page.wait(
        "return patchray.state.frame === arguments[0] && patchray.view.picture",
        worst["click_frame"],
    )
    correct(page, worst["video_id"])
    for _ in before[other]["review"]:
        page.keys("]")
        page.wait("return patchray.state.video === arguments[0] && patchray.state.info", other)
        page.keys("a")
    page.says("#span-count", "0 of")
    page.says("#redo-count", "1 video again")
    roles = [(r["uri"][0], r["role"]) for r in saved(tmp_path / "m.csv") if r["role"]]
    accepts = [(other, "accept")] * len(before[other]["review"])
    assert sorted(roles) == sorted(
        [(worst["video_id"], "correct"), (worst["video_id"], "absent"), *accepts]
    )

    capsys.readouterr()
    mask_again(tmp_path / "m.csv")
    assert "2 videos, 2 objects, 1 videos done, 0 with faults" in capsys.readouterr().out
    after = read_markers(out)
    assert after[other] == before[other]
    assert after[worst["video_id"]]["key"] != before[worst["video_id"]]["key"]
    assert after[worst["video_id"]]["objects"]["1"]["absent"] == 18
    assert saved(tmp_path / "masks" / "review.csv") == []
    page.driver.refresh()
    page.wait(
        "return window.patchray?.state.project?.videos.every((video) => video.status === 'done')"
    )
