"""RESULTS.md of a scorecard: its records as text, tables and figures.

The text between the two marks of the discussion is kept when the rest is written again.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from claims.lab import panels
from claims.lab.quantities import Quantity
from toyllm.base import files
from toyllm.base.errors import warn
from toyllm.show import figures

BEGIN, END = "<!-- discussion -->", "<!-- end of discussion -->"
RULES = """\
Effect: the mean of a claim's first prediction over pretraining seeds or worlds, with its 95%
Student-t interval. A claim is supported if *all* its predictions hold, not supported if any is
contradicted (both corrected over claims, Holm 1979), else undecided. "alone": a prediction by
itself, uncorrected. The bounds stand in claims/, set on seeds and worlds that are not among
these. Effects on behaviour are read where the trained domain's EM is .9, between scored steps;
mixtures, residuals and voices are of the parameters at the first scored step past it, of every
fourth."""
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


def table(header: str, rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table: the line of its header, and its rows of cells."""
    cells = [[value.replace("|", "\\|") for value in row] for row in rows]
    rule = "|" + "---|" * (header.count("|") - 1)
    return "\n".join([header, rule, *(f"| {' | '.join(row)} |" for row in cells)])


def rounded(value):
    """Plain values with four significant digits: what is published, without panels."""
    if isinstance(value, dict):
        return {key: rounded(x) for key, x in value.items() if key != "panels"}
    if isinstance(value, list):
        return [rounded(x) for x in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def draw(records: list[dict], folder: Path) -> None:
    """A figure a claim and theme, as PNG files. Warns of those that cannot be drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    for theme in figures.THEMES:
        with figures.themed(theme):
            for record in (r for r in records if "panels" in r):  # others keep the figure they have
                file = figures.file_of(folder, record["claim"], theme)
                try:
                    file.unlink(missing_ok=True)  # one of earlier results
                    panels.draw(record, theme).savefig(file, dpi=90)
                except Exception as error:  # a figure is no reason to lose the results
                    warn(f"{file}: could not be drawn: {error!r}")


def publish(
    records: list[dict], docs: dict[str, str], facts: list[str], file: Path, pictures: Path
) -> None:
    """Draw the figures, and write the file beside or above them.

    docs: the docstring of each claim. facts: lines on how the results were made. pictures: the
    folder of figures.
    """
    draw(records, pictures)
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    discussion = before.partition(BEGIN)[2].partition(END)[0].strip() or NONE_YET
    folder = pictures.relative_to(file.parent).as_posix()
    parts = [
        "# Results: the scorecard of the persona selection model",
        "Written by `uv run scorecard.py --publish`; do not edit, but for the discussion.",
        "\n".join(f"- {fact}" for fact in facts),
        f"{BEGIN}\n\n{discussion}\n\n{END}",
        "## The scorecard",
        RULES,
        table(
            "| | claim | effect of | predicted | effect | 95% | alone, so many hold | verdict |",
            [summary(record) for record in records],
        ),
        *(section(record, docs[record["claim"]], folder) for record in records),
    ]
    files.write_text(file, "\n\n".join(parts) + "\n")


def summary(record: dict) -> tuple[str, ...]:
    """The row of a claim in the scorecard."""
    first, alone = record["predictions"][0], [p["verdict"] for p in record["predictions"]]
    return (
        record["number"],
        f"[{record['title']}](#{record['claim']})",
        first["says"],
        bounds(first),
        number(record["effect"]),
        span(record["ci"]),
        f"{alone.count('supported')} of {len(alone)}",
        f"**{record['verdict']}**",
    )


def section(record: dict, doc: str, pictures: str) -> str:
    """One claim: what is claimed, when it counts as supported, its predictions, its figure."""
    name, title = record["claim"], record["title"]
    paragraphs = doc.strip().split("\n\n")
    how = f"Arms and measures: [claims/{name}.py](claims/{name}.py)."
    predictions = [
        (
            p["says"],
            bounds(p),
            number(p["effect"]),
            span(p["ci"]),
            f"{p['units']} of {p['units'] + p['unread']}",
            f"{p['holds']} ({p['holds_ci'][0]:.0%} to {p['holds_ci'][1]:.0%})",
            "; ".join(number(value) for value in p["repeats"].values()),
            p["verdict"],
        )
        for p in record["predictions"]
    ]
    light, dark = (f"{pictures}/{figures.file_of(Path(), name, t)}" for t in figures.THEMES)
    return "\n\n".join(
        [
            f'<a id="{name}"></a>\n\n## {record["number"]}. {title}: {record["verdict"]}',
            paragraphs[1],
            f"{paragraphs[-1]} {how}",
            table(
                "| prediction | predicted | effect | 95% | units read | it holds in | "
                "at rate × ⅓; × 3 | alone |",
                predictions,
            ),
            *related(record["related"]),
            f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
            f'  <img src="{light}" alt="{title}">\n</picture>',
        ]
    )


def related(rows: list[dict]) -> list[str]:
    """What goes with predictions that fail in some units, as a sentence; nothing if none does."""
    told = [f"{r['says']} with {r['feature']} ({number(r['r'])})" for r in rows if r["p"] < 0.05]
    said = f"{len(rows)} rank correlations with features of a world; p < .05 (corrected) for these"
    return [f"{said}: {'; '.join(told) or 'none'}."] if rows else []


def arm_rows(arms: dict) -> list[tuple[str, str, str, str, str]]:
    """Of each arm: name, mean, 95% interval, units read, least coherence."""
    rows = []
    for name, listed in arms.items():
        arm = Quantity(name, listed["values"])
        read = f"{len(arm.known)} of {len(arm.usual)}"
        effect = number(arm.effect if len(arm.known) else None)
        rows.append((name, effect, span(arm.interval()), read, least_coherence([listed])))
    return rows


def least_coherence(arms: Iterable[dict]) -> str:
    """The least coherence of any unit of some arms, or nothing where none was trained."""
    listed = np.array([x for arm in arms for x in arm.get("coherence", ())], float)
    return f"{np.nanmin(listed):.3f}" if np.isfinite(listed).any() else ""
