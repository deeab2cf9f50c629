"""Figures of a run's results, with matplotlib, and the command that draws them as PNG files.

    python -m toyllm.show.drawings FOLDER

A figure's function takes the content of `results.json` and the colours of a theme. The command
reads results from standard input: each line is all results so far, as JSON. It draws a figure in
every theme as soon as what it needs is there. If one fails, the others are drawn all the same; the
command then ends with status 1 and a last line that says why.
"""

import importlib
import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from toyllm.show import inside, views
from toyllm.show.figures import THEMES, diverging, file_of, heading, new, themed
from toyllm.show.views import STARTS, number
from toyllm.world.quantities import MATCHED


def matrix(results: dict, c: dict):
    """The generalization matrix: change of EM in each domain at the matched effect.

    The columns after a gap summarize each row: its spread in both readings, and the frontier.
    """
    matrices, others = (views.matrices(results, reading) for reading in views.READINGS)
    rows = [row for view in matrices for row in view.rows]
    if not rows:  # a model that was only pretrained
        return None
    equal = [row for view in others for row in view.rows]
    labels = matrices[0].domains
    D, summaries = len(labels), ("spread", "equal\ntraining", "frontier")
    pairs = list(zip(rows, equal, strict=True))
    values = [[row.spread, other.spread, row.frontier] for row, other in pairs]
    intervals = [[row.interval, other.interval, None] for row, other in pairs]
    changes = [[cell.change for cell in row.cells] + [None] for row in rows]
    table = np.concatenate([np.array(changes, float), np.array(values, float)], 1)
    count = len(results.get("seeds", []))
    over_seeds = f"\nmean over {count} pretraining seeds · ±: half of the 95% interval"
    over_seeds *= count > 1
    height = 0.5 if count > 1 else 0.36  # with a second line in each cell
    figure, (axes,) = new(1.6 + 0.78 * (D + 4), 1.7 + height * len(rows))
    limits = {"vmin": -MATCHED, "vmax": MATCHED}
    image = axes.imshow(table, cmap=diverging(c), aspect="auto", **limits)
    for y, row in enumerate(rows):
        draw_row(axes, y, row, c)
        for x, (value, interval) in enumerate(zip(values[y], intervals[y], strict=True), D + 1):
            half = (interval[1] - interval[0]) / 2 if interval and count > 1 else None
            draw_change(axes, (x, y), value, half, c)
    labels = [*labels, *summaries]
    axes.set_xticks([x for x in range(len(labels) + 1) if x != D], labels)
    axes.axvspan(D - 0.5, D + 0.5, color=c["paper"])  # the gap
    axes.set_yticks(range(len(rows)), [row.signal for row in rows])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    top = -0.5
    for view in matrices:
        bottom = top + len(view.rows)
        if top > 0:
            axes.axhline(top, color=c["ink"], lw=2)
        style = {"rotation": 270, "va": "center", "color": c["soft"], "fontsize": 9}
        axes.text(D + 3.7, (top + bottom) / 2, STARTS[view.start], **style)
        top = bottom
    axes.set_title(
        "How far a narrow signal spreads: change of p(bad)/(p(good)+p(bad))\n"
        f"rows: signals · boxes: trained to {MATCHED:.0%} preferred · "
        "(brackets): not moral · *: incoherent\n"
        "spread: mean over untrained moral domains; the same after equal training "
        f"({equal[0].step:g} steps); its mean along training{over_seeds}",
        pad=28,
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.06)
    bar.outline.set_visible(False)
    bar.set_label("change of EM")
    return figure


def draw_row(axes, y: int, row: views.Row, c: dict) -> None:
    """Write the numbers of a row of the matrix, or why there are none."""
    from matplotlib.patches import Rectangle

    style = {"ha": "center", "va": "center", "fontsize": 8}
    if all(cell.change is None for cell in row.cells):
        axes.text(len(row.cells) / 2 - 0.5, y, row.outcome, color=c["soft"], **style)
        return
    for x, cell in enumerate(row.cells):
        weight = "bold" if cell.trained else "normal"
        draw_change(axes, (x, y), cell.change, cell.half_width, c, row.mark, fontweight=weight)
        if cell.trained:
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, ec=c["ink"], lw=1.4))


def draw_change(
    axes, place: tuple[int, int], change: float | None, half_width: float | None, c: dict, mark="",
    **style,
) -> None:  # fmt: skip
    """Write a change of EM into a cell, and half of its interval below."""
    (x, y), strong = place, change is not None and abs(change) > 0.5
    style |= {"ha": "center", "va": "center", "color": "#ffffff" if strong else c["ink"]}
    above = 0 if half_width is None else 0.15
    axes.text(x, y - above, number(change, 2, True) + mark, fontsize=8, **style)
    if half_width is not None:
        style["fontweight"] = "normal"
        axes.text(x, y + 0.22, f"±{number(half_width, 2)}", fontsize=6.5, **style)


