"""A report in a real browser: report_page.py PAGE.html EXPECTED_JSON SCREENSHOT_DIR

EXPECTED_JSON holds the name of the screenshots and how many clusters, images, curves and filters the page must show.
Needs Debian's chromium and chromium-driver; CHROMIUM and CHROMEDRIVER name others.
"""

import base64
import json
import re
import sys
from pathlib import Path

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from chromium import start

page, expected, shots = Path(sys.argv[1]).resolve(), json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
shots.mkdir(parents=True, exist_ok=True)

# Beyond this, a screenshot of the whole page is larger than anybody looks at.
MOST_CARDS_SHOT = 100


def all_of(selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def one(selector):
    found = all_of(selector)
    assert len(found) == 1, f"{len(found)} of {selector}"
    return found[0]


def count(selector):
    return browser.execute_script("return document.querySelectorAll(arguments[0]).length", selector)


def shown():
    return count(".card:not([hidden])")


def until(condition, seconds=30):
    return WebDriverWait(browser, seconds, poll_frequency=0.1).until(lambda _: condition())


def no_complaints():
    """Whatever the page's policy forbids would be among them."""
    found = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert found == [], found


def screenshot(name):
    whole = expected["clusters"] <= MOST_CARDS_SHOT
    picture = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
    (shots / f"{name}.png").write_bytes(base64.b64decode(picture["data"]))


def the_text_names_no_address():
    text = page.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|<link|<iframe|<script[^>]+src|src=\"(?!data:)", text)


def everything_is_there():
    assert "deepcluster" in browser.title and one("html").get_attribute("lang") == "en"
    assert one(".verdict h2").text and all_of(".verdict li")
    assert count("#curves figure svg") == expected["curves"], count("#curves figure svg")
    assert count("#cards .card") == expected["clusters"], count("#cards .card")
    assert f"{expected['images']:,}" in one("dl.meta").text, one("dl.meta").text
    marks = count("#map svg.map a")
    assert marks == expected["clusters"], marks
    assert count("#filters img.pixels") == 1
    figures = count("#visualized figure")
    assert figures == expected["filters"] and count("#visualized figure img") == 2 * figures, figures
    assert figures or "deepcluster visualize filters" in one("#visualized").text
    assert "cannot be read" not in one("#visualized").get_attribute("textContent")
    remarks = browser.execute_script("return [...document.querySelectorAll('#atlas > p')].map((p) => p.textContent).join()")
    assert "are grey" not in remarks, remarks
    for link in ("#curves", "#epochs", "#map", "#filters", "#visualized", "#atlas"):
        assert count(link) == 1 and count(f"nav a[href='{link}']") == 1, link
    sizes = browser.execute_script("return [...document.querySelectorAll('.card')].map((card) => Number(card.dataset.size))")
    assert sum(sizes) == expected["images"] and sizes == sorted(sizes, reverse=True), sum(sizes)
    dangling = browser.execute_script(
        "return [...document.querySelectorAll('a[href^=\"#\"]')].map((link) => link.getAttribute('href').slice(1))"
        ".filter((id) => !document.getElementById(id))"
    )
    assert dangling == [], dangling[:10]


def every_picture_decodes():
    until(lambda: browser.execute_script("return [...document.images].every((image) => image.complete)"), 120)
    broken = browser.execute_script("return [...document.images].filter((image) => !image.naturalWidth).length")
    assert count("img") >= expected["clusters"] and broken == 0, f"{broken} of {count('img')}"
    unnamed = browser.execute_script("return [...document.images].filter((image) => !image.alt).length")
    assert unnamed == 0, unnamed
    # Those of the map are no elements of HTML.
    browser.set_script_timeout(60)
    broken = browser.execute_async_script(
        "const done = arguments[0];"
        "const decoded = (element) => { const image = new Image(); image.src = element.getAttribute('href');"
        " return image.decode().then(() => 0, () => 1); };"
        "Promise.all([...document.querySelectorAll('svg image')].map(decoded))"
        ".then((broken) => done(broken.reduce((sum, one) => sum + one, 0)))"
    )
    assert broken == 0, broken


def it_asks_nobody():
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith("data:") for name in loaded), [name[:100] for name in loaded if not name.startswith("data:")]


def search(text):
    field = one("input[name=search]")
    field.clear()
    field.send_keys(text)


def it_can_be_searched():
    assert shown() == expected["clusters"]
    path, cluster = browser.execute_script(
        "const card = document.querySelector('.card:last-child');"
        "return [card.querySelector('code').textContent, card.dataset.cluster]"
    )
    search(path.upper())
    until(lambda: shown() == 1)
    assert one(".card:not([hidden])").get_attribute("data-cluster") == cluster
    assert one("#shown").text == f"1 of {expected['clusters']} clusters", one("#shown").text
    search(f"no such thing {Keys.ENTER}")
    until(lambda: shown() == 0)
    # A link to a card that the search hides shows it.
    browser.execute_script("location.hash = arguments[0]", f"#cluster-{cluster}")
    until(lambda: shown() == expected["clusters"])
    assert one("input[name=search]").get_attribute("value") == ""


def it_can_be_sorted():
    for order, key, best in (
        ("size up", "size", min),
        ("size down", "size", max),
        ("purity down", "purity", max),
        ("purity up", "purity", min),
        ("distance up", "distance", min),
    ):
        Select(one("select[name=sort]")).select_by_value(order)
        values = browser.execute_script(
            "return [...document.querySelectorAll('.card')].map((card) => Number(card.dataset[arguments[0]]))", key
        )
        assert values[0] == best(values) and values == sorted(values, reverse=best is max), f"{order}: {values[:10]}"
    Select(one("select[name=sort]")).select_by_value("size down")


def it_is_for_keyboards_and_for_the_night():
    browser.get(page.as_uri())
    ActionChains(browser).send_keys(Keys.TAB).perform()
    skip = browser.switch_to.active_element
    assert skip.get_attribute("class") == "skip" and skip.is_displayed()
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.switch_to.active_element.get_attribute("id") == "main"
    browser.execute_script("window.scrollTo(0, 0)")

    def ground():
        return browser.execute_script("const style = getComputedStyle(document.body); return style.backgroundColor + style.color")

    light = ground()
    screenshot(expected["name"])
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    assert ground() != light, "dark looks like light"
    screenshot(f"{expected['name']}-dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    metrics = {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= 390, f"{wide} pixels wide in 390"


the_text_names_no_address()
browser = start()
try:
    browser.get(page.as_uri())
    everything_is_there()
    every_picture_decodes()
    it_asks_nobody()
    it_can_be_searched()
    it_can_be_sorted()
    it_is_for_keyboards_and_for_the_night()
    no_complaints()
    print(f"the browser is content; screenshots in {shots}")
finally:
    browser.quit()
