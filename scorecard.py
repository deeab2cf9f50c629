"""Test every claim of the persona selection model on worlds whose exact answer is known.

    uv run scorecard.py                      all claims, two to three hours on 2 cores
    uv run scorecard.py --quick              one seed, few worlds, minutes; nothing is decided
    uv run scorecard.py --pilot --run runs/pilot   the seeds that say how many units a claim needs
    uv run scorecard.py --claim inoculation  one claim
    uv run scorecard.py --list               the claims there are

Trains what is missing, and nothing twice: stopped, the same command goes on. Each claim is a file
of claims/. Results go to runs/scorecard/: scorecard.json, RESULTS.md, facts.md, figures/.
"""

import toyllm.base.starting  # isort: skip # noqa: F401 - before the slow imports
import dataclasses
import time
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Annotated

import tyro
from rich.console import Console
from rich.text import Text
from tqdm import tqdm

from claims.lab import facts, page, power, records, verdicts
from claims.lab.bench import KINDS, Bench
from toyllm.base import devices, files
from toyllm.base.errors import InputError, clean, nearest, warn
from toyllm.base.scripts import docstring, run_script
from toyllm.runs import lock, provenance
from toyllm.runs.stopping import Stop
from toyllm.show import tables
from toyllm.world import cards

HERE = Path(__file__).resolve().parent
WORLD = HERE / "corpora" / "compact.toml"  # that the claims begin from
PUBLISHED = HERE / "docs" / "scorecard"
COLOURS = {"supported": "green", "not supported": "red"}


@dataclasses.dataclass(frozen=True)
class Args:
    """Test the claims."""

    run: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/scorecard")
    """Where everything is kept."""
    claim: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Only these claims (default: all)."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """One pretraining seed and few worlds: to see it work. Decides nothing."""
    publish: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also write RESULTS.md and docs/scorecard/ beside this script, with what is published there
    of the claims that this run has no result of."""
    pilot: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Train on the seeds of the pilot. Decides nothing; --power reads it."""
    power: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """From the results there are, as a pilot: how many units each claim needs, and leave."""
    list: Annotated[bool, tyro.conf.arg(name="list"), tyro.conf.FlagCreatePairsOff] = False
    """List the claims and leave."""
    compile_cache: bool = True
    """Keep compiled programs for the next start."""


def main(args: Args) -> None:
    """Test claims in order; after each, write all results there are."""
    known = records.available()
    if args.list:
        for name, module in known.items():
            print(f"{module.NUMBER:>3}  {name:<16}{records.title(module)}")
        return
    wanted = tuple(chain(*args.claim)) or tuple(known)
    for name in wanted:
        if name not in known:
            raise InputError(
                f"--claim: no claim '{name}'{nearest(name, known)}, expected {', '.join(known)}"
            )
    mesh = devices.setup(args.compile_cache)
    world, file = cards.load(WORLD), args.run / "scorecard.json"
    if args.quick and args.pilot:
        raise InputError("--quick and --pilot: found both, expected one of them")
    kind = "quick" if args.quick else "pilot" if args.pilot else "full"
    if args.power:
        print_power(records.current(file, known, world.digest, wanted), len(known))
        return
    console = tables.new_console()
    console.width = max(console.width, 110)
    with ExitStack() as held:
        held.enter_context(lock.take(args.run, mark="trained"))
        (args.run / "trained").mkdir(exist_ok=True)
        stop = held.enter_context(Stop())
        bench = Bench(args.run, world, kind, mesh, stop, progress)
        done = records.current(file, known, world.digest, wanted)
        console.print(expected({name: known[name] for name in wanted}, bench), style="dim")
        for name in wanted:
            if name in done and KINDS.index(done[name]["kind"]) > KINDS.index(kind):
                console.print(f"{name}: kept as the {done[name]['kind']} run left it", style="dim")
                continue
            title = Text(f"{known[name].NUMBER}. {records.title(known[name])}", "bold")
            console.print(title, f"({name})")
            done[name] = result(name, known[name], bench, world.digest)
            for other, verdict in verdicts.verdicts(done, len(known)).items():
                done[other]["verdict"] = verdict
            done = {key: done[key] for key in known if key in done}
            files.write_json(file, files.plain(list(done.values())))
            print_predictions(done[name], console)
            if args.claim:
                print_arms(files.plain(done[name]["arms"]), console)
        for line in bench.store.elsewhere:
            warn(f"some of this was trained in another environment: {line}")
        write(args, files.plain(list(done.values())), known, console)
        if args.publish:
            publish(args, files.plain(done), known, world.digest, console)


def result(name: str, module: ModuleType, bench: Bench, world: str) -> dict:
    """The record of a claim that is tested now."""
    began, spent, now = time.time(), bench.store.spent, bench.store.seconds_now
    bench.begin(module.UNITS)
    outcome = module.test(bench)
    measuring = time.time() - began - (bench.store.seconds_now - now)
    return {
        **verdicts.record(name, records.title(module), outcome, bench.kind),
        "number": module.NUMBER,
        # training that other claims before this one have paid for is not counted again
        "seconds": bench.store.spent - spent + measuring,
        "world": world,
        "source": records.source(module),
        "environment": provenance.environment(),
    }


def expected(wanted: dict[str, ModuleType], bench: Bench) -> str:
    """How long the claims may take, computed from the seconds of the published results."""
    file = PUBLISHED / "scorecard.json"
    published = {r["claim"]: r for r in files.read_json(file, list)} if file.exists() else {}
    seconds = 0.0
    for name in wanted.keys() & published.keys():
        bench.begin(wanted[name].UNITS)
        then = len(published[name]["predictions"][0]["values"])
        seconds += published[name]["seconds"] * len(bench.seeds) / then
    missing = ", ".join(name for name in wanted if name not in published)
    unknown = f"; not known for {missing}" if missing else ""
    return f"expected: {seconds / 60:.0f} minutes on the machine of docs/scorecard{unknown}"


def write(args: Args, done: list[dict], known: dict, console: Console) -> None:
    """Print the scorecard, and write RESULTS.md and its figures."""
    print_scorecard(done, console)
    how, docs = made(args, done), {name: docstring(module) for name, module in known.items()}
    page.publish(done, docs, how, args.run / "RESULTS.md", args.run / "figures")
    facts.publish(done, args.run / "facts.md")
    shown = clean(str(args.run))
    console.print(f"scorecard.json, RESULTS.md, facts.md and figures/ are in {shown}/", style="dim")


def publish(args: Args, done: dict, known: dict, world: str, console: Console) -> None:
    """Publish all full results; a claim without one here keeps what is published of it."""
    if thin := [name for name, record in done.items() if record["kind"] != "full"]:
        raise InputError(f"--publish: no full result of {', '.join(thin)}")
    kept = records.current(PUBLISHED / "scorecard.json", known, world, tuple(known))
    kept = {name: record for name, record in kept.items() if name not in done}
    every = {name: (kept | done)[name] for name in known if name in kept | done}
    missing = [name for name in known if name not in every]
    for name, verdict in verdicts.verdicts(every, len(known)).items():
        every[name]["verdict"] = verdict
    results = list(every.values())
    docs = {name: docstring(module) for name, module in known.items()}
    how = [*made(args, results), *(f"No result yet: {name}." for name in missing)]
    page.publish(results, docs, how, HERE / "RESULTS.md", PUBLISHED)
    facts.publish(results, HERE / "docs" / "facts.md")
    files.write_json(PUBLISHED / "scorecard.json", page.rounded(results))
    console.print(f"published; kept as they were: {', '.join(kept) or 'none'}", style="dim")


def made(args: Args, done: list[dict]) -> list[str]:
    """How the results were made: claims, world, time, machine, versions."""
    environment = done[-1]["environment"]
    named = ("python", "jax", "flax", "optax", "numpy")
    versions = ", ".join(f"{name} {environment[name]}" for name in named)
    seconds = sum(record["seconds"] for record in done)
    kind = " and ".join(dict.fromkeys(record["kind"] for record in done))
    return [
        f"A {kind} run of {len(done)} claims on the world of `{WORLD.name}`.",
        f"{seconds / 60:.0f} minutes on {environment['threads']} cores "
        f"({environment['backend']}, {environment['processor'].split()[0]}), {versions}.",
    ]


def print_predictions(record: dict, console: Console) -> None:
    """A claim's predictions, one a line."""
    for p in files.plain(record["predictions"]):
        colour = COLOURS.get(p["verdict"], "dim")
        console.print(
            f"   {p['says']}: {page.number(p['effect'])}",
            Text.assemble((f"({page.span(p['ci'])})", "dim"), ","),
            f"predicted {page.bounds(p)}:",
            Text(p["verdict"], colour),
        )


