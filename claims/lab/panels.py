"""The panels of a claim's figure: plain numbers first, drawn later.

A panel is a dict that JSON can hold, made by `dots`, `curves`, `points` or `grid`; `draw` makes a
figure of a claim's panels.
"""

import textwrap

import numpy as np

from claims.lab.arms import mean_over
from claims.lab.rates import usual
from claims.lab.verdicts import Prediction
from toyllm.base.files import plain
from toyllm.show import figures
from toyllm.world.world import World

PREDICTED = ", predicted"
MOST_COLUMNS = 3  # of panels beside each other
MOST_TICKS = 10
MOST_TITLE = 46  # characters in a line
LEAST_COLOUR = 0.1  # a grid's fullest colour is of no less than this
MOST_DOTS = 16  # values of an arm that are shown one by one


def dots(title: str, label: str, arms: dict, marks: dict | None = None) -> dict:
    """One row an arm: its values, their mean and 95% interval. marks: a predicted value an arm."""
    return {
        "kind": "dots",
        "title": title,
        "label": label,
        "arms": plain({name: usual(values) for name, values in arms.items()}),
        "marks": marks or {},
    }


def curves(title: str, xlabel: str, ylabel: str, x, series: dict, log: bool = False) -> dict:
    """Lines over x: the mean of [N, len(x)] values with its 95% interval, or one line [len(x)].

    One line named as another series and ", predicted" has that one's colour.
    """
    words = {"title": title, "xlabel": xlabel, "ylabel": ylabel}
    return {"kind": "curves", **words, "x": plain(x), "series": plain(series), "log": log}


def points(title: str, xlabel: str, ylabel: str, series: dict, diagonal: bool = True) -> dict:
    """Dots at (x, y): {name: (x [n], y [n])}; diagonal: a line where both are equal."""
    words = {"title": title, "xlabel": xlabel, "ylabel": ylabel}
    return {"kind": "points", **words, "series": plain(series), "diagonal": diagonal}


def grid(title: str, rows: list[str], columns: list[str], values) -> dict:
    """A table of numbers [rows, columns], coloured."""
    words = {"title": title, "rows": rows, "columns": columns}
    return {"kind": "grid", **words, "values": plain(values)}


def by_domain(title: str, world: World, table: dict) -> dict:
    """A grid of means [N, D] over seeds, {row: values}, one column for each domain."""
    means = [mean_over(usual(values), 0) for values in table.values()]
    return grid(title, list(table), list(world.domain_names), means)