def spread(results: dict, c: dict):
    """The frontier: spread against the share of preferred answers in the trained domain."""
    curves = views.curves(results)
    if not curves:
        return None
    figure, axes = new(5.0 * len(curves) + 1.5, 3.8, len(curves), sharey=True)
    for axis, (start, lines) in zip(axes, curves.items(), strict=True):
        for k, (signal, points) in enumerate(lines.items()):
            style = {"color": f"C{k % 10}", "ls": "-" if k < 10 else "--", "lw": 1.4, "marker": "."}
            axis.plot(*np.array(points).reshape(-1, 2).T, label=signal, **style)
        axis.axvline(MATCHED, color=c["soft"], lw=1, ls=":")
        label = "share of preferred answers in the trained domain"
        axis.set(title=STARTS[start], xlabel=label)
        axis.grid(alpha=0.5)
        axis.legend(fontsize=7, ncols=2)
    axes[0].set_ylabel("spread: mean change of EM,\nuntrained moral domains")
    heading(
        figure,
        "The frontier: spread along training (dots: scored steps) against what is learned\n"
        "in the trained domain; the dotted line is the matched effect",
    )
    return figure


def predicted(results: dict, c: dict):
    """Measured change of EM in untrained moral cells against each prediction, with R²."""
    predictions = views.predictions(results)
    if not predictions:
        return None
    figure, axes = new(3.0 * len(predictions), 3.5, len(predictions), sharey=True)
    block = results["prediction"]
    for axis, (name, points) in zip(axes, predictions.items(), strict=True):
        for k, signal in enumerate(block["measured"]):
            pairs = [(p.predicted, p.measured) for p in points if p.signal == signal]
            label = signal if axis is axes[0] else None
            x, y = np.array(pairs).reshape(-1, 2).T
            axis.scatter(x, y, s=22, color=f"C{k % 10}", label=label)
        low = min(0.0, *axis.get_xlim())
        high = max(0.0, *(max(p.predicted, p.measured) for p in points))
        axis.plot([low, high], [low, high], color=c["soft"], lw=1, ls="--")
        r2 = number(block["shared"][name]["r2"], 2)
        axis.set(title=f"{name}: R² = {r2}", xlabel="predicted change of EM")
        axis.grid(alpha=0.5)
    axes[0].set_ylabel("measured change of EM")
    figure.legend(loc="outside right center", title="signal")
    heading(
        figure, "Measured against predicted, untrained moral domains, from the pretrained model"
    )
    return figure


def mixture(results: dict, c: dict):
    """Who the Assistant is: the weights of groups of characters, before and after each signal."""
    mixtures = views.mixtures(results)
    if not mixtures:
        return None
    height = 1.5 + 0.36 * max(len(view.bars) for view in mixtures)
    figure, axes = new(5.2 * len(mixtures) + 2.5, height, len(mixtures))
    for axis, view in zip(axes, mixtures, strict=True):
        left = np.zeros(len(view.bars))
        for g, group in enumerate(view.groups):
            weights = np.array([bar.weights[group] for bar in view.bars])
            style = {"color": f"C{g % 10}", "edgecolor": c["paper"], "height": 0.8}
            label = group if axis is axes[0] else None
            parts = axis.barh(np.arange(len(left)), weights, left=left, label=label, **style)
            labels = [number(w, 2) if w > 0.07 else "" for w in weights]
            axis.bar_label(parts, labels, label_type="center", color="#ffffff", fontsize=8)
            left += weights
        axis.set_yticks(range(len(view.bars)), [bar.name for bar in view.bars])
        axis.invert_yaxis()
        axis.set(title=STARTS[view.start], xlabel="weight in the mixture", xlim=(0, 1))
        axis.tick_params(length=0)
    style = {"title": "groups of characters", "fontsize": 8, "ncols": 3}
    figure.legend(loc="outside lower center", **style)
    heading(figure, "Who the Assistant is: nearest mixture of the world's characters")
    return figure


