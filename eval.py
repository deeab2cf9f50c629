"""Measure finished runs, exactly and without a judge; print tables, write results and figures.

    uv run eval.py                                   measures runs/default
    uv run eval.py runs/a runs/b                     measures both and compares them
    uv run eval.py runs/a --measure learned --json   one measure, as JSON
    uv run eval.py runs/a --inside                   all: probes, vectors, prompts, their truth
    uv run eval.py --list                            the measures there are

Never trains. Results go to RUN/eval/: report.html to read, results.json, CSVs and figures;
TensorBoard gets them too.
"""

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
from toyllm.runs import lock, provenance, run_folder
from toyllm.runs.stopping import Stop
from toyllm.runs.tensorboard import SummaryWriter
from toyllm.show import drawings, report, tables

# looks inside, and what stands on them: measured by name or with --inside, for they take a minute
INSIDE = ("audit", "beliefs", "vectors", "elicitation", "truth")
ORDER = (
    *("learned", "generalization", "prediction", "mixture", "calibration", "instructed"),
    "dialogues",
)
KEYS = {"learned": "pretrain"}  # a measure's key in results.json, where it is not its name


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure finished runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders (default: runs/default); several are compared."""
    measure: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Only these measures (default: all but those that look inside)."""
    inside: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also beliefs, vectors, elicitation, the audit and the truth test of the tools."""
    list: Annotated[bool, tyro.conf.arg(name="list"), tyro.conf.FlagCreatePairsOff] = False
    """List the measures and leave."""
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
    wanted = tuple(chain(*args.measure)) or tuple(name for name in known if name not in INSIDE)
    wanted = tuple(dict.fromkeys((*wanted, *INSIDE))) if args.inside else wanted
    for name in wanted:
        if name not in known:
            raise InputError(
                f"--measure: no measure '{name}'{nearest(name, known)}, expected {', '.join(known)}"
            )
    devices.setup(args.compile_cache)
    console = tables.new_console(stderr=args.json, quiet=args.json or args.quiet)
    named = args.runs or (Path("runs/default"),)
    folders = list({folder.resolve(): folder for folder in named}.values())
    with ExitStack() as held:
        for folder in folders:
            if (folder / "config.json").exists():
                held.enter_context(lock.take(folder))
        held.enter_context(Stop())
        loaded = [run_folder.load_run(folder) for folder in folders]  # all, before any is measured
        results = [evaluate(run, wanted, console) for run in loaded]
    if args.json:
        print(json.dumps(results if len(results) > 1 else results[0], indent=1))
    elif len(results) > 1:
        tables.compare(folders, results, console)


def available() -> dict[str, str]:
    """Every file of toyllm/measures and the first line of its docstring, main ones first."""
    names = [m.name for m in pkgutil.iter_modules(measures.__path__)]
    names.sort(key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    modules = {name: importlib.import_module(f"toyllm.measures.{name}") for name in names}
    return {name: docstring(module).partition("\n")[0] for name, module in modules.items()}


def evaluate(run: run_folder.Run, names: tuple[str, ...], console: Console) -> dict:
    """Take the measures of a run; write, print and draw them."""
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
    results = {
        "schema": 1,
        "world": run.world.name,
        "domains": list(run.world.domain_names),
        "moral": [d.name for d in run.world.domains if d.moral],
    }
    whole = set(names) >= set(ORDER)
    artists = drawings.Artists(folder) if whole or set(names) & set(INSIDE) else None
    for name in names:
        console.print(f"measuring {name} …", style="dim")
        results[KEYS.get(name, name)] = files.plain(measures.take(run, name))
        if artists:
            artists.give(results)
    results["stages"] = files.plain(run.stages)
    results["seconds"] = time.time() - began
    files.write_json(
        folder / ("results.json" if whole else f"results-{'-'.join(names)}.json"), results
    )
    write_csv(folder, results)
    if whole:
        files.write_text(folder / "report.html", write_report(run, results))
    pictures = artists.finish() if artists else {}
    if whole:
        write_board(run, results)
    if pictures:
        with SummaryWriter(run.folder / "eval" / "figures") as writer:
            for name, file in pictures.items():
                writer.image(0, f"figures/{name}", file.read_bytes())
    tables.print_tables(run, results, console)
    made = (
        "report.html (open it in a browser), results.json, CSVs and figures" if whole else "results"
    )
    console.print(
        f"{len(names)} measures in {time.time() - began:.0f} s; {made} are in {shown}/",
        style="dim",
    )
    return results


def write_report(run: run_folder.Run, results: dict) -> str:
    """The page that people read."""
    saved = provenance.read_config(run.folder)
    about = {
        "description": run.world.description,
        "args": {key: value for key, value in run.args.items() if key != "run"},
        "environment": saved["environments"][-1] if saved["environments"] else {},
        "command": run_folder.command_of(saved),
    }
    return report.page(run.folder.resolve().name, about, results)


def write_csv(folder: Path, results: dict) -> None:
    """The matrix as a long table, for other tools."""
    if "generalization" not in results:
        return
    lines = ["start,signal,read_at,domain,moral,em_before,em_after,change,coherence_after"]
    for start, block in results["generalization"].items():
        for read_at, part in (("matched", block), ("end", block["final"])):
            for name, after in part["em_after"].items():
                for domain, value in (after or {}).items():
                    before = block["em_before"][domain]
                    coherence = part["coherence_after"][name][domain]
                    moral = domain in results["moral"]
                    lines.append(
                        f"{start},{name},{read_at},{domain},{moral},{before:.6f},"
                        f"{value:.6f},{value - before:.6f},{coherence:.6f}"
                    )
    files.write_text(folder / "generalization.csv", "\n".join(lines) + "\n")
    if "mixture" not in results:
        return
    lines = ["start,signal,group,weight,low,high"]
    for start in ("pretrain", "align"):
        part = results["mixture"].get(start)
        if not part:
            continue
        rows = {"before": (part["before"], part["before_range"])} | {
            name: (part["after"][name], part["after_range"][name]) for name in part["after"]
        }
        for name, (weights, spans) in rows.items():
            for group, weight in weights.items():
                low, high = spans[group]
                lines.append(f"{start},{name},{group},{weight:.6f},{low:.6f},{high:.6f}")
    files.write_text(folder / "mixture.csv", "\n".join(lines) + "\n")


def write_board(run: run_folder.Run, results: dict) -> None:
    """TensorBoard: one HParams row with the run's metrics, and mixtures."""
    learned, blocks = results["pretrain"], results["generalization"]
    metrics = {
        f"metrics/{key}": learned[key]
        for key in ("excess", "captured", "assistant_error", "named_error")
    }
    for start, block in blocks.items():
        for name, value in block["spread"].items():
            metrics[f"spread_from_{start}/{name}"] = value
    shared = results["prediction"].get("shared", {})
    metrics |= {f"metrics/r2_{name}": value["r2"] for name, value in shared.items()}
    with SummaryWriter(run.folder / "eval") as writer:
        chosen = {k: v for k, v in run.args.items() if k not in provenance.ANY}
        writer.hparams(run.folder, chosen)
        writer.scalars(0, metrics)
        for step, (key, after) in enumerate(mixtures(results)):
            writer.scalars(step, {f"mixture_from_{key}/{group}": w for group, w in after.items()})


def mixtures(results: dict):
    """(start, weights) before and after each signal, in order."""
    for start in ("pretrain", "align"):
        if part := results["mixture"].get(start):
            yield start, part["before"]
            yield from ((start, weights) for weights in part["after"].values())


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=__doc__)))