def draw(record: dict, theme: str):
    """A matplotlib figure of a claim's record."""
    c = figures.THEMES[theme]
    panels = record["panels"]
    rows = -(-len(panels) // MOST_COLUMNS)
    columns = -(-len(panels) // rows)
    width, height = np.ones((rows, columns)), np.full((rows, columns), 3.4)
    for k, panel in enumerate(panels):
        width.flat[k] = {"grid": 1.3, "dots": 1.25}.get(panel["kind"], 1.0)
        lines = len(panel.get("arms") or panel.get("rows", ()))
        height.flat[k] = max(3.4, 0.34 * lines + 1.5)
    figure, axes = figures.new(
        4.6 * width.max(0).sum(),
        height.max(1).sum(),
        columns,
        rows,
        width_ratios=width.max(0),
        height_ratios=height.max(1),
    )
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes, panels, strict=False):
        DRAW[panel["kind"]](axis, panel, c)
        axis.set_title(textwrap.fill(panel["title"], MOST_TITLE), fontsize=10)
    figure.suptitle(record["title"], x=0.01, ha="left", fontsize=12)
    return figure


def _dots(axis, panel: dict, c: dict) -> None:
    arms = panel["arms"]
    for k, (name, values) in enumerate(arms.items()):
        arm = Prediction(name, np.atleast_1d(np.array(values, float)))
        if len(arm.read) and len(arm.read) <= MOST_DOTS:
            axis.plot(arm.read, np.full(len(arm.read), k), ".", color=c["soft"], ms=5, zorder=2)
        if (interval := arm.interval()) is not None:
            axis.plot(interval, [k, k], color="C0", lw=2.4, zorder=3)
        if len(arm.read):
            axis.plot([arm.effect], [k], "o", color="C0", ms=6, zorder=4)
        else:
            axis.text(0, k, "  not read", color=c["soft"], va="center", fontsize=8)
        if name in panel["marks"]:
            axis.plot([panel["marks"][name]], [k], "D", mfc="none", color="C3", ms=6, zorder=5)
    axis.axvline(0, color=c["soft"], lw=1)
    axis.set_yticks(range(len(arms)), list(arms))
    axis.set_ylim(len(arms) - 0.4, -0.6)
    axis.set_xlabel(panel["label"])
    axis.grid(axis="x", alpha=0.5)
    axis.tick_params(axis="y", length=0)


def _curves(axis, panel: dict, c: dict) -> None:
    x = np.array(panel["x"], float)
    colours = {name: f"C{k}" for k, name in enumerate(panel["series"])}
    for k, (name, rows) in enumerate(panel["series"].items()):
        values = np.array(rows, float)
        one = values.ndim == 1
        y = values if one else np.array([Prediction("", column).effect for column in values.T])
        beside = colours.get(name.removesuffix(PREDICTED), c["soft"])  # of what is measured
        beside = c["soft"] if beside == colours[name] else beside
        style = {"ls": "--", "color": beside} if one else {"color": colours[name], "marker": "."}
        axis.plot(x, y, lw=1.6, label=name, **style)
        if not one and len(values) > 1:
            spans = [Prediction("", column).interval() or (np.nan,) * 2 for column in values.T]
            axis.fill_between(x, *np.array(spans).T, color=f"C{k}", alpha=0.18, lw=0)
    if panel["log"]:
        axis.set_xscale("log")
        axis.minorticks_off()
    shown = x[:: -(-len(x) // MOST_TICKS)]
    axis.set_xticks(shown, [f"{value:g}" for value in shown])
    axis.axhline(0, color=c["soft"], lw=0.8)
    axis.set_xlabel(panel["xlabel"])
    axis.set_ylabel(panel["ylabel"])
    axis.grid(alpha=0.5)
    axis.legend(fontsize=8)


def _points(axis, panel: dict, c: dict) -> None:
    everything = []
    for k, (name, (x, y)) in enumerate(panel["series"].items()):
        axis.scatter(x, y, s=16, color=f"C{k}", label=name, alpha=0.8, lw=0)
        everything += [*x, *y]
    known = np.array(everything, float)
    known = known[np.isfinite(known)]
    if panel["diagonal"] and len(known):
        ends = [known.min(), known.max()]
        axis.plot(ends, ends, color=c["soft"], lw=1, ls="--", zorder=1)
    axis.set_xlabel(panel["xlabel"])
    axis.set_ylabel(panel["ylabel"])
    axis.grid(alpha=0.5)
    axis.legend(fontsize=8)


def _grid(axis, panel: dict, c: dict) -> None:
    values = np.array(panel["values"], float)
    known = np.isfinite(values)
    most = np.max(np.abs(values), initial=LEAST_COLOUR, where=known)
    sign = "+" if np.any(values < 0, where=known) else ""
    axis.imshow(values, cmap=figures.diverging(c), vmin=-most, vmax=most, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = "" if np.isnan(value) else f"{value:{sign}.2f}".replace("0.", ".")
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color=c["ink"])
    axis.set_xticks(range(len(panel["columns"])), panel["columns"], fontsize=8)
    axis.set_yticks(range(len(panel["rows"])), panel["rows"], fontsize=8)
    axis.tick_params(length=0)


DRAW = {"dots": _dots, "curves": _curves, "points": _points, "grid": _grid}
