"""Several runs on one page that needs no other file: eval/comparison.html of the first.

Rows of the same signal stand together, each run's and then the differences to the first run. Where
runs have several pretraining seeds, differences have 95% intervals over these.
"""

import math
from pathlib import Path
from typing import NamedTuple

from toyllm.runs import provenance
from toyllm.runs.run_folder import Run
from toyllm.show import report, views
from toyllm.show.views import number
from toyllm.world.quantities import half_width_of_difference

# flags → what they are in a model's configuration, which imported runs have too
SIZES = {"context": "context", "width": "D", "layers": "L", "heads": "H", "mlp": "F"}


class Cell(NamedTuple):
    """A change of EM, or a difference of two, and half of its 95% interval over seeds."""

    value: float | None
    half: float | None
    trained: bool


class Line(NamedTuple):
    """One signal in one run, or the difference of two runs."""

    name: str
    cells: list[Cell]
    spread: str
    difference: bool = False


class Group(NamedTuple):
    """All lines of a signal."""

    signal: str
    lines: list[Line]


class Figure(NamedTuple):
    """A headline figure of each run, and of each but the first minus the first."""

    name: str
    values: list[str]
    differences: list[str]


def page(folders: list[Path], runs: list[list[Run]], results: list[dict]) -> str:
    """The page of several runs, or folders of seeds; runs: those in each folder."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    env = report.environment()
    env.filters["number"] = number
    return env.get_template("comparison.html").render(
        names=names,
        starts=views.STARTS,
        intervals=sum("seeds" in each for each in results) > 1,
        settings=settings([group[0] for group in runs]),
        blocks=blocks(names, results),
        figures=figures(results),
    )


def settings(runs: list[Run]) -> list[tuple[str, list]]:
    """The settings in which runs differ, with the value of each run."""
    each = [
        {"world": f"{run.world.name} ({run.world.digest[:8]})"}
        | {key: value for key, value in run.args.items() if key not in provenance.ANY}
        | {flag: getattr(run.lm.config, size) for flag, size in SIZES.items()}
        for run in runs
    ]
    keys = dict.fromkeys(key for one in each for key in one if key not in provenance.OF_SEED)
    rows = [(key, [one.get(key) for one in each]) for key in keys]
    return [(key, values) for key, values in rows if any(x != values[0] for x in values)]


def blocks(names: list[str], results: list[dict]) -> list[tuple[str, list[str], list[Group]]]:
    """(start, domains, the lines of each signal): what all runs trained from the same start."""
    domains = [d for d in results[0]["domains"] if all(d in each["domains"] for each in results)]
    found = []
    for start in views.STARTS:
        tables = [
            {row.signal: row for m in views.matrices(each) if m.start == start for row in m.rows}
            for each in results
        ]
        groups = []
        for name in (n for n in tables[0] if all(n in table for table in tables)):
            figure = f"spread_from_{start}/{name}"
            spreads = [
                table[name].outcome + plus_minus(half_of_interval(each, figure), 3)
                for table, each in zip(tables, results, strict=True)
            ]
            apart = [difference(each, results[0], figure, 3) for each in results[1:]]
            rows = [table[name] for table in tables]
            groups.append(Group(name, lines(names, domains, rows, spreads, apart)))
        if groups:
            found.append((start, domains, groups))
    return found


def lines(
    names: list[str],
    domains: list[str],
    rows: list[views.Row],
    spreads: list[str],
    apart: list[str],
) -> list[Line]:
    """The lines of one signal, from its row in each run; apart: differences of its spread."""
    by_domain = [{cell.domain: cell for cell in row.cells} for row in rows]  # worlds may differ
    cells = [
        [Cell(c.change, c.half_width, c.trained) for c in map(each.get, domains)]
        for each in by_domain
    ]
    shown = [Line(*each) for each in zip(names, cells, spreads, strict=True)]
    for name, mine, spread in zip(names[1:], cells[1:], apart, strict=True):
        minus = [difference_of_cells(*pair) for pair in zip(mine, cells[0], strict=True)]
        shown.append(Line(f"{name} − {names[0]}", minus, spread, difference=True))
    return shown


def difference_of_cells(mine: Cell, first: Cell) -> Cell:
    """Their difference; the variances of independent means add up."""
    if mine.value is None or first.value is None:
        return Cell(None, None, mine.trained)
    known = mine.half is not None and first.half is not None
    half = math.hypot(mine.half, first.half) if known else None
    return Cell(mine.value - first.value, half, mine.trained)


def figures(results: list[dict]) -> list[Figure]:
    """All headline figures, under their names in TensorBoard."""
    columns = [views.summary(each) for each in results]
    found = []
    for name in dict.fromkeys(name for column in columns for name in column):
        values = [
            number(column.get(name), 4) + plus_minus(half_of_interval(each, name), 4)
            for each, column in zip(results, columns, strict=True)
        ]
        apart = [difference(each, results[0], name) for each in results[1:]]
        found.append(Figure(name, values, apart))
    return found


def difference(mine: dict, first: dict, name: str, places: int = 4) -> str:
    """A figure minus that of the first run; ± half of its 95% interval where both have seeds."""
    x, y = (
        each["figures"].get(name, {}).get("values", [None])
        if "figures" in each
        else [views.summary(each).get(name)]
        for each in (mine, first)
    )
    if None in (*x, *y):
        return "–"
    change = sum(x) / len(x) - sum(y) / len(y)
    return number(change, places, True) + plus_minus(half_width_of_difference(x, y), places)


def half_of_interval(results: dict, name: str) -> float | None:
    """Half the width of a figure's interval over seeds, where it has one."""
    interval = results.get("figures", {}).get(name, {}).get("interval")
    return interval and (interval[1] - interval[0]) / 2


def plus_minus(half: float | None, places: int) -> str:
    """The ± behind a number, where it has one."""
    return "" if half is None else f" ±{number(half, places)}"
