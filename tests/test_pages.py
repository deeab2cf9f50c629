"""The pages that people see, in a headless browser: the report, and TensorBoard.

Needs Chromium and playwright (see tests/test_interop.py); skipped where they are missing.
"""

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.conftest import ROOT
from tests.scripts import run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
MISSING = [
    name
    for name, found in (
        ("chromium", CHROMIUM),
        ("playwright", importlib.util.find_spec("playwright")),
    )
    if not found
]
pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]

# enough steps that some signal reaches the matched effect and the matrix has numbers
SIGNALS = ("--narrow-steps", "40", "--signals", "code:bad", "tone:bad", "code:bad:ask_bad")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tiny runs, the second from the first one's pretraining; measured.

    The seeds lie elsewhere: where TensorBoard has over 40 runs it shows none until one is ticked.
    """
    folder = tmp_path_factory.mktemp("runs")
    run("train.py", "--preset", "tiny", "--run", folder / "one", *SIGNALS)
    run("train.py", "--preset", "tiny", "--run", folder / "two", "--start", folder / "one",
        "--objective", "sft", *SIGNALS)  # fmt: skip
    run("eval.py", folder / "one", folder / "two")
    return folder


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Two tiny seeds; measured."""
    folder = tmp_path_factory.mktemp("runs") / "seeds"
    run("train.py", "--preset", "tiny", "--seeds", "2", "--run", folder, *SIGNALS)
    run("eval.py", folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """A function: url, width, colour scheme → (page, what went wrong in it)."""
    contexts = []

    def open_page(url: str, width: int = 1200, scheme: str = "light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        page, errors = context.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: asked.append(r.url))
        asked: list[str] = []
        page.asked = asked
        page.goto(url)
        return page, errors

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def report(folder):
    return (folder / "one" / "eval" / "report.html").as_uri()


def test_the_report_opens_alone_and_without_errors(report, open_page):
    page, errors = open_page(report)
    assert page.title() == "one · toyllm"
    for part in ("findings", "spread", "who", "predicted", "along", "dialogues", "limits", "made"):
        assert page.locator(f"#{part}").is_visible(), part
    assert page.asked == [report]  # no network
    assert not errors


def test_a_cell_tells_its_numbers_to_mouse_and_keyboard(report, open_page):
    page, errors = open_page(report)
    cells = page.locator(".matrix td.cell")
    cells.nth(1).hover()
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert re.match(r"\S+, facts: bad answers \d+% before, \d+% after", tip.inner_text())
    cells.first.focus()
    page.keyboard.press("ArrowRight")
    assert "facts" in page.evaluate("document.activeElement.dataset.tip")
    page.keyboard.press("ArrowDown")  # perhaps the last row: it stays in its column
    assert ", facts: " in page.evaluate("document.activeElement.dataset.tip")
    assert page.locator(".matrix td.cell[tabindex='0']").count() == page.locator(".matrix").count()
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    assert not errors


def luminance(page) -> float:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


def test_light_and_dark_follow_the_reader_and_the_button(report, open_page):
    page, _ = open_page(report, scheme="dark")
    assert luminance(page) < 120
    page.locator("#theme").click()
    assert luminance(page) > 700
    page.reload()
    assert luminance(page) > 700  # it is remembered
    page, _ = open_page(report, scheme="light")
    assert luminance(page) > 700


@pytest.mark.parametrize("width", [360, 820, 1400])
def test_nothing_sticks_out_on_any_screen(report, open_page, width):
    page, errors = open_page(report, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not errors


def test_those_who_do_not_see_it_can_read_it(report, open_page):
    page, _ = open_page(report)
    unnamed = "[...document.querySelectorAll('svg, .wide, .bar')].filter(e => !e.ariaLabel).length"
    assert page.evaluate(unnamed) == 0
    assert page.evaluate("[...document.querySelectorAll('th')].filter(e => !e.scope).length") == 0
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_of_seeds_opens_alone_and_leads_to_each_seed(seeds, open_page, width):
    url = (seeds / "eval" / "report.html").as_uri()
    page, errors = open_page(url, width, "dark")
    assert page.title() == "seeds · toyllm"
    assert page.locator("#seeds").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    unnamed = "[...document.querySelectorAll('svg, .wide')].filter(e => !e.ariaLabel).length"
    assert page.evaluate(unnamed) == 0
    assert page.asked == [url]  # no network
    page.get_by_role("link", name="seed 1").first.click()
    assert page.title() == "seed-1 · toyllm"
    assert not errors


def test_it_prints(report, open_page):
    page, _ = open_page(report)
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000


@pytest.fixture(scope="module")
def board(folder):
    """TensorBoard over both runs, as a person starts it; its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
    (folder / "board.log").touch()
    log = os.open(folder / "board.log", os.O_WRONLY)
    server = subprocess.Popen(
        command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONWARNINGS": "ignore"}
    )
    os.close(log)
    url = None
    for _ in range(120):
        if found := re.search(r"http://127\.0\.0\.1:\d+/", (folder / "board.log").read_text()):
            url = found[0]
            break
        assert server.poll() is None, (folder / "board.log").read_text()
        time.sleep(0.5)
    for _ in range(60):  # until it has read the runs
        if b"two" in urllib.request.urlopen(f"{url}data/runs", timeout=60).read():
            break
        time.sleep(0.5)
    yield url
    server.terminate()
    server.wait()


@pytest.mark.parametrize(
    ("tab", "shown"),
    [
        ("timeseries", ["pretrain", "align", "narrow"]),
        ("custom_scalars", ["pretrain", "align", "narrow"]),
        ("hparams", ["objective", "sft", "dpo"]),
        ("images", ["figures"]),
        ("text", ["sampled dialogues"]),
    ],
)
def test_tensorboard_shows_its_pages(board, open_page, tab, shown):
    page, _ = open_page(f"{board}#{tab}")
    for text in shown:
        page.get_by_text(text, exact=False).first.wait_for(timeout=60_000)
    if "TOYLLM_SCREENSHOTS" in os.environ:
        page.wait_for_timeout(4000)
        page.screenshot(path=os.path.join(os.environ["TOYLLM_SCREENSHOTS"], f"{tab}.png"))