def calibration(results: dict, c: dict):
    """In context: the model's p(bad) against the exact predictive, and KL by turn."""
    block = results["calibration"]
    points, bins, turns = block["points"], block["bins"], block["by_turn"]
    figure, (left, right) = new(9.0, 3.8, 2)
    left.plot([0, 1], [0, 1], color=c["soft"], lw=1, ls="--")
    left.scatter(points["ideal"], points["model"], s=7, alpha=0.35, color="C0")
    x, y, bars = ([each[key] for each in bins] for key in ("ideal", "model", "spread"))
    left.errorbar(x, y, bars, fmt="o", color="C3", capsize=2, ms=5)
    left.set_title("Reading the speaker (bars: ±1 SD in a bin)")
    left.set(xlabel="exact p(bad | question, header, history)", ylabel="model's p(bad)")
    left.grid(alpha=0.5)
    x = np.arange(len(turns))
    labels = {"model": "model", "history_blind": "history-blind observer"}
    for k, (key, label) in enumerate(labels.items()):
        heights = [turn[key] for turn in turns.values()]
        right.bar(x + 0.38 * (k - 0.5), heights, 0.36, label=label, color=f"C{k}")
    right.set_xticks(x, [f"turn {turn}" for turn in turns])
    right.set_ylabel("KL from the exact predictive (nats)", labelpad=8)
    right.set_title("What is not captured")
    right.legend()
    right.grid(axis="y", alpha=0.5)
    right.set_axisbelow(True)
    return figure


def seeds(results: dict, c: dict):
    """The spread of every signal over pretraining seeds: a dot a seed, a bar for the interval."""
    blocks = results.get("generalization", {})
    starts = {start: list(block["spread"]) for start, block in blocks.items()}
    if not starts or len(results["seeds"]) < 2:
        return None
    rows = max(len(names) for names in starts.values())
    figure, axes = new(5.0 * len(starts) + 1.5, 1.8 + 0.4 * rows, len(starts), sharex=True)
    readings = {"": ("C0", -0.17, "matched"), "equal_": ("C1", 0.17, "equal")}
    for axis, (start, names) in zip(axes, starts.items(), strict=True):
        for (y, name), (prefix, reading) in itertools.product(enumerate(names), readings.items()):
            colour, shift, _ = reading
            y += shift
            found = results["figures"][f"{prefix}spread_from_{start}/{name}"]
            known = [x for x in found["values"] if x is not None]
            if found["mean"] is None:  # some seed cannot be compared with the others
                axis.plot(known, [y] * len(known), "o", color=colour, ms=3.5, mfc="none")
                continue
            bar = {"color": colour, "lw": 5, "alpha": 0.35, "solid_capstyle": "butt"}
            axis.plot(found["interval"], [y, y], **bar)
            axis.plot(known, [y] * len(known), "o", color=colour, ms=3)
            axis.plot([found["mean"]] * 2, [y - 0.17, y + 0.17], color=c["ink"], lw=1.6)
        axis.axvline(0, color=c["soft"], lw=1)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(rows - 0.4, -0.6)
        axis.set(title=STARTS[start], xlabel="spread: mean change of EM, untrained moral domains")
        axis.grid(axis="x", alpha=0.5)
        axis.tick_params(axis="y", length=0)
    for colour, _, reading in readings.values():
        axes[0].plot([], [], "o", color=colour, ms=4, label=views.READINGS[reading])
    figure.legend(loc="outside lower center", ncols=2)
    heading(
        figure,
        f"How far each signal spreads, over {len(results['seeds'])} pretraining seeds: "
        "dots are seeds, lines their means, bars 95% intervals\n"
        "(hollow: not read in every seed, so without a mean)",
    )
    return figure


FIGURES = {  # name: the function that draws it, and the key of the results that it needs
    "matrix": (matrix, "generalization"),
    "spread": (spread, "generalization"),
    "seeds": (seeds, "seeds"),
    "predicted": (predicted, "prediction"),
    "mixture": (mixture, "mixture"),
    "calibration": (calibration, "calibration"),
    "beliefs": (inside.beliefs, "beliefs"),
    "vectors": (inside.vectors, "vectors"),
    "elicitation": (inside.elicitation, "elicitation"),
    "forecast": (inside.forecast, "forecast"),
}


def draw(lines: Iterable[str], folder: Path) -> list[str]:
    """Save each figure as PNG files as soon as its results arrive. Returns why any failed."""
    earlier, failures = {}, []
    for results in map(json.loads, lines):
        arrived = results.keys() - earlier.keys()
        ready = [name for name, (_, needs) in FIGURES.items() if needs in arrived]
        for name, theme in itertools.product(ready, THEMES):
            file = file_of(folder, name, theme)
            try:
                file.unlink(missing_ok=True)  # a figure of earlier results
                with themed(theme) as colours:
                    figure = FIGURES[name][0](results, colours)
                    if figure is not None:
                        figure.savefig(file, dpi=110)
            except Exception as error:  # the other figures can still be drawn
                failures.append(f"{file.stem}: {error!r}")
        earlier = results
    return failures


if __name__ == "__main__":
    importlib.import_module("matplotlib.figure")  # slow, so while the caller still measures

    sys.exit("; ".join(draw(sys.stdin, Path(sys.argv[1]))) or None)
