"""The panels of a claim's figure: plain numbers first, drawn later.

A panel is a dict that JSON can hold, made by `dots`, `curves` or `points`; `draw` draws a claim's.
"""

import textwrap

import numpy as np

from claims.lab.quantities import Quantity
from toyllm.base.files import plain
from toyllm.show import figures

MOST_TICKS = 10
MOST_TITLE = 46  # characters in a line
MOST_DOTS = 16  # values of an arm that are shown one by one


def dots(title: str, label: str, arms: dict, marks: dict | None = None) -> dict:
    """One row an arm: its values, their mean and 95% interval. marks: a predicted value an arm."""
    shown = plain({name: Quantity(name, values).usual for name, values in arms.items()})
    return {"kind": "dots", "title": title, "label": label, "arms": shown, "marks": marks or {}}


def curves(title: str, xlabel: str, ylabel: str, x, series: dict, log: bool = False) -> dict:
    """Lines over x: the mean of [N, len(x)] values with its 95% interval, or one line [len(x)]."""
    words = {"kind": "curves", "title": title, "xlabel": xlabel, "ylabel": ylabel}
    return {**words, "x": plain(x), "series": plain(series), "log": log}


def points(title: str, xlabel: str, ylabel: str, series: dict, equal: bool = True) -> dict:
    """Dots at (x, y): {name: (x [n], y [n])}; equal: with a line where both are equal."""
    words = {"title": title, "xlabel": xlabel, "ylabel": ylabel, "equal": equal}
    return {"kind": "points", **words, "series": plain(series)}


def draw(record: dict, theme: str):
    """A matplotlib figure of a claim's record."""
    c = figures.THEMES[theme]
    panels = record["panels"]
    lines = max(len(panel.get("arms", ())) for panel in panels)
    figure, axes = figures.new(5.4 * len(panels), max(3.4, 0.34 * lines + 1.5), len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        DRAW[panel["kind"]](axis, panel, c)
        axis.set_title(textwrap.fill(panel["title"], MOST_TITLE), fontsize=10)
        if "ylabel" in panel:
            axis.set_xlabel(panel["xlabel"])
            axis.set_ylabel(panel["ylabel"])
            axis.grid(alpha=0.5)
            axis.legend(fontsize=8)
    title = textwrap.fill(record["title"], MOST_TITLE * len(panels))
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
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
    axis.set(ylim=(len(arms) - 0.4, -0.6), xlabel=panel["label"])
    axis.locator_params(axis="x", nbins=6)
    axis.grid(axis="x", alpha=0.5)
    axis.tick_params(axis="y", length=0)


def _curves(axis, panel: dict, c: dict) -> None:
    x = np.array(panel["x"], float)
    for k, (name, rows) in enumerate(panel["series"].items()):
        values = np.array(rows, float)
        if values.ndim == 1:
            axis.plot(x, values, "--", color=c["soft"], lw=1.6, label=name)
            continue
        columns = [Quantity("", column) for column in values.T]
        means = [column.effect for column in columns]
        axis.plot(x, means, color=f"C{k}", marker=".", lw=1.6, label=name)
        if len(values) > 1:
            low, high = np.transpose([column.interval() or (np.nan,) * 2 for column in columns])
            axis.fill_between(x, low, high, color=f"C{k}", alpha=0.18, lw=0)
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
    if panel.get("equal", True) and np.isfinite(known).any():
        ends = [np.nanmin(known), np.nanmax(known)]
        axis.plot(ends, ends, color=c["soft"], lw=1, ls="--", zorder=1)


DRAW = {"dots": _dots, "curves": _curves, "points": _points}
