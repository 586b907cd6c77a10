"""A page in Debian's Chromium, without a window, steered by its driver."""

import shutil
import time
from contextlib import contextmanager

import pytest


OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,800")
ENTER, SHIFT = "\ue007", "\ue008"  # as WebDriver has them


@contextmanager
def open_page(address):
    """A driver that shows a page; skips the test where a part is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if not all(programs.values()):
        missing = ", ".join(name for name, path in programs.items() if path is None)
        pytest.skip(f"{missing} is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for option in OPTIONS:
        options.add_argument(option)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs["chromedriver"]))
    try:
        driver.get(address)
        yield driver
    finally:
        driver.quit()


def wait_until(driver, script, seconds=20):
    """Wait for a JavaScript expression to be true."""
    end = time.monotonic() + seconds
    while not driver.execute_script(f"return {script}"):
        assert time.monotonic() < end, f"{script} is still false"
        time.sleep(0.05)


def actions(driver):
    """Steps of mouse and keyboard, to be performed."""
    from selenium.webdriver.common.action_chains import ActionChains

    return ActionChains(driver, duration=20)
