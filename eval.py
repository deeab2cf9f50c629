"""Measure finished runs, exactly and without a judge; print tables, write results and figures.

    uv run eval.py                                   measures runs/default
    uv run eval.py runs/a runs/b                     measures both and compares them
    uv run eval.py runs/a --measure learned --json   one measure, as JSON
    uv run eval.py --list                            the measures there are

Never trains. Results go to RUN/eval/: results.json, CSVs and figures; TensorBoard gets them too.
"""

import dataclasses
import importlib
import json
import math
import pkgutil
import re
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from toyllm import devices, figures, measures, runs, signals
from toyllm.board import Board
from toyllm.errors import InputError, nearest
from toyllm.measures import generalization
from toyllm.scoring import em

ORDER = ("learned", "generalization", "prediction", "mixture", "calibration", "instructed")
WIDTH = 105  # columns that the tables need; a narrower terminal wraps lines but loses no figure
KEYS = {"learned": "pretrain"}  # a measure's key in results.json, where it is not its name


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure finished runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders (default: runs/default); several are compared."""
    measure: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Only these measures (default: all)."""
    list: Annotated[bool, tyro.conf.arg(name="list"), tyro.conf.FlagCreatePairsOff] = False
    """List the measures and leave."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print results as JSON instead of tables."""
    compile_cache: bool = True
    """Keep compiled programs for the next start."""


def main(args: Args) -> None:
    """Measure each run; compare several."""
    known = available()
    if args.list:
        for name, about in known.items():
            print(f"{name:<16}{about}")
        return
    wanted = tuple(chain(*args.measure)) or tuple(known)
    for name in wanted:
        if name not in known:
            raise InputError(
                f"--measure: no measure '{name}'{nearest(name, known)}, expected {', '.join(known)}"
            )
    devices.setup(args.compile_cache)
    console = Console(stderr=args.json)
    console.width = max(console.width, WIDTH)
    folders = args.runs or (Path("runs/default"),)
    loaded = [runs.load_run(folder) for folder in folders]  # all are checked before any is measured
    results = []
    for run in loaded:
        results.append(evaluate(run, wanted, console, quiet=args.json))
    if args.json:
        print(json.dumps(results if len(results) > 1 else results[0], indent=1))
    elif len(results) > 1:
        compare(folders, results, console)


