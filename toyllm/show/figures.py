"""The look of all figures: themes, sizes, colours (matplotlib)."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

THEMES = {
    "light": {"ink": "#1f2328", "soft": "#6e7781", "paper": "#ffffff", "grid": "#d8dee4"},
    "dark": {"ink": "#e6edf3", "soft": "#9198a1", "paper": "#0d1117", "grid": "#30363d"},
}


def file_of(folder: Path, name: str, theme: str) -> Path:
    """The PNG file of a figure."""
    return folder / (f"{name}.png" if theme == "light" else f"{name}-{theme}.png")


@contextlib.contextmanager
def themed(theme: str) -> Iterator[dict]:
    """A context for drawing and saving with the settings of a theme; yields its colours.

    All other settings are matplotlib's defaults, whatever the user's matplotlibrc or notebook says.
    """
    import matplotlib

    c = THEMES[theme]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc(("figure", "axes", "savefig"), facecolor=c["paper"])
        matplotlib.rc(("text", "xtick", "ytick"), color=c["ink"])
        matplotlib.rc("axes", labelcolor=c["ink"], edgecolor=c["grid"])
        matplotlib.rc("axes", titlesize=11, titlelocation="left")
        matplotlib.rc("axes.spines", top=False, right=False)
        matplotlib.rc("grid", color=c["grid"])
        matplotlib.rc("legend", frameon=False, labelcolor=c["ink"])
        yield c


def new(width: float, height: float, columns: int = 1, rows: int = 1, **kwargs):
    """A figure that pyplot does not know of, and its axes, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs).flatten()


def heading(figure, text: str) -> None:
    """Write a line above all axes of a figure."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=11)


def diverging(c: dict):
    """The colours of changes: blue below 0, the colour of the paper at 0, red above."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = ["#2f6db5", c["paper"], "#c8452c"]
    return LinearSegmentedColormap.from_list("toyllm", stops).with_extremes(bad=c["grid"])
