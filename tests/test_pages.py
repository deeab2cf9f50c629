"""The pages that people see, in a headless browser: the report, and TensorBoard.

Needs Chromium, playwright and axe (see CONTRIBUTING.md); skipped where they are missing.
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

import jax
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.scripts import run
from tests.tolerances import FORWARD, close
from toyllm.lm import scoring
from toyllm.runs import run_folder
from toyllm.tools.playground import half
from toyllm.world import corpus, observer
from toyllm.world.world import DIALOGUE, HEADERS, NAMED

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
MISSING = [
    name
    for name, found in (
        ("chromium", CHROMIUM),
        *((x, importlib.util.find_spec(x)) for x in ("playwright", "axe_playwright_python")),
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


def faults(page) -> list[str]:
    """What axe finds that people with a screen reader, a keyboard or weak eyes would stumble on."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{one['help']}: {one['nodes'][0]['html'][:200]}" for one in found]


@pytest.fixture
def report(folder):
    return (folder / "one" / "eval" / "report.html").as_uri()


@pytest.fixture(scope="module")
def playground(folder):
    """The playground of the first run, its file."""
    run("toyllm/tools/playground.py", folder / "one")
    return folder / "one" / "eval" / "playground.html"


def rounded_models(folder, page):
    """(lm, parameters as the page has them, by name)."""
    one = run_folder.load_run(folder / "one")
    names = page.evaluate("Object.keys(DATA.models)")
    return one.lm, {name: jax.tree.map(half, one.model(name)) for name in names}


def test_the_playground_computes_what_jax_computes(folder, playground, open_page):
    page, errors = open_page(playground.as_uri())
    lm, models = rounded_models(folder, page)
    docs = corpus.sample(lm.world, 100, np.random.default_rng(0))
    rows = [row[row > 0] for row in lm.tokenizer.pad(docs, lm.config.context)]
    worst = 0.0
    for k, row in enumerate(rows):
        name = list(models)[k % len(models)]
        theirs = np.array(page.evaluate("([n, t]) => logitsOf(n, t)", [name, row.tolist()]))
        ours = np.asarray(lm.apply(models[name], row[None])[0])[0]
        worst = max(worst, float(np.abs(theirs - ours).max()))
    assert worst < 1e-3  # the bar; it is 1e-5 or so
    scorer = scoring.Scorer(lm)
    count = lm.world.situations_D.tolist()
    for name, params in models.items():
        p_DB = page.evaluate(
            """([name, count]) => count.map((S, d) => {
                const reader = new Reader(name).readAll(tokensOf("<begin> talk with assistant"));
                const sum = [0, 0, 0];
                for (let s = 0; s < S; s++)
                    behavioursOf(reader, d, s, NONE).forEach((p, b) => (sum[b] += p / S));
                return sum;
            })""",
            [name, count],
        )
        close(np.array(p_DB), scorer.ask(params), FORWARD)
    assert not errors


def test_the_playground_knows_who_is_speaking(folder, playground, open_page):
    page, _ = open_page(playground.as_uri())
    lm, _ = rounded_models(folder, page)
    docs = corpus.sample(lm.world, 40, np.random.default_rng(1), kind=DIALOGUE)
    headers = [
        lm.world.characters[docs.character[n, 0]] if h == NAMED else HEADERS[h]
        for n, h in enumerate(docs.header[:, 0])
    ]
    turns = [
        [
            {
                "question": [int(docs.domain[n, t]), int(docs.situation[n, t]),
                             int(docs.instruction[n, t]) % (len(lm.world.instructions) + 1)],
                "listed": {"behaviour": int(docs.behaviour[n, t]), "voice": int(docs.voice[n, t])},
            }
            for t in range(docs.turns[n])
        ]
        for n in range(len(docs))
    ]  # fmt: skip
    theirs = page.evaluate("pairs => pairs.map(([h, t]) => posterior(h, t))",
                           [*map(list, zip(headers, turns, strict=True))])  # fmt: skip
    np.testing.assert_allclose(theirs, observer.posterior(lm.world, docs)[:, 0], atol=1e-9)


def test_one_can_talk_in_the_playground(playground, open_page):
    page, errors = open_page(playground.as_uri())
    assert len(playground.read_bytes()) < 2e6
    prior = page.locator("#who").inner_text()
    question = page.evaluate("WORLD.domains[0].situations[1]")
    page.fill("#question", question.upper() + "?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#log .said")
    assert question in page.locator("#log .you").inner_text()
    assert page.locator("#note").inner_text() == f"Read as: {question}"
    page.select_option("#model", index=1)  # another model goes on with the same dialogue
    page.click("#any")
    assert page.locator("#log .said").count() == 2
    assert "from here: the aligned model" in page.locator("#log").inner_text()
    page.fill("#question", "qwertz uiop")
    page.keyboard.press("Enter")
    assert "no such question" in page.locator("#note").inner_text()
    page.click("#undo")
    page.click("#new")
    assert page.locator("#who").inner_text() == prior
    page.select_option("#header", "someone")
    page.wait_for_function("document.querySelectorAll('#next tbody tr').length > 0")
    assert page.asked == [playground.as_uri()]  # no network
    assert not errors


def test_a_cell_of_the_playground_asks_two_models_the_same(playground, open_page):
    page, errors = open_page(playground.as_uri())
    cells = page.locator("#matrix td button")
    assert cells.count() == len(page.evaluate("DATA.matrix")) * len(page.evaluate("WORLD.domains"))
    cells.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    sides = page.locator("#compare section")
    assert sides.count() == 2
    asked = [sides.nth(k).locator(".soft").first.inner_text() for k in (0, 1)]
    assert asked[0] == asked[1]
    assert sides.first.locator("h3").inner_text() == "the pretrained model"
    page.click("#another")
    assert not errors


@pytest.mark.parametrize("width", [360, 700, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_of_the_playground(playground, open_page, width, scheme):
    page, errors = open_page(playground.as_uri(), width, scheme)
    page.click("#any")
    page.locator("#matrix td button").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert faults(page) == []
    assert not errors


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["one/eval/report.html", "one/eval/comparison.html", "seeds"])
def test_anyone_can_read_a_page(folder, seeds, open_page, page, scheme):
    """With a screen reader, a keyboard or weak eyes, and without a network."""
    path = seeds / "eval" / "report.html" if page == "seeds" else folder / page
    for width in (360, 1200):
        opened, errors = open_page(path.as_uri(), width, scheme)
        assert faults(opened) == []
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.asked == [path.as_uri()]
        assert not errors


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
