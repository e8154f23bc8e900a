"""`jobs.prompt` in a real browser: clicking, showing frames, tracking."""

import threading

import cv2
import numpy as np
import pytest

from docs.demo import stages
from masking.images.masks import decode_rle
from masking.video.reader import Video
from tests.jobs.page.rows import saved
from tests.moving import segmenter as seeing

FLOWER, LEAF = (110, 150), (357, 110)
"""Points on the two objects of the demo's clip, on its first frame."""


def overlap(page, object_id, truth):
    """Return the IoU of the mask that is shown with the true mask."""
    rle = page.wait(
        "const found = patchray.layers.preview.get(arguments[0]); return found && found.rle",
        object_id,
    )
    mask = decode_rle(rle, truth.shape)
    return (mask & truth).sum() / (mask | truth).sum()


def complaints(page):
    """Return the errors in the browser's console, except for refused requests."""
    return [
        e["message"]
        for e in page.driver.get_log("browser")
        if "responded with a status" not in e["message"]
    ]


def test_click_see_a_mask_reload_undo_and_a_second_object(page, serve, mini, tmp_path):
    page.open(serve(mini).address)
    labels = stages()["flower"].frame(0)[1]
    page.click(*FLOWER)
    page.click(FLOWER[0] - 30, FLOWER[1] + 10)
    page.wait("return patchray.layers.preview.size === 1 && patchray.view.layers.length === 1")
    assert overlap(page, 1, labels == 1) > 0.7
    assert page.text("#saved") == "Saved"
    assert "2 clicks · 1 object" in page.text("#videos [aria-current]")
    table = saved(tmp_path / "m.csv")
    assert [(r["video_id"], r["frame"], r["x"], r["y"]) for r in table] == [
        ("demo", "0", "110", "150"), ("demo", "0", "80", "160"),
    ]  # fmt: skip

    page.driver.refresh()
    page.wait("return window.patchray?.view.picture && patchray.clicks.rows.length === 2")
    assert overlap(page, 1, labels == 1) > 0.7  # the same as before
    page.keys("z", ctrl=True)
    assert len(page.rows()) == len(saved(tmp_path / "m.csv")) == 1
    page.keys("z", ctrl=True, shift=True)
    assert len(page.rows()) == 2

    page.keys("n")
    page.click(*LEAF)
    assert overlap(page, 2, labels == 2) > 0.7
    assert [row["object_id"] for row in page.rows()] == [1, 1, 2]
    page.keys("r", "leaf", "\ue007")
    assert saved(tmp_path / "m.csv")[2]["object_name"] == "leaf"
    assert complaints(page) == []


def test_boxes_moves_deletions_and_negative_clicks(page, serve, tmp_path):
    page.open(serve(seeing()).address.replace("/?", "/?") + "#discs")
    page.drag((17, 27), (43, 53))
    (box,) = page.rows()
    assert [box[name] for name in ("x", "y", "x2", "y2")] == [17, 27, 44, 54]
    page.click(90, 60, negative=True)
    assert page.rows()[1]["label"] == 0
    page.drag((90, 60), (95, 61))
    assert [(r["x"], r["y"]) for r in page.rows()] == [(17, 27), (95, 61)]
    page.drag((44, 54), (49, 58))  # the box by its corner
    assert [page.rows()[0][name] for name in ("x", "y", "x2", "y2")] == [17, 27, 50, 59]
    page.keys("\ue017")  # Delete: what was clicked last
    page.keys("z", ctrl=True)
    assert [row["prompt_type"] for row in saved(tmp_path / "m.csv")] == ["box", ""]
    page.drag((20, 20), (60, 60))  # one box an object and frame
    assert sum("x2" in row for row in page.rows()) == 1
    assert complaints(page) == []


