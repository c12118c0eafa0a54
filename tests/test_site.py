"""The documentation as a site: it builds without a warning, and in a real browser its pages are whole and explore.

With VSSM_SCREENSHOTS=DIR the pictures of the pages go to DIR, at their whole length, to be looked at.
"""

import base64
import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from vssm_kernels import Route, route_order

ROOT = Path(__file__).parents[1]
WIDE, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built once for all tests here; a warning is an error."""
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        **dict(cwd=ROOT, capture_output=True, text=True, timeout=300),
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_without_a_warning(site):
    """With no network: nothing that a page needs is fetched."""
    scan = (site / "api" / "kernels" / "index.html").read_text()
    assert "selective_scan_2d" in scan and "the step size" in scan
    pages = [page.read_text() for page in site.rglob("*.html")]
    assert not [text for text in pages if re.search(r'(?:src|href)="https://(?:fonts|cdn|unpkg)', text)]
    # Every page has the heading with which its source begins, and not that of mkdocs for want of one.
    assert all(text.count("<h1") == 1 for text in pages if 'class="md-content"' in text and "404" not in text[:3000])


def test_api_pages(site):
    """Full paths as headings, the important class first, other libraries' names linked, prescribed methods left out."""
    scans = (site / "api" / "scans" / "index.html").read_text()
    headings = re.findall(r'<h[2-4] id="([^"]+)" class="doc', scans)
    assert headings[:2] == ["vssm.scans", "vssm.scans.SS2D"]
    assert not [name for name in headings if name.endswith((".forward", ".init_weights"))]
    assert 'href="https://docs.pytorch.org/docs/stable/tensors.html#torch.Tensor"' in scans
    models = (site / "api" / "models" / "index.html").read_text()
    assert re.search(r"What differs from the official code:</p>\s*<ul>\s*<li>", models)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium without a window, which reaches nothing but this machine."""
    reason = "no selenium to drive a browser: the extra [dev] has it"
    webdriver = pytest.importorskip("selenium.webdriver", reason=reason)
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("no browser: on Debian, apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for switch in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{switch}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


def look(browser, size, scheme="light", motion="no-preference"):
    """Sets the size of the screen in CSS pixels, and what the reader asked the system for."""
    metrics = dict(width=size[0], height=size[1], deviceScaleFactor=1, mobile=False)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
    features = [dict(name=name, value=value) for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=features))


def screenshot(browser, folder, name):
    whole = "VSSM_SCREENSHOTS" in os.environ
    folder = Path(os.environ.get("VSSM_SCREENSHOTS", folder))
    width, height, length = browser.execute_script("return [innerWidth, innerHeight, document.body.scrollHeight]")
    # Otherwise small, as most of the time goes into the file.
    clip = dict(x=0, y=0, width=width, height=min(length, 6000) if whole else height, scale=1 if whole else 0.25)
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", dict(captureBeyondViewport=whole, clip=clip))
    picture = base64.b64decode(shot["data"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.png").write_bytes(picture)
    return Image.open(BytesIO(picture))


def complaints(browser):
    """Errors and warnings in the console since the last call."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] != "INFO"]


def texts(browser, selector):
    script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)"
    return browser.execute_script(script, selector)


def find(browser, selector):
    return browser.find_element("css selector", selector)


def choose(browser, selector, value):
    """As a reader chooses in a list, or types into a field."""
    script = """const [selector, value] = arguments, node = document.querySelector(selector);
    node.value = value;
    for (const kind of ["input", "change"]) node.dispatchEvent(new Event(kind, { bubbles: true }));"""
    browser.execute_script(script, selector, value)


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


PAGE = """
const column = document.querySelector(".md-content__inner");
const cut = [...column.querySelectorAll("pre > code")].filter((code) => code.scrollWidth > code.clientWidth + 1);
const broken = [...column.querySelectorAll("img")].filter((image) => image.loading !== "lazy" && !image.naturalWidth);
return {
  overflow: document.documentElement.scrollWidth - innerWidth,
  cut: cut.map((code) => code.textContent.trim().split("\\n").sort((a, b) => b.length - a.length)[0]),
  broken: broken.map((image) => image.src),
};
"""


@pytest.mark.slow
def test_pages_are_whole(site, address, browser, tmp_path):
    """At the width of a desk and of a phone: nothing overflows, no line of code is cut, no picture is missing."""
    links = re.findall(r'<a href="([^"#:]*)" class="md-nav__link"', (site / "index.html").read_text())
    pages = sorted({"index.html", *(link for link in links if not link.startswith("."))})
    assert "explorer/" in pages and len(pages) > 15
    wrong = []
    for page in pages:
        look(browser, WIDE)
        browser.get(f"{address}/{page}")
        name = page.strip("/").replace("/", "_").removesuffix(".html")
        for width, size in (("desk", WIDE), ("phone", PHONE)):
            look(browser, size)
            found = browser.execute_script(PAGE)
            wrong += [f"{page}, {width}: {what} {value}" for what, value in found.items() if value]
            picture = screenshot(browser, tmp_path, f"{name}_{width}")
            assert len(picture.convert("L").getcolors()) > 20  # not an empty page
        wrong += [f"{page}: {complaint}" for complaint in complaints(browser)]
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def explorer(address, browser):
    look(browser, WIDE)
    complaints(browser)
    browser.get(f"{address}/explorer/")
    yield browser
    assert not complaints(browser)


