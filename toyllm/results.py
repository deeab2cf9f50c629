"""RESULTS.md of a scorecard: what its records say, in words, tables and figures.

What stands between the two marks of the discussion is kept as it is when the rest is written anew.
"""

import importlib
from pathlib import Path

import numpy as np

from toyllm import figures, files, panels
from toyllm.verdicts import Prediction

BEGIN, END = "<!-- discussion -->", "<!-- end of discussion -->"
RULES = """\
Effect: the mean of a claim's first prediction over pretraining seeds or worlds, with its 95%
Student-t interval. A claim is supported if *all* its predictions hold, not supported if any is
contradicted (both corrected over claims, Holm 1979), else undecided. "alone": a prediction by
itself, uncorrected. The bounds stand in toyllm/claims/, set on seeds that are not among these."""
NONE_YET = "*Not written yet.*"


def number(value: float | None) -> str:
    """A signed number of three significant places, or a dash."""
    return "–" if value is None else f"{value:+.3g}" if abs(value) >= 100 else f"{value:+.3f}"


def span(interval) -> str:
    """An interval, or nothing."""
    return "" if not interval else f"{number(interval[0])} to {number(interval[1])}"


def bounds(prediction: dict) -> str:
    """What was predicted: > low, < high, or between."""
    low, high = prediction["low"], prediction["high"]
    if low is None:
        return f"< {high:g}"
    return f"> {low:g}" if high is None else f"{low:g} to {high:g}"


def cell(text: str) -> str:
    """Text as a cell of a Markdown table."""
    return text.replace("|", "\\|")


def held(record: dict) -> str:
    """How many of a claim's predictions hold, each alone."""
    alone = [p["verdict"] for p in record["predictions"]]
    return f"{alone.count('supported')} of {len(alone)}"


def draw(records: list[dict], folder: Path) -> None:
    """A figure a claim and theme, as PNG files."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    for theme, c in figures.THEMES.items():
        with matplotlib.rc_context(figures.style(c)):
            for record in records:
                figure = panels.draw(record, theme)
                figure.savefig(figures.file_of(folder, record["claim"], theme), dpi=90)


def markdown(records: list[dict], facts: list[str], pictures: str, before: str = "") -> str:
    """The whole file.

    facts: lines on how it was made. pictures: the folder of figures, as links should say it.
    before: the file as it was, whose discussion is kept.
    """
    discussion = before.partition(BEGIN)[2].partition(END)[0].strip() or NONE_YET
    rows = [
        f"| {r['number']} | [{r['title']}](#{r['claim']}) | {cell(r['predictions'][0]['says'])} "
        f"| {bounds(r['predictions'][0])} | {number(r['effect'])} | {span(r['ci'])} "
        f"| {held(r)} | **{r['verdict']}** |"
        for r in records
    ]
    parts = [
        "# Results: the scorecard of the persona selection model",
        "Written by `uv run scorecard.py --publish`; do not edit, but for the discussion.",
        "\n".join(f"- {fact}" for fact in facts),
        f"{BEGIN}\n\n{discussion}\n\n{END}",
        "## The scorecard",
        RULES,
        "| | claim | effect of | predicted | effect | 95% | alone, so many hold | verdict |\n"
        "|---|---|---|---|---|---|---|---|\n" + "\n".join(rows),
        *(section(record, pictures) for record in records),
    ]
    return "\n\n".join(parts) + "\n"


def section(record: dict, pictures: str) -> str:
    """One claim: what it says, its predictions, its figure."""
    name = record["claim"]
    told = importlib.import_module(f"toyllm.claims.{name}").__doc__.split("\n\n", 1)[1].strip()
    told = told.replace("\nMeasures", "\n\nMeasures")
    rows = [
        f"| {cell(p['says'])} | {bounds(p)} | {number(p['effect'])} | {span(p['ci'])} "
        f"| {p['units']} of {p['units'] + p['unread']} | {rates(p)} | {p['verdict']} |"
        for p in record["predictions"]
    ]
    title = f"{record['number']}. {record['title']}: {record['verdict']}"
    light, dark = (f"{pictures}/{figures.file_of(Path(), name, t)}" for t in figures.THEMES)
    return "\n\n".join(
        [
            f'<a id="{name}"></a>\n\n## {title}',
            told,
            "| prediction | predicted | effect | 95% | units read | at rate × ⅓; × 3 | alone |\n"
            "|---|---|---|---|---|---|---|\n" + "\n".join(rows),
            arms(record),
            f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
            f'  <img src="{light}" alt="{record["title"]}">\n</picture>',
        ]
    )


def arms(record: dict) -> str:
    """Every arm of a claim, folded away."""
    rows = []
    for name, told in record["arms"].items():
        arm = Prediction(name, np.array(told["values"], float))
        least = np.array(told.get("coherence", [np.nan]), float)
        coherence = f"{np.nanmin(least):.3f}" if np.isfinite(least).any() else ""
        read = f"{len(arm.read)} of {len(arm.values)}"
        effect = number(arm.effect if len(arm.read) else None)
        rows.append(f"| {cell(name)} | {effect} | {span(arm.interval())} | {read} | {coherence} |")
    return (
        "<details><summary>All arms</summary>\n\n"
        "| arm | mean | 95% | units read | least coherence |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n\n</details>"
    )


def rates(prediction: dict) -> str:
    """The effects at the other learning rates."""
    return "; ".join(number(value) for value in prediction["repeats"].values())


def publish(records: list[dict], facts: list[str], file: Path, pictures: Path) -> None:
    """Draw the figures, and write the file beside or above them."""
    draw(records, pictures)
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    where = pictures.relative_to(file.parent).as_posix()
    files.write_text(file, markdown(records, facts, where, before))