def test_absent_and_end_and_what_replaces_them(page, serve, tmp_path):
    page.open(serve(seeing()).address + "#discs")
    page.click(30, 40)
    page.keys("\ue014" * 4)
    page.keys("x")
    page.keys("\ue014" * 3)
    page.click(44, 40)
    page.keys("\ue014")
    page.keys("e")
    roles = [(r["frame"], r.get("role", "")) for r in saved(tmp_path / "m.csv")]
    assert roles == [("0", ""), ("4", "absent"), ("7", ""), ("8", "end")]
    assert page.run("return patchray.clicks.coverage(1, 12)") == [
        [0, 3, "requested"], [4, 6, "absent"], [7, 7, "requested"],
    ]  # fmt: skip
    page.keys("e")  # pressed again: removed
    page.keys(",", ",")
    assert page.run("return patchray.state.frame") == 4
    page.click(38, 40, saved=False)
    page.settle()
    assert [(r["frame"], r.get("role", "")) for r in saved(tmp_path / "m.csv")] == [
        ("0", ""),
        ("7", ""),
        ("4", ""),
    ]


@pytest.mark.parametrize("video", ["discs", "turned"])
def test_a_click_lands_on_the_pixel_that_it_is_aimed_at(page, serve, tmp_path, video):
    """Corners of the image, at three zooms, on two pixel ratios, rotated or not."""
    page.open(serve(seeing()).address + f"#{video}")
    width, height = page.run("return patchray.view.size")
    assert (width, height) == ((160, 96) if video == "discs" else (96, 160))
    corners = [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1), (41, 37)]
    expected = []
    for ratio in (1, 2):
        page.size(1440, 900, ratio)
        for zoom in (
            "patchray.view.fit()",
            "patchray.view.zoomTo(1)",
            "patchray.view.zoomTo(11.3)",
        ):
            page.run("patchray.view.fit();" + zoom)
            for x, y in corners:
                page.keys("n")
                if "11.3" in zoom:  # what is zoomed in on has to be in the window
                    page.run(
                        "const [x, y] = arguments, v = patchray.view;"
                        "v.place(v.scale, 300 - x * v.scale, 250 - y * v.scale)",
                        x,
                        y,
                    )
                page.click(x, y)
                expected.append((x, y))
    assert [(row["x"], row["y"]) for row in page.rows()] == expected
    assert [(int(r["x"]), int(r["y"])) for r in saved(tmp_path / "m.csv")] == expected
    page.size(1440, 900)


def test_the_frame_stays_under_the_pointer_when_objects_come(page, serve):
    page.open(serve(seeing()).address + "#discs")
    place = (
        "const v = patchray.view, box = v.canvas.getBoundingClientRect();"
        "return [box.top, box.height, v.scale, v.left, v.top]"
    )
    before = page.run(place)
    for x in range(20, 140, 20):
        page.keys("n")
        page.click(x, 40)
    assert page.run(place) == before


def test_a_click_lands_where_it_is_aimed_at_on_another_screen(page, serve):
    """The window moves to a screen with another pixel ratio; its size in CSS pixels stays."""
    page.open(serve(seeing()).address + "#discs")
    page.size(1440, 900, 2)
    page.run("patchray.view.hover([700, 400])")
    page.wait(
        "const { width, clientWidth } = patchray.view.canvas; return width === 2 * clientWidth"
    )
    page.size(1440, 900)


@pytest.fixture
def slow(page):
    """Return a function that holds the page's frames back until the test releases them."""
    return lambda: page.run("""
        const { frames } = patchray.state, load = frames.load;
        frames.known.clear();
        window.asked = [];
        frames.load = (index) => {
          asked.push(index);
          return new Promise((go) => { window.release = () => go(load(index)); });
        };""")


def test_a_click_is_on_the_frame_that_is_shown(page, serve, slow):
    page.open(serve(seeing()).address + "#discs")
    slow()
    page.run("patchray.show(9)")
    page.run("const v = patchray.view; v.on.click(30, 40, false, v.frame)")
    page.says("#message", "was still loading")
    assert page.rows() == []
    page.wait("window.release?.(); return patchray.view.frame === 9")
    page.click(48, 40)
    assert [row["frame"] for row in page.rows()] == [9]


def test_frames_that_are_scrubbed_past_are_not_requested(page, serve, slow):
    """Nothing waits behind them; the last picture stays until the wanted frame is loaded."""
    page.open(serve(seeing()).address + "#discs")
    slow()
    page.run("patchray.show(3)")
    page.wait("return asked.at(-1) === 3 || (window.release?.(), false)")
    page.run("for (const frame of [4, 5, 6, 7, 8, 11]) patchray.show(frame)")
    page.wait("release(); return patchray.view.frame === 11")
    asked = page.run("return asked")
    assert asked[asked.index(3) + 1] == 11
    assert not {4, 5, 6, 7, 8} & {*asked}
    assert complaints(page) == []