def rows(browser):
    return texts(browser, "#zoo-table tbody th code")


def column(browser, title):
    titles = [text.strip(" ▲▼") for text in texts(browser, "#zoo-table thead th")]
    return texts(browser, f"#zoo-table tbody tr > :nth-child({titles.index(title) + 1})")


def test_the_table_filters(explorer):
    zoo = explorer.execute_script("return JSON.parse(document.getElementById('zoo-data').textContent)")["models"]
    choose(explorer, "[data-filter=family]", "VMamba")
    expected = {m["name"] for m in zoo if m["task"] == "classification" and m["family"] == "VMamba"}
    assert set(rows(explorer)) == expected and len(rows(explorer)) == len(expected) > 5
    choose(explorer, "[data-filter=weights]", "download")
    assert rows(explorer) and all("m2" not in name for name in rows(explorer))
    choose(explorer, "[data-filter=size]", "huge")
    assert rows(explorer) and all(float(millions) > 70 for millions in column(explorer, "M"))
    choose(explorer, "#zoo-table input[type=search]", "S2L15 base")
    assert rows(explorer) == ["vmamba_base_s2l15.in1k"]
    find(explorer, "#zoo-table .explorer-fields > button").click()
    assert len(rows(explorer)) == len(zoo)
    choose(explorer, "[data-filter=task]", "detection")
    choose(explorer, "[data-filter=licence]", "none granted")
    expected = {m["name"] for m in zoo if m["task"] == "detection" and m.get("licence") == "none granted"}
    assert set(rows(explorer)) == expected and expected
    assert f"{len(expected)} of {len(zoo)} rows" in texts(explorer, "#zoo-table [role=status]")[0]


def test_the_table_sorts(explorer):
    """By a click on a column's title, or Enter; what has no figure comes last both ways."""
    title = "#zoo-table thead [data-key='Top 1 Accuracy']"
    find(explorer, title).click()
    down = column(explorer, "top-1")
    figures = [float(text) for text in down if text != "–"]
    assert figures == sorted(figures, reverse=True) and len(set(figures)) > 10 and down[-1] == "–"
    find(explorer, title).send_keys("\ue007")
    up = column(explorer, "top-1")
    assert [float(text) for text in up if text != "–"] == sorted(figures) and up[-1] == "–"
    assert find(explorer, "#zoo-table th[aria-sort]").get_attribute("aria-sort") == "ascending"


def test_the_plot_switches_axes(explorer):
    def label(i):
        return find(explorer, f"#zoo-plot .mark:nth-of-type({i})").get_attribute("aria-label")

    assert "published top-1" in label(1) and "GFLOPs" in label(1)
    everything = len(texts(explorer, "#zoo-plot .mark"))
    choose(explorer, "[data-axis=across]", "2")
    assert "measured: images per second" in label(1) and "published" in label(1)
    assert 5 < len(texts(explorer, "#zoo-plot .mark")) < everything
    choose(explorer, "[data-axis=across]", "1")
    choose(explorer, "[data-axis=up]", "1")
    assert "box AP" in label(1) and "millions of parameters" in label(1)
    choose(explorer, "[data-axis=across]", "2")
    assert not texts(explorer, "#zoo-plot .mark")
    assert "Speed was measured for classifiers only" in texts(explorer, "#zoo-plot [role=status]")[0]


def test_the_plot_names_a_mark_on_hover_and_on_focus(explorer):
    from selenium.webdriver import ActionChains

    choose(explorer, "[data-filter=family]", "VSSD")
    mark = find(explorer, "#zoo-plot [data-name='vssd_base.in1k']")
    ActionChains(explorer).move_to_element(mark).perform()
    assert "vssd_base.in1k (VSSD): 84.7 published" in texts(explorer, "#zoo-plot [role=status]")[0]
    explorer.execute_script("document.querySelector('#zoo-plot .mark[tabindex=\"0\"]').focus()")
    first = texts(explorer, "#zoo-plot [role=status]")[0]
    explorer.switch_to.active_element.send_keys("\ue014")  # the arrow to the right
    assert texts(explorer, "#zoo-plot [role=status]")[0] != first
    assert texts(explorer, "#zoo-plot text.name") == [explorer.switch_to.active_element.get_attribute("data-name")]


