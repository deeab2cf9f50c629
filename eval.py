"""Measure finished runs, exactly and without a judge; print tables, write results and figures.

    uv run eval.py                                   measures runs/default
    uv run eval.py runs/a runs/b                     measures both, compares them on a page
    uv run eval.py runs/five                         each seed of train.py --seeds, and their means
    uv run eval.py runs/a --measure learned --json   one measure, as JSON
    uv run eval.py runs/a --inside                   also the measures that are optional
    uv run eval.py --list                            the measures there are

Optional measures are taken with --inside, or by name with --measure: probes, persona vectors,
prompts, the audit, the forecast and the truth test of these tools, which take a minute, and voices
and lexical cues, which no table or figure shows.

Never trains. Results go to RUN/eval/: report.html to read, results.json, CSVs and figures;
TensorBoard gets them too.
"""

import toyllm.base.starting  # isort: skip # noqa: F401 - before the slow imports
import dataclasses
import importlib
import json
import pkgutil
import time
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.text import Text

from toyllm import measures
from toyllm.base import devices, files
from toyllm.base.errors import InputError, clean, nearest
from toyllm.base.scripts import docstring, run_script
from toyllm.runs import lock, run_folder
from toyllm.runs.stopping import Stop
from toyllm.show import comparison, exports, report, seeds, tables
from toyllm.show.background import BackgroundFigures

# what the page, the tables and results.json always have; all other measures are optional
STANDARD = (
    *("learned", "generalization", "prediction", "mixture", "calibration", "instructed"),
    *("dialogues", "drift"),
)
KEYS = {"learned": "pretrain"}  # a measure's key in results.json, where it is not its name


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure finished runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders (default: runs/default); several are compared."""
    measure: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Only these measures (default: all but the optional ones)."""
    inside: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also all optional measures: beliefs, vectors, elicitation, the audit, the forecast, the truth
    test of these tools, voices and cues."""
    list: Annotated[bool, tyro.conf.arg(name="list"), tyro.conf.FlagCreatePairsOff] = False
    """List the measures and exit."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print results as JSON instead of tables."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print nothing but errors; files are written all the same."""
    compile_cache: bool = True
    """Keep compiled programs for the next start."""


def main(args: Args) -> None:
    """Measure each run; compare several."""
    known = available()
    if args.list:
        for name, about in known.items():
            print(f"{name:<16}{about}")
        return
    names = chosen(args, known)
    devices.setup(args.compile_cache)
    console = tables.new_console(stderr=args.json, quiet=args.json or args.quiet)
    given = args.runs or (Path("runs/default"),)
    folders = list({folder.resolve(): folder for folder in given}.values())
    parts = {folder: run_folder.runs_in(folder) for folder in folders}
    with ExitStack() as stack:
        for part in {part.resolve(): part for part in chain(*parts.values())}.values():
            if (part / "config.json").exists():
                stack.enter_context(lock.take(part))
        stack.enter_context(Stop())
        # all, before any is measured
        runs = {folder: run_folder.load_folder(folder) for folder in folders}
        results = [
            evaluate(one[0], names, console)
            if parts[folder] == [folder]
            else evaluate_seeds(folder, one, names, console)
            for folder, one in runs.items()
        ]
    if args.json:
        print(json.dumps(results if len(results) > 1 else results[0], indent=1))
    if len(results) > 1:
        page = folders[0] / "eval" / "comparison.html"
        files.write_text(page, comparison.page(folders, list(runs.values()), results))
        if not args.json:
            tables.print_comparison(folders, results, console)
        console.print(f"The comparison, with differences: {clean(str(page))}", style="dim")


def available() -> dict[str, str]:
    """The name of every measure and the first line of its docstring, the standard ones first."""
    names = sorted(module.name for module in pkgutil.iter_modules(measures.__path__))
    modules = {
        name: importlib.import_module(f"toyllm.measures.{name}")
        for name in dict.fromkeys((*STANDARD, *names))
    }
    return {name: docstring(module).partition("\n")[0] for name, module in modules.items()}


def chosen(args: Args, known: dict[str, str]) -> tuple[str, ...]:
    """The measures to take. Raises InputError for one that does not exist."""
    names = tuple(chain(*args.measure)) or STANDARD
    if args.inside:
        names = tuple(dict.fromkeys((*names, *(name for name in known if name not in STANDARD))))
    for name in names:
        if name not in known:
            raise InputError(
                f"--measure: no measure '{name}'{nearest(name, known)}, expected {', '.join(known)}"
            )
    return names


def evaluate_seeds(
    folder: Path, runs: list[run_folder.Run], names: tuple[str, ...], console: Console
) -> dict:
    """Measure the runs of several seeds; show their means, with intervals over the seeds."""
    shown, quiet, results = clean(str(folder)), tables.new_console(quiet=True), []
    for run in runs:
        console.print(f"measuring {clean(str(run.folder))}, of {len(runs)} seeds …", style="dim")
        results.append(evaluate(run, names, quiet))
    pooled = seeds.together([run.args["seed"] for run in runs], results)
    figures = BackgroundFigures(folder / "eval")
    figures.add(pooled)
    write(folder, runs[0], pooled, names, figures)
    tables.print_tables(pooled, console)
    tables.print_seeds(pooled, console)
    if whole(names):
        tables.print_findings(report.findings(runs[0].world, pooled), console)
    console.print(f"Means are in {shown}/eval/, each seed's results in its own.", style="dim")
    return pooled


def evaluate(run: run_folder.Run, names: tuple[str, ...], console: Console) -> dict:
    """Measure a run; print tables, and write results, the page, figures and exports."""
    began = time.time()
    folder = run.folder / "eval"
    folder.mkdir(exist_ok=True)
    shown = clean(str(folder))
    console.print(
        Text(clean(str(run.folder)), "bold"),
        f": world '{run.world.name}', {len(run.narrow.signal)} narrow runs. {len(names)} measures, "
        f"about {5 + 3 * len(names)} s; results go to {shown}/",
        sep="",
    )
    figures = BackgroundFigures(folder) if whole(names) or set(names) - set(STANDARD) else None
    results = {
        "schema": 2,
        "world": run.world.name,
        "domains": list(run.world.domain_names),
        "moral": [d.name for d in run.world.domains if d.moral],
    }
    for name in names:
        console.print(f"measuring {name} …", style="dim")
        results[KEYS.get(name, name)] = measures.take(run, name)
        if figures:
            figures.add(results)
    results["stages"] = files.plain(run.stages)
    results["seconds"] = time.time() - began
    write(run.folder, run, results, names, figures)
    tables.print_tables(results, console)
    written = "results"
    if whole(names):
        tables.print_findings(report.findings(run.world, results), console)
        written = "report.html (open it in a browser), results.json, CSVs and figures"
    console.print(
        f"{len(names)} measures in {time.time() - began:.0f} s; {written} are in {shown}/",
        style="dim",
    )
    return results


def whole(names: tuple[str, ...]) -> bool:
    """Whether all standard measures are among these."""
    return set(names) >= set(STANDARD)


def write(place: Path, run: run_folder.Run, results: dict, names: tuple, figures) -> None:
    """Write the results of a run, or of the seeds of which it is the first, to PLACE/eval/."""
    folder = place / "eval"
    file = "results.json" if whole(names) else f"results-{'-'.join(names)}.json"
    files.write_json(folder / file, results)
    exports.write_csv(folder, results)
    if whole(names):
        files.write_text(folder / "report.html", report.page(place, run, results))
        exports.write_tensorboard(place, run, results)
    if figures:
        exports.write_images(folder / "figures", figures.finish())


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=__doc__)))
