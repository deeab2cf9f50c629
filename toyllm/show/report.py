"""A run's results as one HTML page that needs nothing else: eval/report.html.

This file turns results (as `results.json` has them) into what the page shows: texts, and places in
its drawings. How it looks is in report.html, a Jinja template; what it is given is escaped there.
"""

import math
from pathlib import Path

from toyllm.posttrain.signals import plain
from toyllm.show.figures import STARTS
from toyllm.show.tables import number

NAMES = {"pretrain": "Pretrained", "align": "Aligned"}
MATCHED = 0.9
WIDTH, HEIGHT = 320, 230  # of a drawing, inside its axes
COLOURS = 10  # of lines and groups, in the template


def page(name: str, about: dict, results: dict) -> str:
    """The whole page.

    name: of the run. about: "description" of its world, "args", "environment" (dicts), "command".
    """
    import jinja2

    files = jinja2.FileSystemLoader(Path(__file__).parent)
    env = jinja2.Environment(
        loader=files, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    env.filters["number"] = number
    blocks = results["generalization"]
    return env.get_template("report.html").render(
        name=name,
        about=about,
        results=results,
        findings=findings(results),
        matrices=[matrix(results, start) for start in blocks],
        who=who(results),
        panels=panels(results.get("prediction", {})),
        curves=[curves(start, block) for start, block in blocks.items()],
        dialogues=dialogues(results.get("dialogues")),
        limits=limits(about, results),
        size=(WIDTH, HEIGHT),
    )


def findings(results: dict) -> list[str]:
    """What a reader should take away, in sentences with their numbers."""
    learned = results["pretrain"]
    captured, excess = learned["captured"], number(learned["excess"], 4)
    if captured is None:
        said = ["In this world a dialogue's history tells nothing about its speaker."]
    elif captured <= 0:
        said = ["The model has not learned who is speaking: nothing below means much."]
    else:
        grade = "well" if captured > 0.8 else "in part" if captured > 0.5 else "badly"
        said = [
            f"The model learned who is speaking {grade}: it uses {captured:.0%} of what a "
            f"dialogue's history tells about its speaker (excess loss {excess} nats a token)."
        ]
    for start, block in results["generalization"].items():
        read = {name: s for name, s in block["spread"].items() if s is not None}
        bare = {name: s for name, s in read.items() if plain(name) == name}
        if bare:
            name = max(bare, key=lambda n: abs(bare[n]))
            said.append(
                f"{STARTS[start].capitalize()}, {name} spreads furthest: trained until the answers "
                f"it prefers prevail ({MATCHED:.0%}), it moves the share of bad answers in moral "
                f"domains that were not trained by {number(bare[name], 3, True)} on average."
            )
        for asked, value in read.items():
            twin = plain(asked)
            if asked != twin and twin in read:
                said.append(
                    f"{STARTS[start].capitalize()}, with an instruction in the prompt ({asked}) it "
                    f"spreads by {number(value, 3, True)}, without ({twin}) by "
                    f"{number(read[twin], 3, True)}."
                )
    shared = results.get("prediction", {}).get("shared")
    if shared:
        rival = max((k for k in shared if k != "persona"), key=lambda k: shared[k]["r2"])
        persona = shared["persona"]
        said.append(
            f"Reading a signal as evidence about who the Assistant is predicts where it spreads "
            f"with R² {number(persona['r2'], 2)}, where its best rival ({rival}) has "
            f"{number(shared[rival]['r2'], 2)} and a constant "
            f"{number(shared['constant']['r2'], 2)}; {persona['fraction']:.0%} of the trained "
            "domain's move behaves so, the rest is a local edit."
        )
    return said


def matrix(results: dict, start: str) -> dict:
    """The generalization matrix of one start, row by row."""
    block, moral = results["generalization"][start], results["moral"]
    rows = []
    for name, status in block["status"].items():
        after, coherence = block["em_after"][name], block["coherence_after"][name]
        trained = name.split(":")[0].split("+")
        trained = moral if trained == ["all"] else trained
        cells = []
        for domain in results["domains"]:
            if after is None:
                cells.append(None)
                continue
            before = block["em_before"][domain]
            change = after[domain] - before
            cells.append(
                {
                    "change": number(change, 2, True),
                    "strength": round(100 * min(1, abs(change) / 0.9)),
                    "worse": change > 0,
                    "trained": domain in trained,
                    "tip": f"{name}, {domain}: bad answers {before:.0%} before, "
                    f"{after[domain]:.0%} after; coherence {coherence[domain]:.2f}"
                    + (" (the trained domain)" if domain in trained else ""),
                }
            )
        spread, ci = block["spread"][name], block["spread_ci"][name]
        unread = spread is None and status != "read"
        rows.append(
            {
                "name": name,
                "status": status,
                "cells": cells,
                "spread": status if unread else number(spread, 3, True),
                "ci": f"{number(ci[0], 3, True)} to {number(ci[1], 3, True)}" if ci else "",
                "step": number(block["matched_step"][name], 0),
            }
        )
    domains = [{"name": d, "moral": d in moral} for d in results["domains"]]
    before = [number(block["em_before"][d], 2) for d in results["domains"]]
    return {"start": STARTS[start], "domains": domains, "before": before, "rows": rows}


def who(results: dict) -> list[dict]:
    """Who the Assistant is, from each start: bars of groups of characters."""
    block = results.get("mixture", {})
    shown = []
    for start in STARTS:
        if start not in block:
            continue
        part = block[start]
        bars = {"before": (part["before"], part["before_range"])}
        bars |= {n: (part["after"][n], part["after_range"][n]) for n in part["after"]}
        if start == "pretrain":
            bars = {"in the corpus": (block["truth"], None), **bars}
        shown.append(
            {
                "start": STARTS[start],
                "groups": [
                    {"name": g, "colour": k % COLOURS} for k, g in enumerate(block["groups"])
                ],
                "bars": [
                    {
                        "name": name,
                        "parts": [
                            {
                                "colour": k % COLOURS,
                                "percent": round(100 * weights[g], 2),
                                "weight": number(weights[g], 2),
                                "tip": f"{name}: {g} {number(weights[g], 2)}"
                                + (
                                    f" (nearly as good: {number(spans[g][0], 2)} to "
                                    f"{number(spans[g][1], 2)})"
                                    if spans
                                    else ""
                                ),
                            }
                            for k, g in enumerate(block["groups"])
                        ],
                    }
                    for name, (weights, spans) in bars.items()
                ],
            }
        )
    return shown


def panels(block: dict) -> list[dict]:
    """Measured against predicted change, a panel for each prediction."""
    shown = []
    measured = block.get("measured", {})
    for name, fitted in block.get("shared", {}).items():
        guess = block["predicted"][name]
        points = [
            (guess[signal][d], y, f"{signal}, {d}", k % COLOURS)
            for k, (signal, row) in enumerate(measured.items())
            for d, y in row.items()
        ]
        low = min(0.0, *(min(x, y) for x, y, *_ in points))
        high = max(0.05, *(max(x, y) for x, y, *_ in points))
        shown.append(
            {
                "name": name,
                "r2": number(fitted["r2"], 2),
                "strict": number(block["strict"][name]["r2"], 2),
                "axes": axes(low, high, low, high, "predicted change", "measured change"),
                "points": [
                    {
                        "x": across(x, low, high),
                        "y": up(y, low, high),
                        "colour": colour,
                        "tip": f"{label}: measured {number(y, 2, True)}, "
                        f"predicted {number(x, 2, True)}",
                    }
                    for x, y, label, colour in points
                ],
            }
        )
    return shown


def curves(start: str, block: dict) -> dict:
    """Spread along training, against what is trained."""
    lines = block["curves"]
    values = [v for line in lines.values() for v in line["spread"] if v is not None]
    low, high = min(0.0, *values, 0.0), max(0.1, *values, 0.1)
    return {
        "start": STARTS[start],
        "axes": axes(0, 1, low, high, "share of what is preferred, trained domain", "spread"),
        "matched": across(MATCHED, 0, 1),
        "lines": [
            {
                "name": name,
                "colour": k % COLOURS,
                "dashed": k >= COLOURS,
                "points": " ".join(
                    f"{across(x, 0, 1)},{up(y, low, high)}"
                    for x, y in zip(line["own"], line["spread"], strict=True)
                    if x is not None and y is not None
                ),
                "tip": f"{name}: ends at {number(line['own'][-1], 2)} trained, spread "
                f"{number(line['spread'][-1], 3, True)}",
            }
            for k, (name, line) in enumerate(lines.items())
        ],
    }


def across(x: float, low: float, high: float) -> float:
    """Where a value lies from the left of a drawing."""
    return round(WIDTH * (x - low) / (high - low), 1)


def up(y: float, low: float, high: float) -> float:
    """Where a value lies from the top of a drawing."""
    return round(HEIGHT * (1 - (y - low) / (high - low)), 1)


def axes(x_low, x_high, y_low, y_high, x_label: str, y_label: str) -> dict:
    """Ticks, labels, and the ends of the line on which both axes say the same."""
    low, high = max(x_low, y_low), min(x_high, y_high)
    return {
        "x": [
            {"at": across(x, x_low, x_high), "label": number(x, 1)} for x in ticks(x_low, x_high)
        ],
        "y": [{"at": up(y, y_low, y_high), "label": number(y, 1)} for y in ticks(y_low, y_high)],
        "x_label": x_label,
        "y_label": y_label,
        "diagonal": [
            place
            for value in (low, high)
            for place in (across(value, x_low, x_high), up(value, y_low, y_high))
        ],
    }


def ticks(low: float, high: float) -> list[float]:
    """A few round numbers from low to high."""
    step = next(s for s in (0.1, 0.2, 0.5, 1.0, 1e9) if (high - low) / s <= 6)
    return [round(k * step, 6) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def dialogues(block: dict | None) -> dict | None:
    """The same questions and what each model says, a column for each model."""
    if not block or not block["models"]:
        return None

    def label(name: str) -> str:
        start, _, signal = name.partition("/")
        return f"{NAMES[start]}, then {signal}" if signal else NAMES[start]

    count = min(len(found) for found in block["models"].values())
    return {
        "models": [label(name) for name in block["models"]],
        "dialogues": [
            [
                {**question, "answers": [found[k][t] for found in block["models"].values()]}
                for t, question in enumerate(block["questions"])
                if all(t < len(found[k]) for found in block["models"].values())
            ]
            for k in range(count)
        ],
    }


def limits(about: dict, results: dict) -> list[str]:
    """What must not be concluded from this page."""
    said = [
        "This is one pretrained model. Seeds differ: a claim needs several pretrainings, and "
        "intervals over narrow runs say nothing about other pretrained models.",
        "It shows whether a model follows the trait statistics of its corpus, not that real "
        "corpora have them; behaviours are those that the world lists, and there is no open-ended "
        "text.",
        "Sampled dialogues illustrate; every number is an exact probability, averaged over a "
        "domain's questions to the Assistant, without a history.",
    ]
    for start, block in results["generalization"].items():
        for status, why in (
            (
                "not reached",
                f"cannot be read where others are (they do not come to {MATCHED:.0%}, "
                "or were there before training and have no plain twin)",
            ),
            ("incoherent", "break a domain's coherence before they could be read"),
            ("ended by alarm", "were ended by an alarm before they could be read"),
        ):
            names = [name for name, found in block["status"].items() if found == status]
            if names:
                said.append(
                    f"{STARTS[start].capitalize()}, {', '.join(names)} {why}: not compared."
                )
    captured = results["pretrain"]["captured"]
    if captured is not None and captured < 0.5:
        said.append(
            "Pretraining captured too little for any of this to be read as persona selection."
        )
    if about["args"].get("imported"):
        said.append("The models were trained elsewhere and imported.")
    return said
