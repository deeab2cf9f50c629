"""A run's results as one HTML page that needs no other file: eval/report.html.

report.html, a Jinja template, formats the views of a run's results and escapes what they contain.
This file adds what only the page has: which spreads its findings name, and axes.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from toyllm.posttrain.signals import plain
from toyllm.runs import provenance, run_folder
from toyllm.show import views
from toyllm.show.views import STARTS, number
from toyllm.world.quantities import MATCHED

WIDTH, HEIGHT = 320, 230  # of a drawing, inside its axes


def environment():
    """Jinja for the templates beside this file; what they show is escaped."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(folder: Path, run: run_folder.Run, results: dict) -> str:
    """The whole page of a run's folder, or of the folder of seeds of which `run` is the first."""
    env = environment()
    env.filters |= {"number": number, "percent": "{:.0%}".format}
    saved = provenance.read_config(run.folder)
    predictions, curves = [], []
    for name, points in views.predictions(results).items():
        # both axes have the same range: where prediction and measurement agree is the diagonal
        values = [0.0, 0.05, *(x for p in points for x in (p.predicted, p.measured))]
        labels = "predicted change", "measured change"
        predictions.append((name, points, *axes(labels, values, values)))
    for start, lines in views.curves(results).items():
        spread = [0.0, 0.1, *(y for points in lines.values() for _, y in points)]
        labels = "share of preferred answers, trained domain", "spread"
        curves.append((start, lines, *axes(labels, [0, 1], spread)))
    return env.get_template("report.html").render(
        name=folder.resolve().name,
        world=run.world,
        arguments={key: value for key, value in run.args.items() if key != "run"},
        environment=saved["environments"][-1] if saved["environments"] else {},
        command=run_folder.command_of(saved),
        starts=STARTS,
        results=results,
        spreads=spreads(results),
        learned=views.learned(results),
        seeds=results.get("seeds", []),
        headlines=headlines(results),
        seed_page=lambda seed: f"../{run_folder.seed_name(seed)}/eval/report.html",
        readings=views.READINGS,
        matrices=views.matrices(results),
        every_matrix=views.every_matrix(results),
        mixtures=views.mixtures(results),
        predictions=predictions,
        signals=list(results.get("prediction", {}).get("measured", {})),
        curves=curves,
        matched=MATCHED,
        zip=zip,
    )


def spreads(results: dict) -> list[tuple[str, str | None, list[tuple[str, str]]]]:
    """(start, the signal that spreads furthest, [signals with an instruction, and without])."""
    shown = []
    for start, block in results["generalization"].items():
        known = {name: spread for name, spread in block["spread"].items() if spread is not None}
        uninstructed = [name for name in known if plain(name) == name]
        furthest = max(uninstructed, key=lambda name: abs(known[name]), default=None)
        pairs = [(n, plain(n)) for n in known if plain(n) != n and plain(n) in known]
        shown.append((start, furthest, pairs))
    return shown


def headlines(results: dict) -> list[tuple[str, list[views.Headline], "Axis | None"]]:
    """(title, figures over seeds, their axis); None where they differ in their units.

    Groups of both starts have one axis, so that they can be compared.
    """
    groups = views.headlines(results)
    shown = []
    for title, lines in groups.items():
        kind, _, start = title.partition(", from ")
        alike = [
            line for other in groups if other.startswith(f"{kind}, from ") for line in groups[other]
        ]
        numbers = [[*line.values, *(line.interval or ())] for line in alike]
        places = [0.0, 0.1, *(x for part in numbers for x in part if x is not None)]
        shown.append((title, lines, Axis(min(places), max(places), 180, "") if start else None))
    return shown


@dataclass(frozen=True)
class Axis:
    """An axis of a drawing, `length` long; a vertical one begins with its high end, at the top."""

    first: float
    last: float
    length: int
    label: str

    def place(self, value: float) -> float:
        """The distance of a value from the axis' beginning."""
        return round(self.length * (value - self.first) / (self.last - self.first), 1)

    @property
    def ticks(self) -> list[float]:
        """A few round numbers along the axis."""
        low, high = sorted((self.first, self.last))
        step = next(s for s in (0.1, 0.2, 0.5, 1.0, 1e9) if (high - low) / s <= 6)
        places = range(math.ceil(low / step), math.floor(high / step) + 1)
        return [round(k * step, 6) for k in places]


def axes(labels: tuple[str, str], x: list[float], y: list[float]) -> tuple[Axis, Axis]:
    """The axes of a drawing in which all of these values have a place."""
    return Axis(min(x), max(x), WIDTH, labels[0]), Axis(max(y), min(y), HEIGHT, labels[1])
