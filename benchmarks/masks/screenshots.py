"""Makes the pictures of jobs.prompt in the docs: clicking on a clip, and reviewing its masks.

    python -m benchmarks.masks.screenshots --out docs/pictures

Makes the clip of `docs.demo`, masks it with `jobs.mask` from two clicks, and drives the page in
Chromium (Debian: chromium, chromium-driver). Writes prompt.png and review.png.
"""

import argparse
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from docs import demo
from jobs import mask
from jobs.page import videos
from jobs.page.review import MaskRun
from jobs.page.server import Server
from jobs.page.session import Session
from jobs.page.store import Store
from jobs.weights.segmenter import load_segmenter
from masking.video.writer import Film

WIDTH, HEIGHT = 1280, 760
CLICKS = ((110, 150), (80, 160)), ((357, 110),)
"""Points on the flower and on the leaf, in pixels of the first frame."""


def begin(source: str, manifest: Path) -> Server:
    """Serve the page as `jobs.prompt` does."""
    found = videos.find(source, manifest, None)
    run = None if found.run is None else MaskRun(found.run)
    segmenter = load_segmenter("mini", torch.device("cpu"))
    session = Session(Store(manifest, found.rows), found.clips, segmenter, run)
    return Server(session, "127.0.0.1", 0)


def browser() -> webdriver.Chrome:
    """Start Chromium with a window of a fixed size, without a screen."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    return driver


def wait(driver: webdriver.Chrome, script: str) -> None:
    """Wait until a script returns a true value."""
    WebDriverWait(driver, 300).until(lambda page: page.execute_script(f"return {script}"), script)


def click(driver: webdriver.Chrome, x: int, y: int) -> None:
    """Click on a pixel of the frame, and wait until it is saved and has a mask."""
    place = driver.execute_script("return patchray.view.clientOf(...arguments)", x, y)
    chain = ActionChains(driver, duration=0)
    chain.w3c_actions.pointer_action.move_to_location(*map(int, place)).click()
    chain.perform()
    wait(driver, "!patchray.clicks.waiting && patchray.layers.preview.size")


def click_objects(driver: webdriver.Chrome, address: str) -> None:
    """Click on two objects, name them, and track them."""
    driver.get(address)
    wait(driver, "window.patchray?.view.picture && patchray.state.complete")
    for number, (places, name) in enumerate(zip(CLICKS, ("flower", "leaf"), strict=True)):
        if number:
            ActionChains(driver).send_keys("n").perform()
        for place in places:
            click(driver, *place)
        ActionChains(driver).send_keys("r", name, "\ue007").perform()
    wait(driver, "!patchray.clicks.waiting && patchray.layers.preview.size === 2")
    ActionChains(driver).send_keys("t").perform()
    wait(driver, "document.querySelector('#track-state').textContent.startsWith('frames')")


def review(driver: webdriver.Chrome, address: str) -> None:
    """Open the worst span of a run."""
    driver.get(address)
    wait(driver, "window.patchray?.view.picture && patchray.state.complete")
    ActionChains(driver).send_keys("]").perform()
    wait(
        driver, "patchray.review.chosen >= 0 && patchray.view.picture && patchray.layers.run.length"
    )


def shoot(driver: webdriver.Chrome, path: Path) -> None:
    """Write a screenshot in 256 colours, which makes it a third as large."""
    time.sleep(1)  # until the last frame is drawn and thumbnails are loaded
    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    picture.quantize(256, kmeans=3).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main(argv: Sequence[str] | None = None) -> int:
    """Make both pictures; returns the exit code of `jobs.mask`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args(argv)
    driver = browser()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with Film(folder / "clip.mp4", "overlay", demo.SIZE) as film:
            for index, (image, _) in enumerate(demo.stages()["flower"]):
                film.write(image, index / demo.RATE)
        server = begin(str(folder / "clip.mp4"), folder / "clicks.csv")
        click_objects(driver, server.address)
        shoot(driver, options.out / "prompt.png")
        server.stop()
        server.wait()
        os.environ["RAY_ADDRESS"] = "local"  # not a cluster that runs on this machine
        flags = ["--manifest", f"{folder}/clicks.csv", "--device", "cpu"]
        code = mask.main([*flags, "--out", f"{folder}/masks"])
        if code == 0:
            server = begin(f"{folder}/masks", folder / "corrected.csv")
            review(driver, server.address)
            shoot(driver, options.out / "review.png")
            server.stop()
            server.wait()
    driver.quit()
    return code


if __name__ == "__main__":
    sys.exit(main())
