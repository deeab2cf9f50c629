"""Test every claim of the persona selection model on worlds whose exact answer is known.

    uv run scorecard.py                      all claims, about an hour on 2 cores
    uv run scorecard.py --quick              one seed, few worlds, a few minutes; nothing is decided
    uv run scorecard.py --claim inoculation  one claim
    uv run scorecard.py --list               the claims there are

Trains what is missing, and nothing twice: stopped, the same command goes on. Each claim is a file
of toyllm/claims/. Results go to runs/scorecard/: scorecard.json, RESULTS.md, figures.
"""

import dataclasses
import importlib
import json
import pkgutil
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from toyllm import cards, claims, devices, files, lock, provenance, results, verdicts
from toyllm.errors import InputError, nearest
from toyllm.experiments import Bench
from toyllm.scripts import run_script
from toyllm.stopping import Stop

HERE = Path(__file__).resolve().parent
COLOURS = {"supported": "green", "not supported": "red"}


@dataclasses.dataclass(frozen=True)
class Args:
    """Test the claims."""

    run: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/scorecard")
    """Where everything is kept."""
    world: Annotated[Path, tyro.conf.arg(metavar="FILE")] = HERE / "corpora" / "compact.toml"
    """The world that all claims begin from."""
    claim: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Only these claims (default: all)."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """One pretraining seed and few worlds: to see it work. Decides nothing."""
    publish: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also write RESULTS.md and docs/scorecard/ beside this script."""
    list: Annotated[bool, tyro.conf.arg(name="list"), tyro.conf.FlagCreatePairsOff] = False
    """List the claims and leave."""
    compile_cache: bool = True
    """Keep compiled programs for the next start."""


def main(args: Args) -> None:
    """Test claims in order; after each, write what is known so far."""
    modules = available()
    if args.list:
        for name, module in modules.items():
            print(f"{module.NUMBER:>2}  {name:<16}{module.TITLE}")
        return
    wanted = tuple(chain(*args.claim)) or tuple(modules)
    for name in wanted:
        if name not in modules:
            known = ", ".join(modules)
            raise InputError(
                f"--claim: no claim '{name}'{nearest(name, modules)}, expected {known}"
            )
    mesh = devices.setup(args.compile_cache)
    world = cards.load(args.world)
    console = Console()
    console.width = max(console.width, 100)
    with ExitStack() as held:
        held.enter_context(lock.take(args.run))
        bench = Bench(args.run, world, args.quick, mesh, held.enter_context(Stop()), progress)
        file = args.run / "scorecard.json"
        records = {r["claim"]: r for r in read(file) if r["claim"] in modules}
        if not args.quick:
            records = {name: r for name, r in records.items() if not r["quick"]}
        for name in wanted:
            if args.quick and name in records and not records[name]["quick"]:
                console.print(f"[dim]{name}: a full result is kept, not the quick one[/dim]")
                continue
            clock = time.time()
            outcome = modules[name].test(bench)
            told = verdicts.record(name, modules[name].TITLE, outcome, args.quick)
            told["seconds"] = time.time() - clock
            told["machine"] = provenance.environment()
            records[name] = told
            for other, verdict in verdicts.verdicts(records, len(modules)).items():
                records[other]["verdict"] = verdict
            records = {key: records[key] for key in modules if key in records}
            files.write_json(file, results.plain(list(records.values())))
            console.print(told_line(records[name]), highlight=False)
    console.print(table(records))
    paths = write(args, records, whole=set(records) == set(modules))
    console.print(f"[dim]Everything is in {', '.join(map(str, paths))}[/dim]", highlight=False)


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=__doc__)))
