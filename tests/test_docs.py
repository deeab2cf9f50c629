"""The pages of text: their links and paths lead somewhere, and they explain every result."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / name / "README.md" for name in ("corpora", "examples/labs")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.html")),
    *sorted((ROOT / "examples").rglob("*.ipynb")),
]


def text_of(page: Path) -> str:
    """The text of a page, without its code; of a notebook, its cells of text."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    if page.suffix == ".html":
        text = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    return re.sub(r"```.*?```", "", text, flags=re.S)


def anchors(page: Path) -> set[str]:
    """What a link may name within a page: its headings, as GitHub writes them, and its marks."""
    text = text_of(page)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {*plain, *re.findall(r' id="([^"]+)"', text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = text_of(page)
    links = re.findall(r"\]\(([^)]+)\)", text)
    for link in links + re.findall(r'(?:href|src|srcset)="([^"]+)"', text):
        if "://" in link or link.startswith("data:"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_readme_is_short_and_its_paths_exist():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    assert len(text.split()) <= 1600
    paths = re.findall(r"[\w.]+(?:/[\w.]+)*(?:\.py|\.md|\.toml|/)(?=[\s,.;)`])", text)
    assert {"train.py", "toyllm/world/observer.py", "toyllm/lm/", "claims/lab/"} <= set(paths)
    written = [path for path in paths if not path.startswith(("runs/", ".venv/", "__init__"))]
    # in the tree a file of a package stands without its folder
    folders = (ROOT, *ROOT.glob("toyllm/*/"))
    assert [path for path in written if not any((x / path).exists() for x in folders)] == []
    packages = {path.parent.name for path in ROOT.glob("toyllm/*/__init__.py")}
    assert packages == set(re.findall(r"^    toyllm/(\w+)/ ", text, re.M))


def test_a_page_explains_every_key_and_column(tiny):
    evaluated = tiny / "run" / "eval"
    text = (ROOT / "docs" / "results_json.md").read_text()
    results = json.loads((evaluated / "results.json").read_text())
    explained = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
    listed = {*results["domains"], *results["mixture"]["groups"]}

    def keys(value):
        if isinstance(value, dict):
            for key, inner in value.items():
                if key not in listed and not re.search(r"\W|^\d", key):  # else it is a name
                    yield key
                yield from keys(inner)
        if isinstance(value, list):
            for inner in value:
                yield from keys(inner)

    columns = [
        name
        for file in ("generalization.csv", "mixture.csv")
        for name in (evaluated / file).read_text().split("\n", 1)[0].split(",")
    ]
    assert {*keys(results), *columns} - explained == set()
