"""A run's results as one HTML page that needs no other file: eval/report.html.

report.html, a Jinja template, formats the views of a run's results and escapes what they contain.
This file adds findings in sentences, which the terminal shows too, and axes.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from toyllm.posttrain.signals import parse, plain
from toyllm.runs import provenance, run_folder
from toyllm.show import views
from toyllm.show.views import STARTS, number
from toyllm.world.quantities import MATCHED
from toyllm.world.world import World

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
        findings=findings(run.world, results),
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


def findings(world: World, results: dict) -> list[str]:
    """What was found, in sentences, from the results of all standard measures."""
    captured, excess = results["pretrain"]["captured"], number(results["pretrain"]["excess"], 4)
    if captured is None:
        found = ["In this world a dialogue's history does not tell who its speaker is."]
    elif captured <= 0:
        found = ["The model has not learned who is speaking, so its other results mean little."]
    else:
        how = "well" if captured > 0.8 else "in part" if captured > 0.5 else "only a little"
        found = [
            f"The model learned {how} who is speaking: it uses {captured:.0%} of what a dialogue's "
            f"history tells about its speaker (excess loss {excess} nats a token)."
        ]
    for start, block in results["generalization"].items():
        known = {name: x for name, x in block["spread"].items() if x is not None}
        where = STARTS[start].capitalize()

        def spread(name: str, block=block) -> str:
            ends = [number(x, 3, True) for x in block["spread_ci"][name] or ()]
            shown = number(block["spread"][name], 3, True)
            if not ends or "seeds" not in results:
                return shown
            return f"{shown} (95% over seeds {ends[0]} to {ends[1]})"

        drawn = [name for name in known if plain(name) == name]
        if drawn:
            name = max(drawn, key=lambda name: abs(known[name]))
            equal = block["equal"]["spread"][name]
            also = "" if equal is None else f"; after equal training by {number(equal, 3, True)}"
            found.append(
                f"{where}, {name} spreads furthest: trained until the answers that it prefers have "
                f"a share of {MATCHED:.0%}, it changes the share of bad answers in moral domains "
                f"that were not trained by {spread(name)} on average{also}."
            )
        for name in (name for name in known if plain(name) != name and plain(name) in known):
            if "#" in name:
                continue  # pairs of a file, of which some may have another instruction or none
            added = world.instructions[parse(world, name).instruction]
            nothing = ", which means nothing," if added.toward == "none" else ""
            found.append(
                f"{where}, with “{added.text}”{nothing} in every prompt of training ({name}) it "
                f"spreads by {spread(name)}, without ({plain(name)}) by {spread(plain(name))}."
            )
    shared = results.get("prediction", {}).get("shared", {})
    r2 = {name: each["r2"] for name, each in shared.items() if each["r2"] is not None}
    if (mine := r2.pop("persona", None)) is not None and r2:
        best = max(r2, key=r2.get)
        rivals = f"The best rival, {best}, has {number(r2[best], 2)}"
        if best != "constant" and "constant" in r2:
            rivals += f", and a constant {number(r2['constant'], 2)}"
        predicts = "predicts" if mine > 0 else "does not predict"
        found.append(
            f"Reading a signal as evidence about who the Assistant is {predicts} where it spreads: "
            f"R² is {number(mine, 2)} (0: no better than no change). {rivals}."
        )
        if mine > 0:
            found.append(
                f"In that prediction {shared['persona']['fraction']:.0%} of the trained domain's "
                "move is a change of who the Assistant is, and the rest a local edit."
            )
    return found


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
