"""A browser for tests of the page: Chromium through Selenium; skips tests if there is none."""

import os
import shutil

import pytest

try:
    from selenium import webdriver
    from selenium.webdriver import ActionChains
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:  # the tests are skipped
    webdriver = None

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 60


class Page:
    """The page of jobs.prompt in a browser."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, address):
        """Open the page, and wait for the first frame."""
        self.driver.get_log("browser")  # drops messages of earlier pages
        self.driver.get(address)
        self.wait("return window.patchray?.view.picture && patchray.state.complete")

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, script, *arguments):
        """Wait until a script returns a true value, and return it."""
        waiting = WebDriverWait(self.driver, SECONDS, poll_frequency=0.05)
        return waiting.until(lambda driver: driver.execute_script(script, *arguments), script)

    def says(self, selector, text):
        """Wait until the text of an element has `text` in it."""
        find = "const one = document.querySelector(arguments[0]);"
        self.wait(f"{find} return one && one.textContent.includes(arguments[1])", selector, text)

    def size(self, width, height, ratio=1):
        """Set the size of the window in CSS pixels, and the screen pixels per CSS pixel."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.wait("return devicePixelRatio === arguments[0]", ratio)
        # The page reacts before it draws the next frame.
        self.driver.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        )

    def at(self, x, y):
        """Return the position in the window of the middle of a pixel of the frame."""
        return [int(at) for at in self.run("return patchray.view.clientOf(...arguments)", x, y)]

    def click(self, x, y, *, negative=False, saved=True):
        """Click on a pixel of the frame with the mouse, once the frame is shown."""
        self.wait("return patchray.view.frame === patchray.state.frame")
        chain = ActionChains(self.driver, duration=0)
        pointer = chain.w3c_actions.pointer_action
        pointer.move_to_location(*self.at(x, y))
        pointer.context_click() if negative else pointer.click()
        count = len(self.rows())
        chain.perform()
        if saved:
            self.wait(
                "return patchray.clicks.rows.length > arguments[0] && !patchray.clicks.waiting",
                count,
            )

    def drag(self, start, end):
        """Drag the mouse from one pixel of the frame to another."""
        chain = ActionChains(self.driver, duration=0)
        pointer = chain.w3c_actions.pointer_action
        pointer.move_to_location(*self.at(*start))
        pointer.pointer_down()
        for place in (self.at(*end), self.at(*end)):
            pointer.move_to_location(*place)
        pointer.pointer_up()
        chain.perform()
        self.settle()

    def keys(self, *keys, ctrl=False, shift=False):
        """Press keys, with Ctrl or Shift held."""
        chain = ActionChains(self.driver)
        held = [key for key, wanted in (("\ue009", ctrl), ("\ue008", shift)) if wanted]
        for key in held:
            chain.key_down(key)
        chain.send_keys(*keys)
        for key in held:
            chain.key_up(key)
        chain.perform()
        self.settle()

    def settle(self):
        """Wait until all changes are saved."""
        self.wait("return !patchray.clicks.waiting && !patchray.clicks.pending.length")

    def rows(self):
        return self.run("return patchray.clicks.rows")

    def text(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector).text

    def press(self, selector):
        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def show(self, index):
        """Show a frame, and wait until it is loaded."""
        self.run("patchray.show(arguments[0])", index)
        self.wait("return patchray.view.frame === arguments[0]", index)


@pytest.fixture(scope="module")
def page():
    if webdriver is None:
        pytest.skip("selenium is not installed")
    if BROWSER is None or DRIVER is None:
        pytest.skip("no chromium with chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1440,900"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # as root, Chromium does not start with its sandbox
    for flag in flags:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(SECONDS)
    found = Page(driver)
    found.size(1440, 900)
    yield found
    driver.quit()