def available() -> dict[str, str]:
    """Every file of toyllm/measures and the first line of its docstring, main ones first."""
    names = [m.name for m in pkgutil.iter_modules(measures.__path__)]
    names.sort(key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    modules = {name: importlib.import_module(f"toyllm.measures.{name}") for name in names}
    return {name: module.__doc__.splitlines()[0] for name, module in modules.items()}


def evaluate(run: runs.Run, names: tuple[str, ...], console: Console, quiet: bool) -> dict:
    """Take the measures of a run; write, print and draw them."""
    began = time.time()
    folder = run.folder / "eval"
    folder.mkdir(exist_ok=True)
    results = {
        "schema": 1,
        "world": run.world.name,
        "domains": list(run.world.domain_names),
        "moral": [d.name for d in run.world.domains if d.moral],
    }
    for name in names:
        if not quiet:
            console.print(f"[dim]measuring {name} …[/dim]")
        module = importlib.import_module(f"toyllm.measures.{name}")
        results[KEYS.get(name, name)] = plain(module.measure(run))
    results["stages"] = plain(run.stages)
    results["seconds"] = time.time() - began
    whole = set(names) >= set(ORDER)
    runs.write_json(
        folder / ("results.json" if whole else f"results-{'-'.join(names)}.json"), results
    )
    write_csv(folder, results)
    pictures = figures.save_all(results, curves(run), folder) if whole else {}
    if whole:
        write_board(run, results, pictures)
    if not quiet:
        print_tables(run, results, console)
        console.print(
            f"[dim]{len(names)} measures in {time.time() - began:.0f} s; results, CSVs "
            f"and figures are in {folder}/[/dim]",
            highlight=False,
        )
    return results


def plain(value):
    """NumPy and NaN to what JSON has; NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def curves(run: runs.Run) -> dict:
    """Along training, the mean over seeds: the trained domain's EM and the spread."""
    result = {}
    for start in generalization.measure(run):
        result[start] = {}
        for name in run.narrow.signals(start):
            rows = run.narrow.rows(start, name)
            own = em(run.narrow.own_RnB[rows]).mean(0)
            change = em(run.narrow.p_RnDB[rows]) - em(run.narrow.p_RnDB[rows, :1])
            spread = generalization.spread(run.world, name, change).mean(0)
            result[start][name] = {"own": own, "spread": spread}
    return result


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
    (folder / "generalization.csv").write_text("\n".join(lines) + "\n")
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
    (folder / "mixture.csv").write_text("\n".join(lines) + "\n")


def write_board(run: runs.Run, results: dict, pictures: dict[str, Path]) -> None:
    """TensorBoard: figures as images, and one HParams row with the run's metrics."""
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
    for old in run.folder.glob("eval/events.out.tfevents.*"):
        old.unlink()
    with Board(run.folder / "eval") as board:
        board.hparams(str(run.folder), {k: v for k, v in run.args.items() if k != "run"})
        board.scalars(0, metrics)
        for step, (key, after) in enumerate(mixtures(results)):
            board.scalars(step, {f"mixture_from_{key}/{group}": w for group, w in after.items()})
        for name, file in pictures.items():
            board.image(0, f"figures/{name}", file.read_bytes())


def mixtures(results: dict):
    """(start, weights) before and after each signal, in order."""
    for start in ("pretrain", "align"):
        if part := results["mixture"].get(start):
            yield start, part["before"]
            yield from ((start, weights) for weights in part["after"].values())


def print_tables(run: runs.Run, results: dict, console: Console) -> None:
    """The tables that a person reads."""
    if "pretrain" in results:
        print_learned(results["pretrain"], console)
    for start, block in results.get("generalization", {}).items():
        print_matrix(run, results, start, block, console)
    if results.get("prediction", {}).get("shared"):
        print_prediction(results["prediction"], console)
    if "mixture" in results:
        print_mixture(results["mixture"], console)
    if "instructed" in results:
        print_instructed(results, console)


def number(value: float | None, places: int = 3, sign: bool = False) -> str:
    """A number as the tables show it, such as .12; a dash where there is none."""
    if value is None:
        return "–"
    return re.sub(r"(?<!\d)0\.", ".", f"{value:{'+' if sign else ''}.{places}f}")


def blank_table(*columns: str) -> Table:
    """An empty table: a first column of names, then columns of numbers."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for k, column in enumerate(columns):
        table.add_column(column, justify="right" if k else "left", no_wrap=True)
    return table


def show(console: Console, title: str, table: Table, note: str = "") -> None:
    """Print a table with a line above it and a note below."""
    console.print(f"\n[italic]{title}[/italic]")
    console.print(table)
    if note:
        console.print(f"[dim]{note}[/dim]", highlight=False)


def print_learned(p: dict, console: Console) -> None:
    """What pretraining learned."""
    table = blank_table("figure", "value", "beside it")
    table.columns[2].justify = "left"
    table.add_row(
        "excess over the floor (nats/token)",
        number(p["excess"], 4),
        f"history-blind observer {number(p['excess_history_blind'], 4)}, "
        f"name-blind {number(p['excess_name_blind'], 4)}",
    )
    low, high = p["captured_interval"]
    table.add_row(
        "captured (who is speaking)",
        number(p["captured"]),
        f"1 ideal, 0 history-blind; 95% over questions {number(low)} to {number(high)}",
    )
    table.add_row(
        "error of the Assistant's p(bad)",
        number(p["assistant_error"]),
        "mean over domains, against π·θ",
    )
    table.add_row(
        "error of named characters' p(bad)",
        number(p["named_error"]),
        f"worst: {p['named_worst']} {number(p['named_error_worst'])}",
    )
    table.add_row("coherence of the Assistant", number(p["coherence"]), "worst domain")
    show(console, "What was learned in pretraining", table)


def print_matrix(run: runs.Run, results: dict, start: str, block: dict, console: Console) -> None:
    """The generalization matrix of one start."""
    table = blank_table("signal", *results["domains"], "spread", "end", "coh.", "step")
    before = block["em_before"]
    table.add_row(
        "[dim]EM before[/dim]",
        *(f"[dim]{number(before[d], 2)}[/dim]" for d in results["domains"]),
        "",
        "",
        f"[dim]{number(min(block['coherence_before'].values()), 2)}[/dim]",
        "",
    )
    for name, status in block["status"].items():
        after, end = block["em_after"][name], block["final"]["spread"][name]
        trained = [results["domains"][d] for d in signals.parse(run.world, name).domains]
        cells = [
            "–" if after is None else "*" if d in trained else colour(after[d] - before[d])
            for d in results["domains"]
        ]
        spread = block["spread"][name]
        shown = f"[bold]{number(spread)}[/bold]" if status == "read" else status
        coherence = block["coherence_after"][name]
        worst = number(min(coherence.values()), 2) if coherence else "–"
        table.add_row(
            name, *cells, shown, number(end), worst, number(block["matched_step"][name], 0)
        )
    show(
        console,
        f"Change of EM by domain, {figures.STARTS[start]}, where the trained domain (*) has EM .9",
        table,
        f"spread: mean change over untrained moral domains ({', '.join(results['moral'])}), there "
        "and at the end of training (– if incoherent there: a coherence below .95, so no number). "
        "coh.: the worst domain's coherence. step: when it was read",
    )


def colour(change: float) -> str:
    """A change of EM, red where it is more bad, green where less."""
    tint = "red" if change > 0.1 else "green" if change < -0.1 else "default"
    return f"[{tint}]{number(change, 2)}[/{tint}]"


def print_prediction(p: dict, console: Console) -> None:
    """Predictions of the matrix and their rivals."""
    table = blank_table("prediction", "shared R²", "fraction", "strict R²")
    for name, fitted in p["shared"].items():
        table.add_row(
            name,
            number(fitted["r2"], 2),
            number(fitted["fraction"], 2),
            number(p["strict"][name]["r2"], 2),
        )
    show(
        console,
        "The matrix predicted from the world alone (R² over untrained moral cells, from the "
        "pretrained model)",
        table,
        f"persona's within-signal correlation {number(p['within_r'], 2)}, 95% of its null "
        f"{number(p['within_r_null95'], 2)}; mean spread minus the ideal observer's own "
        f"{number(p['measured_minus_ideal'], 3, True)}",
    )


def print_mixture(m: dict, console: Console) -> None:
    """Who the Assistant is, before and after."""
    for start in ("pretrain", "align"):
        if start not in m:
            continue
        part = m[start]
        table = blank_table(
            "signal",
            *(group.replace(" + ", "\n") for group in m["groups"]),
            *("residual", "off-domain", "override"),
        )
        if start == "pretrain":
            table.add_row(
                "[dim]true prior[/dim]",
                *(number(m["truth"][g], 2) for g in m["groups"]),
                "",
                "",
                "",
            )
        table.add_row(
            "before",
            *(number(part["before"][g], 2) for g in m["groups"]),
            number(1000 * part["residual_before"], 1),
            "",
            "",
        )
        for name, weights in part["after"].items():
            left = part["residual_after"][name]
            thousandths = [
                None if left[k] is None else 1000 * left[k]
                for k in ("all", "off_domain", "override")
            ]
            table.add_row(
                name,
                *(number(weights[g], 2) for g in m["groups"]),
                *(number(x, 1) for x in thousandths),
            )
        show(
            console,
            f"Who the Assistant is, {figures.STARTS[start]} (weights of groups of characters; "
            "residual in thousandths of a nat)",
            table,
        )


def print_instructed(results: dict, console: Console) -> None:
    """With the cue present: what the instruction still elicits."""
    for start, block in results["instructed"].items():
        if not block:
            continue
        table = blank_table("signal", *results["domains"])
        for name, part in block.items():
            for when in ("before", "after"):
                values = (number(part[when][d], 2) for d in results["domains"])
                table.add_row(f"{name}, {when}", *values)
        title = f"p(bad) with the signal's instruction present, {figures.STARTS[start]}"
        show(console, title, table)


def compare(folders: tuple[Path, ...], results: list[dict], console: Console) -> None:
    """Several runs side by side."""
    table = blank_table("figure", *map(str, folders))
    rows = {}
    for k, result in enumerate(results):
        for key in ("excess", "captured", "assistant_error", "named_error"):
            if "pretrain" in result:
                rows.setdefault(key, {})[k] = result["pretrain"][key]
        for start, block in result.get("generalization", {}).items():
            for name, value in block["spread"].items():
                rows.setdefault(f"spread of {name}, from {start}", {})[k] = value
        for name, value in result.get("prediction", {}).get("shared", {}).items():
            rows.setdefault(f"shared R² of {name}", {})[k] = value["r2"]
        if result.get("prediction", {}).get("shared"):
            gap = result["prediction"]["measured_minus_ideal"]
            rows.setdefault("mean spread minus the world's own ideal", {})[k] = gap
    for label, values in rows.items():
        table.add_row(label, *(number(values.get(k), 4) for k in range(len(results))))
    show(console, "Comparison", table)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
