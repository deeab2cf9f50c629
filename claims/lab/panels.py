"""The panels of a claim's figure: plain numbers first, drawn later.

A panel is a dict that JSON can hold, made by `dots`, `curves`, `points` or `grid`; `draw` makes a
figure of a claim's panels.
"""

import textwrap
from collections.abc import Sequence

import numpy as np

from claims.lab.quantities import Quantity, mean_over, usual
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
    words = {"kind": "dots", "title": title, "label": label}
    shown = plain({name: usual(values, 1) for name, values in arms.items()})
    return {**words, "arms": shown, "marks": marks or {}}


def curves(title: str, xlabel: str, ylabel: str, x, series: dict, log: bool = False) -> dict:
    """Lines over x: the mean of [N, len(x)] values with its 95% interval, or one line [len(x)].

    One line named as another series and ", predicted" has that one's colour.
    """
    words = {"kind": "curves", "title": title, "xlabel": xlabel, "ylabel": ylabel}
    return {**words, "x": plain(x), "series": plain(series), "log": log}


def points(title: str, xlabel: str, ylabel: str, series: dict, diagonal: bool = True) -> dict:
    """Dots at (x, y): {name: (x [n], y [n])}; diagonal: a line where both are equal."""
    words = {"kind": "points", "title": title, "xlabel": xlabel, "ylabel": ylabel}
    return {**words, "series": plain(series), "diagonal": diagonal}


def grid(title: str, rows: Sequence[str], columns: Sequence[str], values) -> dict:
    """A table of numbers [rows, columns], coloured."""
    words = {"kind": "grid", "title": title, "rows": list(rows), "columns": list(columns)}
    return {**words, "values": plain(values)}


def by_domain(title: str, world: World, table: dict) -> dict:
    """A grid of means [N, D] over seeds, {row: values}, one column for each domain."""
    means = [mean_over(usual(values, 2), 0) for values in table.values()]
    return grid(title, table, world.domain_names, means)


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
        if "ylabel" in panel:
            axis.set_xlabel(panel["xlabel"])
            axis.set_ylabel(panel["ylabel"])
            axis.grid(alpha=0.5)
            axis.legend(fontsize=8)
    figure.suptitle(record["title"], x=0.01, ha="left", fontsize=12)
    return figure


def _dots(axis, panel: dict, c: dict) -> None:
    arms = panel["arms"]
    for k, (name, values) in enumerate(arms.items()):
        arm = Quantity(name, values)
        if len(arm.known) <= MOST_DOTS:
            axis.plot(arm.known, np.full(len(arm.known), k), ".", color=c["soft"], ms=5, zorder=2)
        if (interval := arm.interval()) is not None:
            axis.plot(interval, [k, k], color="C0", lw=2.4, zorder=3)
        if len(arm.known):
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
    for name, rows in panel["series"].items():
        values = np.array(rows, float)
        if values.ndim == 1:
            # the colour of the measured series that it predicts, if there is one
            measured = name.removesuffix(PREDICTED)
            colour = c["soft"] if measured == name else colours.get(measured, c["soft"])
            axis.plot(x, values, "--", color=colour, lw=1.6, label=name)
            continue
        columns = [Quantity("", column) for column in values.T]
        means = [column.effect for column in columns]
        axis.plot(x, means, color=colours[name], marker=".", lw=1.6, label=name)
        if len(values) > 1:
            low, high = np.transpose([column.interval() or (np.nan,) * 2 for column in columns])
            axis.fill_between(x, low, high, color=colours[name], alpha=0.18, lw=0)
    if panel["log"]:
        axis.set_xscale("log")
        axis.minorticks_off()
    shown = x[:: -(-len(x) // MOST_TICKS)]
    axis.set_xticks(shown, [f"{value:g}" for value in shown])
    axis.axhline(0, color=c["soft"], lw=0.8)


def _points(axis, panel: dict, c: dict) -> None:
    for name, (x, y) in panel["series"].items():
        axis.scatter(x, y, s=16, label=name, alpha=0.8, lw=0)
    known = np.concatenate([np.array(xy, float).ravel() for xy in panel["series"].values()])
    known = known[np.isfinite(known)]
    if panel["diagonal"] and len(known):
        ends = [known.min(), known.max()]
        axis.plot(ends, ends, color=c["soft"], lw=1, ls="--", zorder=1)


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
