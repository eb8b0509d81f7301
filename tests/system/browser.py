"""The live page in a real browser: browser.py PAGE_URL API_JSON SCREENSHOT_DIR [TOKEN]

API_JSON holds what GetRun says of a run that is paused and has a committed epoch. The browser looks at every page, compares
the numbers on it, lets the run go on by its button, sees it get on without loading the page again, and pauses it.
Needs Debian's chromium and chromium-driver; CHROMIUM and CHROMEDRIVER name others.
"""

import base64
import json
import sys
from pathlib import Path

from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from chromium import start

url, api, shots = sys.argv[1].rstrip("/"), json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
token = sys.argv[4] if len(sys.argv) > 4 else None
run = api["run_id"]
shots.mkdir(parents=True, exist_ok=True)

# Longest time that an epoch of the small run may take.
EPOCH = 300


def all_of(selector, inside=None):
    return (inside or browser).find_elements(By.CSS_SELECTOR, selector)


def one(selector, inside=None):
    found = all_of(selector, inside)
    assert len(found) == 1, f"{len(found)} of {selector}"
    return found[0]


def complaints():
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def screenshot(name):
    """The whole page, however long it is."""
    picture = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
    (shots / f"{name}.png").write_bytes(base64.b64decode(picture["data"]))


def open_page(path):
    browser.get(url + path)
    check()


def check():
    """What holds for every page, also when the script replaces a part of it meanwhile."""
    for _ in range(5):
        try:
            return check_elements()
        except StaleElementReferenceException:
            pass
    return check_elements()


def check_elements():
    where = browser.current_url
    found = complaints()
    assert found == [], found
    assert one("html").get_attribute("lang") == "en", where
    one("h1"), one("main")
    for image in all_of("img"):
        assert image.get_attribute("alt") is not None, image.get_attribute("outerHTML")[:200]
    for element in all_of("a, button, progress, input, summary, [role=region], svg[role=img]"):
        if element.is_displayed():
            assert element.accessible_name, f"{where}: no name for {element.get_attribute('outerHTML')[:200]}"
    levels = [int(heading.tag_name[1]) for heading in all_of("h1, h2, h3, h4, h5, h6")]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:])), f"{where}: {levels}"
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids)), f"{where}: {sorted(ids)}"
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith((url + "/", "data:")) for name in loaded), loaded
    check_keyboard(where)


def check_keyboard(where):
    ActionChains(browser).send_keys(Keys.TAB).perform()
    skip = browser.switch_to.active_element
    assert skip.get_attribute("class") == "skip" and skip.is_displayed(), f"{where}: {skip.get_attribute('outerHTML')[:200]}"
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.switch_to.active_element.get_attribute("id") == "main", where


def check_width(width):
    """Nothing but tables is wider than the window."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width, f"{browser.current_url} is {wide} wide in {width}"


def field(name, inside=None):
    return one(f"[data-field={name}]", inside).get_attribute("textContent")


def compare(inside=None):
    """Numbers and texts equal those of the API."""
    for name in ("state", "epochs_done", "epochs", "n_images", "n_skipped", "k", "priority", "note"):
        assert field(name, inside) == str(api[name]), f"{name}: {field(name, inside)} on the page, {api[name]} by the API"


def until(condition, seconds=30):
    # While one page takes the place of another, or a part of one, elements are not there, which drivers tell in several ways. What
    # does not pass ends in the wait's own exception.
    passing = (AssertionError, WebDriverException)
    return WebDriverWait(browser, seconds, poll_frequency=0.2, ignored_exceptions=passing).until(lambda _: condition())


def sign_in():
    open_page("/login")
    screenshot("login")
    one("#token").send_keys("wrong", Keys.ENTER)
    until(lambda: all_of("#trouble"))
    # A refusal is an error for the console.
    complaints()
    one("#token").send_keys(token, Keys.ENTER)
    until(lambda: one("h1").text == "Runs")


def look_at_all_pages():
    open_page("/")
    compare(one(f"tr[data-run={run}]"))
    assert len(all_of("#workers")) == 1 and "extractor" in one("main").text
    screenshot("runs")
    open_page(f"/runs/{run}")
    compare()
    assert all_of("#curves ~ .curves svg") and len(all_of("tr[data-epoch]")) == api["epochs_done"]
    screenshot("run")
    one("#to-atlas").click()
    until(lambda: one("h1").text.startswith("Atlas"))
    check()
    widths = browser.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert widths and min(widths) > 0, widths
    assert field("k") == str(api["k"])
    screenshot("atlas")


def look_at_it_otherwise():
    def ground():
        return browser.execute_script("const style = getComputedStyle(document.body); return style.backgroundColor + style.color")

    open_page(f"/runs/{run}")
    light = ground()
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    for name, path in (("runs", "/"), ("run", f"/runs/{run}"), ("atlas", f"/runs/{run}/atlas")):
        open_page(path)
        assert ground() != light, "dark looks like light"
        screenshot(f"{name}-dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    for name, path in (("runs", "/"), ("run", f"/runs/{run}")):
        open_page(path)
        check_width(1280)
        check_width(390)
        screenshot(f"{name}-narrow")
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(f"{url}/runs/{run}")
    compare()
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def let_it_go_on_and_pause_it():
    open_page(f"/runs/{run}")
    assert not one("#pause").is_enabled() and one("#resume").is_enabled()
    one("#resume").click()
    until(lambda: field("state") in ("queued", "running"))
    assert browser.current_url == f"{url}/runs/{run}"
    browser.execute_script("window.sameDocument = true; document.getElementById('to-atlas').focus()")
    until(lambda: field("state") == "running" and one("[data-live$='.step']").text, EPOCH)
    screenshot("run-under-way")
    until(lambda: int(field("epochs_done")) > api["epochs_done"], EPOCH)
    until(lambda: len(all_of("tr[data-epoch]")) > api["epochs_done"])
    said = one("#say").get_attribute("textContent")
    assert "epochs are done" in said or "is running" in said, said
    assert browser.switch_to.active_element.get_attribute("id") == "to-atlas", "the focus was lost"
    assert browser.execute_script("return window.sameDocument"), "the page was loaded anew"
    found = complaints()
    assert found == [], found
    one("#pause").send_keys(Keys.ENTER)
    until(lambda: field("state") == "paused")
    until(lambda: one("#resume").is_enabled() and not one("#pause").is_enabled())
    assert "paused" in browser.title
    check()
    screenshot("run-paused")


browser = start()
try:
    if token:
        sign_in()
    look_at_all_pages()
    look_at_it_otherwise()
    let_it_go_on_and_pause_it()
    print(f"the browser is content; screenshots in {shots}")
finally:
    browser.quit()
