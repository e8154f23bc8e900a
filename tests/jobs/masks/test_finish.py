"""What is made of masked videos: scores against a truth, and training data."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import mask
from jobs.masks import batch, ledger, score
from jobs.masks import pairs as masked
from jobs.masks.finish import finish_video
from jobs.masks.folder import table_of
from jobs.run.signals import Stop
from jobs.storage.location import Location
from masking.images.decode import ImageError
from masking.images.masks import davis
from masking.outputs.formats import davis_png, mask_png
from masking.outputs.rows import frames_of, mask_of
from masking.outputs.score import read_mask
from masking.training.pairs import PairsConfig, survey
from tests.masked import masker, plan
from tests.masking.tracking.test_masking import film
from tests.moving import picture

FRAMES = 8


def shown(t):
    return picture({1: (30 + 2 * t, 40, 13), 2: (120 - 2 * t, 60, 15)})


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory, settings):
    """A run over a clip with two objects, without Ray: its folder, the run and its record."""
    folder = tmp_path_factory.mktemp("after")
    film(folder / "c.mp4", [shown(t) for t in range(FRAMES)])
    (folder / "clicks.csv").write_text(
        "uri,object_id,frame,x,y\nc.mp4,1,0,30,40\nc.mp4,2,0,120,60\nc.mp4,3,0,5,5\n"
    )
    out = Location.parse(folder / "out")
    worker = masker(out, folder, settings)
    record = json.loads(worker({"work": plan(folder, settings).work[0].to_json()})["record"])
    batch.publish(record, out, out / ".parts/token")
    (out / "videos.parquet").write_bytes(ledger.ledger_bytes([record]))
    return folder, out, record


def write_truth(folder, video="c"):
    """Write true masks as DAVIS does, with a void corner on one frame."""
    target = folder / "Annotations/480p" / video
    target.mkdir(parents=True)
    for t in range(FRAMES):
        labels = shown(t)[1].astype(np.uint16)
        if t == 3:
            labels[:10, :10] = 255
        (target / f"{t:05d}.png").write_bytes(davis_png(labels))
    return folder


def test_scores_are_those_of_davis(masked_run, tmp_path):
    _, out, record = masked_run
    write_truth(tmp_path)
    found = score.score_video(table_of(out, record), "c", Location.parse(tmp_path))
    frames = list(frames_of(pq.read_table(io.BytesIO((out / "masks/c.parquet").read_bytes()))))
    assert found["frames"] == FRAMES - 2
    assert set(found["objects"]) == {1, 2}  # the true masks have no third object
    for place, number in enumerate((1, 2)):
        truth = [shown(t)[1] == number for t in range(FRAMES)]
        masks = [mask_of(rows[place], owned=True) for _, rows in frames]
        for t in (3,):
            truth[t][:10, :10] = masks[t][:10, :10] = False
        j, f = davis(truth, masks)
        got = found["objects"][number]
        assert (got["j"], got["f"]) == pytest.approx((j, f))
        assert got["j_and_f"] == pytest.approx((j + f) / 2)


def test_a_folder_an_object_and_faults_of_a_truth(masked_run, tmp_path):
    _, out, record = masked_run
    one = tmp_path / "c/2"
    one.mkdir(parents=True)
    for t in (0, 4, 5, 7):
        (one / f"{t:05d}.png").write_bytes(mask_png(shown(t)[1] == 2))
    (one / "._00004.png").write_bytes(b"left by macOS")
    place, table = Location.parse(tmp_path), table_of(out, record)
    found = score.score_video(table, "c", place)
    assert (found["frames"], set(found["objects"])) == (2, {2})
    assert found["matched_by"] == "index"
    assert score.score_video(table, "c", Location.parse(tmp_path / "nowhere")) is None
    (one / "00099.png").write_bytes(mask_png(shown(4)[1] == 2))
    with pytest.raises(ImageError, match=r"the true mask 00099\.png is of no frame of the video"):
        score.score_video(table, "c", place)
    (one / "00099.png").rename(one / "4.png")
    with pytest.raises(ImageError, match=r"00004\.png and 4\.png are both of frame 4"):
        score.score_video(table, "c", place)
    (one / "4.png").rename(one / "last.png")
    (one / "00006.png").symlink_to("gone.png")
    with pytest.raises(ImageError, match=r"00006\.png is a link to nothing"):
        score.score_video(table, "c", place)
    (one / "00006.png").unlink()
    done = finish_video(out, record, [], str(tmp_path))
    assert "not scored: c: ImageError: c: the true mask last.png is of no" in done["errors"][0]
    assert "names that are indices, 00000.png to 00007.png" in done["errors"][0]


def test_the_job_writes_scores_and_shows_the_worst_first(
    masked_run,
    settings,
    tmp_path,
    capsys,
):
    folder, out, record = masked_run
    truth = str(write_truth(tmp_path))
    config = mask.MaskConfig(out=str(out), manifest=("m.csv",), score=truth, export=("davis",))
    asked = plan(folder, settings)
    assert mask.finish(config, out, asked, [record], 1, Stop()) == 0
    found = (out / "score.json").read_json()
    assert found["objects"] == 2
    assert found["videos_without_masks"] == 1
    each = [one["j_and_f"] for one in found["videos"]["c"]["objects"].values()]
    assert found["j_and_f"] == pytest.approx(np.mean(each))
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index("   J&F      J      F  object") + 1 :]
    assert [float(line.split()[0]) for line in table[:2]] == [round(v, 3) for v in sorted(each)]
    assert "mean of 2 objects of 1 videos" in table[2]
    gone = ["--manifest", str(folder / "clicks.csv"), "--out", str(tmp_path / "o")]
    assert mask.main([*gone, "--score", str(tmp_path / "gone")]) == 2


def test_the_ledger_says_where_videos_are_now(masked_run, settings, tmp_path):
    folder, out, _ = masked_run
    copy = Location.parse(tmp_path / "run")
    copy.upload(out.local_path)
    asked = plan(folder, settings)
    moved = replace(asked.work[0], uri="/elsewhere/c.mp4", extra={"camera": "south"})
    config = mask.MaskConfig(out=str(copy), manifest=("m.csv",))
    (good,), failed = mask.conclude(config, copy, replace(asked, work=(moved,)), [], 1.0)
    assert (good["uri"], good["extra"], failed) == ("/elsewhere/c.mp4", {"camera": "south"}, [])
    table = pq.read_table(io.BytesIO((copy / "videos.parquet").read_bytes()))
    assert table["uri"].to_pylist() == ["/elsewhere/c.mp4"]


def test_exports_delete_files_of_earlier_masks(masked_run):
    _, out, record = masked_run
    frames = {f"{t:05d}.png" for t in range(FRAMES)}
    for place in ("davis/c", "png/c/1", "png/c/9"):
        (out / "export" / place / "00099.png").write_bytes(b"old")
    (out / "export/davis/c/d/00099.png").write_bytes(b"of a video c/d")
    assert finish_video(out, record, ["davis", "png"], None)["errors"] == []
    assert {e.name for e in (out / "export/davis/c").list()} == frames | {"d"}
    assert (out / "export/davis/c/d/00099.png").exists()
    for number in (1, 2, 3):
        assert {e.name for e in (out / f"export/png/c/{number}").list()} == frames
    assert not (out / "export/png/c/9/00099.png").exists()


def test_a_format_that_fails_costs_the_others_nothing(masked_run, monkeypatch):
    _, out, record = masked_run
    monkeypatch.setattr("jobs.masks.exports.davis_png", lambda labels: 1 / 0)
    errors = finish_video(out, record, ["davis", "overlay"], None)["errors"]
    assert ["c as davis: ZeroDivisionError" in error for error in errors] == [True]
    assert (out / "export/overlay/c.mp4").exists()


def test_what_a_film_lacks_is_told(masked_run, monkeypatch):
    _, out, record = masked_run
    monkeypatch.setattr("jobs.masks.exports._write_film", lambda path, *_: path.touch() or ["mute"])
    done = finish_video(out, record, ["davis", "overlay"], None)
    assert (done["errors"], done["notes"]) == ([], ["c as overlay: mute"])


def test_ids_beyond_an_indexed_png_are_refused_before_masking(tmp_path, capsys):
    film(tmp_path / "c.mp4", [shown(t) for t in range(3)])
    (tmp_path / "m.csv").write_text("uri,object_id,frame,x,y\nc.mp4,256,0,30,40\n")
    argv = ["--manifest", str(tmp_path / "m.csv"), "--out", str(tmp_path / "o")]
    assert mask.main([*argv, "--export", "davis"]) == 2
    assert "--export davis: c: object 256" in capsys.readouterr().err


def test_a_soft_edge_and_a_palette_are_masks_of_one_object():
    soft = Image.fromarray(np.array([[0, 60, 200, 255]], np.uint8))
    indexed = Image.fromarray(np.array([[0, 0, 255, 255]], np.uint8))
    indexed.putpalette([0] * 768)
    for picture_of in (soft, indexed):
        content = io.BytesIO()
        picture_of.save(content, "png")
        found = read_mask(content.getvalue(), "m.png", (1, 4))
        assert found.tolist() == [[False, False, True, True]]


def test_a_mask_run_is_training_data(masked_run, cache):
    folder, out, _ = masked_run
    assert masked.is_run(out)
    assert not masked.is_run(Location.parse(folder))
    file = masked.as_pairs(out, 80)
    table = pq.read_table(io.BytesIO((out / "masks/c.parquet").read_bytes()))
    frames = {
        frame: rows
        for frame, rows in frames_of(table)
        if any(row["state"] in masked.TRUSTED and row["area"] for row in rows)
    }
    pairs = survey([file], PairsConfig(longest=0, smallest=0, largest=1))
    assert len(pairs) == len(frames)
    pair = pairs[0]
    assert pair.image.shape == (48, 80, 3)
    assert "c frame 0" in pair.name
    assert len(pair.masks) == sum(r["state"] in masked.TRUSTED and r["area"] > 0 for r in frames[0])
    assert masked.as_pairs(out, 80) == file
    assert masked.as_pairs(out, 0) != file


def test_uncertain_masks_are_void_and_frames_are_spread():
    size = {"height": 4, "width": 4, "owned": None}
    from masking.images.masks import encode_rle

    here = np.zeros((4, 4), bool)
    here[:2] = True
    rows = [
        {"object_id": 1, "state": "tracked", "rle": encode_rle(here), "area": 8} | size,
        {"object_id": 2, "state": "uncertain", "rle": encode_rle(~here), "area": 8} | size,
    ]
    made = masked._row(np.zeros((4, 4, 3), np.uint8), rows, 0)
    labels, void = (np.asarray(Image.open(io.BytesIO(made[n]))) for n in ("masks", "ignore"))
    assert np.array_equal(labels > 0, here)
    assert np.array_equal(void > 0, ~here)
    many = {n: [{"state": "prompted" if n == 50 else "tracked"}] for n in range(100)}
    found = sorted(masked.choose_frames(many))
    assert len(found) == masked.FRAMES
    assert 50 in found
    assert max(np.diff(found)) <= 4


def test_videos_that_are_missing_or_changed_are_named(masked_run, tmp_path):
    folder, out, record = masked_run
    copy = Location.parse(tmp_path / "run")
    copy.upload(out.local_path)
    rows = [record | {"video_id": "gone", "uri": str(folder / "gone.mp4")}]
    rows.append(record | {"content_sha256": "another"})
    rows.append(record | {"masks_sha256": "another"})
    (copy / "videos.parquet").write_bytes(ledger.ledger_bytes(rows))
    with pytest.raises(ImageError) as caught:
        masked.as_pairs(copy, 0)
    assert "video gone" in str(caught.value)
    assert "video c " in str(caught.value)
    assert "the video has changed since it was masked" in str(caught.value)
    assert "its masks are newer than videos.parquet" in str(caught.value)
    assert "holds masks, not frames" in str(caught.value)


def test_a_ledger_that_is_cut_off_is_named(masked_run, tmp_path):
    _, out, _ = masked_run
    copy = Location.parse(tmp_path / "run")
    copy.upload(out.local_path)
    for content in (b"", (copy / "videos.parquet").read_bytes()[:-20]):
        (copy / "videos.parquet").write_bytes(content)
        with pytest.raises(ImageError, match=r"videos\.parquet cannot be read: .*run jobs\.mask"):
            masked.as_pairs(copy, 0)