def test_the_routes_are_those_of_the_kernels(explorer):
    data = explorer.execute_script("return JSON.parse(document.getElementById('routes-data').textContent)")
    shown = {Route(**{k: tuple(v) if isinstance(v, list) else v for k, v in route.items()})
             for pattern in data for sequence in pattern["sequences"] for route in sequence}  # fmt: skip
    flags = (False, True)
    made = {
        Route(transpose, reverse, stride, offset, path, mirror)
        for transpose, reverse, path in itertools.product(flags, flags, ("raster", "snake", "diagonal", "spiral"))
        for mirror in itertools.product(flags, flags)
        for stride, offset in (((1, 1), (0, 0)), ((2, 2), (0, 1)), ((1, 3), (1, 2)))
    }
    assert len(shown) > 10
    sizes = [(1, 1), (1, 5), (4, 1), (3, 4), (5, 5), (6, 7)]
    cases = [(route, *size) for route in [*shown, *made] for size in sizes]
    script = "return arguments[0].map(([route, height, width]) => explorer.order(route, height, width))"
    found = explorer.execute_script(script, [[route._asdict(), height, width] for route, height, width in cases])
    for case, order in zip(cases, found, strict=True):
        assert order == route_order(*case).tolist(), case


def test_a_walk_plays(explorer):
    choose(explorer, "[data-side=height]", "3")
    choose(explorer, "[data-side=width]", "5")

    def status():
        return texts(explorer, "#zoo-routes [role=status]")[0]

    def step():
        return int(status().split()[1])

    assert status().startswith("Step 15 of 15") and len(texts(explorer, "#zoo-routes figure")) == 4
    play = find(explorer, "#zoo-routes [data-play]")
    play.click()
    assert play.text == "Pause"
    wait_until(lambda: 0 < step() < 15)
    play.click()
    paused = step()
    time.sleep(0.3)
    assert play.text == "Play" and step() == paused
    choose(explorer, "[data-speed]", "25")
    play.click()
    wait_until(lambda: step() == 15 and play.text == "Play")
    back, on, start = explorer.find_elements("css selector", "#zoo-routes .explorer-buttons > button:not([data-play])")
    start.click()
    assert status() == "Step 0 of 15."
    on.click()
    assert "route 1 at row 1, column 1; route 2 at row 1, column 1; route 3 at row 3, column 5" in status()
    assert len(texts(explorer, "#zoo-routes rect.seen")) == 4
    back.click()
    assert status() == "Step 0 of 15."
    joined = next(o for o in explorer.find_elements("css selector", "[data-pattern] option") if "joined" in o.text)
    choose(explorer, "[data-pattern]", joined.get_attribute("value"))
    assert any("joined" in text for text in texts(explorer, "#zoo-routes figcaption"))


def test_the_explorer_on_a_phone_in_the_dark_with_less_motion(explorer, address, tmp_path):
    explorer.get("about:blank")  # an open page would store its colours once more
    storage = dict(origin=address, storageTypes="local_storage")
    explorer.execute_cdp_cmd("Storage.clearDataForOrigin", storage)
    look(explorer, PHONE, "dark", "reduce")
    explorer.get(f"{address}/explorer/")
    assert find(explorer, "[data-speed]").get_attribute("value") == "1"

    def is_dark():
        colour = explorer.execute_script("return getComputedStyle(document.body).backgroundColor")
        return max(map(int, re.findall(r"\d+", colour)[:3])) < 60

    wait_until(is_dark)  # the theme looks after the page is there
    assert explorer.execute_script(PAGE)["overflow"] <= 0
    controls = "[...document.querySelectorAll('.explorer select, .explorer input')]"
    assert explorer.execute_script(f"return {controls}.every((control) => control.labels.length)")
    screenshot(explorer, tmp_path, "explorer_phone_dark")
    look(explorer, WIDE, "dark")
    screenshot(explorer, tmp_path, "explorer_desk_dark")
    explorer.execute_script("localStorage.clear()")


def test_pictures_enlarge(address, browser):
    look(browser, WIDE)
    browser.get(f"{address}/scan_modules/")
    image = find(browser, ".md-content img")
    image.send_keys("\ue007")
    assert texts(browser, "dialog.zoom[open]") == [""]
    browser.switch_to.active_element.send_keys("\ue00c")
    wait_until(lambda: not texts(browser, "dialog.zoom"))


def test_recipes_come_before_decisions_in_the_search(address, browser):
    look(browser, WIDE)
    browser.get(f"{address}/scale/")
    for words in ("train on several GPUs", "checkpoint"):
        field = find(browser, ".md-search__input")
        browser.execute_script("document.querySelector('#__search').click()")
        field.clear()
        field.send_keys(words)
        wait_until(lambda: texts(browser, ".md-search-result__link"))
        time.sleep(0.3)
        first = find(browser, ".md-search-result__link").get_attribute("href")
        assert "decisions/0" not in first, (words, first)