def test_while_a_video_opens_keys_change_no_other(page, serve, clips, tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes((clips / "discs.mp4").read_bytes())
    (tmp_path / "v" / "broken.mp4").write_text("no video")
    page.open(serve(seeing(), tmp_path / "v").address + "#a")
    page.click(30, 40)
    page.run("location.hash = '#broken'")
    page.says("#empty", "broken")
    page.wait("return document.querySelector('#undo').disabled")
    assert page.text("#objects .about") == "0 clicks"
    page.keys("\ue017")
    page.keys("z", ctrl=True)
    page.keys("x")
    assert [(row["video_id"], row["x"]) for row in saved(tmp_path / "m.csv")] == [("a", "30")]


def test_elements_that_are_pressed_or_focused_are_not_replaced(page, serve):
    page.open(serve(seeing()).address + "#discs")
    page.run("""
        window.before = [...document.querySelectorAll("#videos button, #objects li")];
        before[0].focus();""")
    page.click(30, 40, saved=False)
    page.settle()
    page.run("before[0].focus(); patchray.play()")
    page.wait("return patchray.state.frame === 11 && !patchray.state.playing")
    kept = "return before.every((one) => one.isConnected) && document.activeElement === before[0]"
    assert page.run(kept)
    assert page.text("#objects .about").startswith("1 click")


def test_playing_again_plays_once(page, serve):
    page.open(serve(seeing()).address + "#demo")
    page.run(
        "for (let i = 0; i < 5; i++) patchray.state.playing ? patchray.pause() : patchray.play()"
    )
    page.wait("return patchray.state.frame >= 3")
    shown = page.driver.execute_async_script("""
        const [done] = arguments, { state } = patchray;
        const [from, start] = [state.frame, performance.now()];
        setTimeout(() => done([state.frame - from, performance.now() - start]), 600);""")
    assert shown[0] <= shown[1] / 40 + 2  # of 25 a second: a slow machine shows fewer


def test_a_click_beside_the_frame_is_ignored(page, serve):
    page.open(serve(seeing()).address + "#discs")
    page.run("patchray.view.zoomTo(2)")
    page.click(-3, 40, saved=False)
    page.click(160, 40, saved=False)
    page.click(30, 96, saved=False)
    page.click(30, 40)
    assert len(page.rows()) == 1


def test_the_frame_that_is_shown_is_the_frame_of_its_number(page, serve, clips):
    page.open(serve(seeing()).address + "#demo")
    with Video.open(clips / "demo.mp4") as video:
        expected = [frame.image[20:30, 200:210].mean((0, 1)) for frame in video]
    shown = page.driver.execute_async_script("""
        const [done] = arguments, found = [], surface = new OffscreenCanvas(10, 10)
          .getContext("2d", { willReadFrequently: true });
        (async () => {
          for (const index of [0, 29, 3, 28, 2, 15, 14, 16]) {
            await patchray.show(index);
            surface.drawImage(patchray.view.picture, -200, -20);
            const { data } = surface.getImageData(0, 0, 10, 10);
            const mean = [0, 1, 2].map((c) =>
              data.filter((_, i) => i % 4 === c).reduce((a, b) => a + b) / 100);
            found.push([patchray.state.frame, mean]);
          }
          done(found);
        })()""")
    for index, mean in shown:
        assert np.abs(np.array(mean) - expected[index]).max() < 2  # of JPEG
    assert page.text("#count") == "of 30"
    assert page.text("#seconds") == "0.640 s"


def test_track_a_few_seconds_with_progress_and_cancel(page, serve):
    page.open(serve(seeing()).address + "#discs")
    page.keys("t")
    page.says("#message", "click on an object first")
    page.click(30, 40)
    page.keys("t")
    page.says("#track-state", "frames 0 to 11")
    page.keys("\ue014" * 8)
    page.wait("return patchray.view.layers.length === 1 && !patchray.layers.preview.size")
    assert "tracked" in page.text("#objects")
    page.driver.refresh()  # what was tracked is still there
    page.says("#track-state", "frames 0 to 11")
    page.run("location.hash = '#demo'")
    page.wait("return patchray.state.video === 'demo' && !patchray.view.layers.length")
    assert page.text("#track-state") == ""


def test_cancel_a_track(page, serve, mini):
    page.open(serve(mini).address + "#demo")
    page.click(*FLOWER)
    page.keys("t")
    page.says("#track-state", "of 30")
    page.keys("\ue00c")
    page.says("#track-state", "cancelled after")


def test_a_tab_with_old_clicks_is_refused(page, serve, tmp_path):
    address = serve(seeing()).address
    page.open(address + "#discs")
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.size(1440, 900)
    page.open(address + "#discs")
    page.click(30, 40)
    page.driver.switch_to.window(first)
    page.click(90, 60, saved=False)
    page.says("#message", "another tab")
    page.wait("return patchray.clicks.rows.length === 1 && !patchray.clicks.pending.length")
    assert page.text("#saved") == "Not saved"
    page.click(90, 60)
    assert [(r["x"], r["y"]) for r in saved(tmp_path / "m.csv")] == [("30", "40"), ("90", "60")]
    page.driver.switch_to.window(page.driver.window_handles[1])
    page.driver.close()
    page.driver.switch_to.window(first)


def test_keys_are_listed_and_a_window_of_1024_pixels_is_enough(page, serve):
    page.open(serve(seeing()).address + "#discs")
    page.size(1024, 700)
    page.keys("?")
    assert "not visible from this frame on" in page.text("#help")
    page.keys("\ue00c")
    inside = page.run("""return [...document.querySelectorAll("button, input")]
        .filter((one) => one.checkVisibility())
        .every((one) => { const box = one.getBoundingClientRect();
                          return box.left >= 0 && box.right <= 1024 && box.width > 0; })""")
    assert inside
    assert page.run("return document.documentElement.scrollWidth") == 1024
    assert page.run("return patchray.view.canvas.clientWidth") > 500
    page.keys("\ue014", "\ue014")
    assert page.run("return patchray.state.frame") == 2
    page.keys("\ue010")
    assert page.run("return patchray.state.frame") == 11
    page.keys("g", "5\ue007")
    assert page.run("return patchray.state.frame") == 5
    elsewhere = page.run(
        "return performance.getEntriesByType('resource').map((e) => e.name)"
        ".filter((name) => !name.startsWith(location.origin) && !name.startsWith('data:'))"
    )
    assert elsewhere == []
    page.size(1440, 900)
    assert complaints(page) == []


def test_a_click_is_saved_while_the_masks_of_twelve_objects_are_awaited(page, serve):
    """A browser has six connections; a save, a track and its end do not wait for a mask."""
    segmenter, gate = seeing(), threading.Event()
    encode = segmenter.encode

    def wait(images):
        gate.wait(60)
        return encode(images)

    segmenter.encode = wait
    page.open(serve(segmenter).address + "#discs")
    page.run("""
        window.saved = 0;
        (async () => {
          for (let object = 1; object <= 12; object++) {
            window.saved += await patchray.clicks.add(0, object, { x: 20 + object, y: 40 }, "init");
          }
        })();""")
    page.wait("return saved === 12")
    page.driver.refresh()
    page.wait("return window.patchray?.view.picture && patchray.clicks.rows.length === 12")
    page.wait("return patchray.layers.turns.running === 2")
    assert page.run("return patchray.layers.turns.waiting.length") == 10
    page.click(90, 60, negative=True)
    assert len(page.rows()) == 13
    page.show(3)  # the masks of the frame that was left are not requested any more
    page.wait("return patchray.layers.turns.running === 0")
    gate.set()
    page.show(0)
    page.wait("return patchray.layers.preview.size === 12")
    assert complaints(page) == []


def test_the_name_of_a_frame_is_shown_where_the_video_is_a_folder(page, serve, tmp_path):
    (tmp_path / "in" / "still").mkdir(parents=True)
    for number in (5, 10, 15):
        image = np.full((64, 64, 3), 10 * number, np.uint8)
        cv2.imwrite(str(tmp_path / "in" / "still" / f"{number:05}.png"), image)
    page.open(serve(seeing(), tmp_path / "in").address)
    page.says("#file", "00005.png")
    page.show(2)
    page.says("#file", "00015.png")