def print_arms(arms: dict, console: Console) -> None:
    """Every arm of a claim, with its coherence."""
    table = tables.blank_table("arm", "mean", "95%", "read", "coh.")
    for row in page.arm_rows(arms):
        table.add_row(*row)
    tables.show(console, "Its arms", table)


def print_scorecard(done: list[dict], console: Console) -> None:
    """The scorecard: claim, arms, effect with 95% interval, verdict."""
    table = tables.blank_table("", "claim", "effect", "95%", "verdict")
    table.columns[1].justify, table.columns[1].no_wrap = "left", False
    for r in done:
        colour = COLOURS.get(r["verdict"], "dim")
        least = page.least_coherence(r["arms"].values())
        arms = f"{len(r['arms'])} arms" + (f", coherence ≥ {least}" if least else "")
        table.add_row(
            r["number"],
            Text.assemble(r["title"], "\n", (f"{r['predictions'][0]['says']}; {arms}", "dim")),
            page.number(r["effect"]),
            page.span(r["ci"]),
            Text(r["verdict"], colour),
        )
    note = "The effect is that of the first prediction; a claim is supported if all of its hold."
    tables.show(console, "The scorecard", table, note)


def print_power(done: dict[str, dict], family: int) -> None:
    """How many units each prediction needs, with these results as a pilot (claims/lab/power.py)."""
    columns = "prediction", "margin", "SD ≤", "unread", "units", "power", "32 units tell", "pilot"
    console = tables.new_console()
    for name, record in done.items():
        table = tables.blank_table(*columns)
        for need in power.needs(record["predictions"], family):
            known = need.margin is not None
            table.add_row(
                need.says,
                f"{need.margin:g}" if known else "none stated",
                f"{need.deviation:.3f}",
                f"{need.unread:.0%}",
                str(need.units or f"> {power.MOST}") if known else "–",
                f"{need.power:.2f}" if known else "–",
                f"{need.reached:.3f}",
                f"{need.inside:+.3f}",
            )
        tables.show(console, f"{record['number']}. {record['title']} ({name})", table)


def progress(what: str, count: int) -> tqdm:
    """A progress bar; none where there is nothing to do."""
    return tqdm(
        desc=f"   {what:<9}", total=count, dynamic_ncols=True, leave=False, disable=not count
    )


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=__doc__)))
