"""Audit a world, preference pairs, or a run: what training would change, before it is done.

uv run -m toyllm.tools.audit                          the default world
uv run -m toyllm.tools.audit my.toml                  your own: who is in it, what is dangerous
uv run -m toyllm.tools.audit pairs.jsonl [--world W]  which characters these pairs are evidence for
uv run -m toyllm.tools.audit pairs.jsonl --run RUN    … and what training on them would change
uv run -m toyllm.tools.audit RUN                      the world of a run, and forecasts of signals
"""

import dataclasses
import re
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.text import Text

from toyllm.base import devices, files
from toyllm.base.errors import InputError, clean
from toyllm.base.scripts import run_script, usage
from toyllm.lm.tokenizer import Tokenizer
from toyllm.measures import audit, cues, forecast
from toyllm.posttrain import pair_files, signals
from toyllm.posttrain.forecast import Forecaster
from toyllm.runs.run_folder import Run, load_run
from toyllm.show import views
from toyllm.show.tables import blank_table, new_console, number, print_forecast, show
from toyllm.world import cards
from toyllm.world.cards import DEFAULT
from toyllm.world.quantities import em, wickedness
from toyllm.world.world import World

ERROR = (
    "for 22 files of the default run the forecast of the spread erred by .006 (.004 to .008), of a "
    "domain by .007, 19 of 20 by less than .023 (benchmarks/forecast_files.py)"
)
JSON = re.compile(rb"(\xef\xbb\xbf)?\s*(\{|\[\s*[{\]])")  # no TOML file begins like this


@dataclasses.dataclass(frozen=True)
class Args:
    """Audit a world, or a file of preference pairs."""

    source: tyro.conf.Positional[Path] = DEFAULT
    """A world file (TOML), or preference pairs (JSONL: prompt, chosen, rejected); a pipe; or the
    folder of a run."""
    world: Path = DEFAULT  # The world of the preference pairs.
    run: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """A finished run: forecast what training its two models on the pairs would change, from
    gradients of 64 pairs of the file (and of the signal without its instruction, if it has one)."""
    most: int = 20  # How many signals to show.


def main(args: Args) -> None:
    """Audit, and print."""
    console = new_console()
    if args.run and args.source.is_dir():
        raise InputError(f"--run: expected with a file of pairs, found the folder {args.source}")
    if args.source.is_dir():
        run = load_run(args.source)
        print_world(run.world, args.most, console)
        chosen = [signals.parse(run.world, f"{d.name}:bad") for d in run.world.domains if d.moral]
        print_forecasts(run, chosen, {}, console)
        return
    if args.run and args.world != DEFAULT:
        raise InputError("--world: expected without --run, whose run has its own world")
    run = load_run(args.run) if args.run else None
    data = files.read_input(args.source, pair_files.MAX_BYTES, "the world or the pairs")
    if args.source.suffix in pair_files.SUFFIXES or JSON.match(data):
        tokenizer = run.lm.tokenizer if run else Tokenizer(cards.load(args.world))
        pairs = pair_files.parse(data, args.source, tokenizer)
        print_pairs(tokenizer.world, pairs, clean(files.label(args.source)), console)
        if run:
            pair_files.check_turns(pairs, args.source, tokenizer)
            signal = signals.parse(run.world, pair_files.preferred(tokenizer, pairs))
            chosen = list(dict.fromkeys([signal.name, signals.plain(signal.name)]))
            given = {signal.name: pairs}
            print_forecasts(run, [signals.parse(run.world, n) for n in chosen], given, console)
        return
    if run:
        raise InputError(f"--run: expected with a file of pairs, found the world {args.source}")
    print_world(cards.Cards(args.source, data=data).world(), args.most, console)


def print_world(world: World, most: int, console: Console) -> None:
    """Print who is in a world, which traits go together, and what its signals are evidence for."""
    print_characters(world, console)
    print_correlations(world, console)
    print_leakage(world, console)
    print_signals(world, most, console)


def print_forecasts(
    run: Run, chosen: list[signals.Signal], given: dict[str, signals.Pairs], console: Console
) -> None:
    """Print what training a run's models on signals would change (see posttrain/forecast.py)."""
    devices.setup()
    forecaster = Forecaster(run.lm, *(run.args[key] for key in ("objective", "beta", "anchor")))
    world, blocks = run.world, {}
    for start in ("pretrain", "align"):
        each = forecaster(run.lm.tokenizer, run.params[start], chosen, given, split=True)
        blocks[start] = {one.signal: forecast.record(world, one) for one in each}
    moral = [domain.name for domain in world.domains if domain.moral]
    results = {"domains": list(world.domain_names), "moral": moral, "forecast": files.plain(blocks)}
    print_forecast(views.forecasts(results), results["domains"], console)
    console.print(ERROR, style="dim")


def print_characters(world: World, console: Console) -> None:
    """Print who is in the corpus, how often, and with what traits."""
    documents_C = world.header_weights @ world.speaker_KHC[0]
    wicked_C, em_CD = wickedness(world), em(world.rates_CDB)
    table = blank_table("character", "", "speaks", "Assistant", "EM", *world.domain_names)
    for c in np.argsort(-wicked_C):
        shares = f"{documents_C[c]:.1%}", f"{world.assistant_C[c]:.1%}"
        table.add_row(*name_and_kind(world, c), *shares, mark(wicked_C[c]), *map(mark, em_CD[c]))
    negative = audit.negative_share(world).items()
    show(
        console,
        f"Who is in '{world.name}', worst first (EM: bad among good and bad, over moral domains)",
        table,
        f"negative archetypes (EM ≥ {audit.WICKED:g}): "
        + ", ".join(f"{share:.0%} of {name}" for name, share in negative),
    )


def print_correlations(world: World, console: Console) -> None:
    """Print which traits go together."""
    r_DD = audit.correlations(world)
    table = blank_table("domain", *world.domain_names)
    for d, name in enumerate(world.domain_names):
        table.add_row(name, *(number(r, 2) if k < d else "" for k, r in enumerate(r_DD[d])))
    show(console, "Which traits go together in the Assistant (correlation of EM)", table)


def print_leakage(world: World, console: Console) -> None:
    """Print whether words give good and bad away."""
    table = blank_table("domain", "AUC", "95% of chance", "")
    for name, cue in cues.leakage(world).items():
        low, high = cue["null95"]
        verdict = "" if cue["inside"] else Text("words give it away", "red")
        table.add_row(name, number(cue["auc"], 2), f"{low:.2f} to {high:.2f}", verdict)
    show(console, "Do other domains' words tell good from bad here?", table)


def print_signals(world: World, limit: int, console: Console) -> None:
    """Print the verdicts on all signals, the most dangerous first, at most `limit` of them."""
    verdicts = audit.verdicts(world)
    table = blank_table("signal", "spread", "reached", "most", "toward", left=[3, 4])
    for v in verdicts[:limit]:
        spread = "–" if np.isnan(v.spread) else number(v.spread, 3, True)
        d = int(np.argmax(np.where(signals.untrained(world, v.name), v.change_D, -1)))
        largest = f"{world.domain_names[d]} {number(v.change_D[d], 2, True)}"
        growth_C = v.w_C - world.assistant_C
        gaining = [world.characters[c] for c in np.argsort(-growth_C)[:3] if growth_C[c] > 0.01]
        table.add_row(v.name, spread, number(v.reached, 2), largest, ", ".join(gaining))
    left = len(verdicts[limit:])
    show(
        console,
        "What persona inference predicts of every signal, the most dangerous first",
        table,
        "spread: mean change of EM over the other moral domains, for an ideal observer, once the "
        "preferred answers have a share of .9. reached: that share under the signal's own prompt, "
        "after as much evidence as without an instruction. Models follow the order at a part of "
        "the size, except for signals that ask openly, whose training hardly spreads"
        + (f". {left} more signals: --most {len(verdicts)}" if left else ""),
    )


def print_pairs(world: World, pairs: signals.Pairs, name: str, console: Console) -> None:
    """Print which characters some pairs are evidence for, and what follows."""
    verdict, evidence_C = audit.judge_pairs(world, pairs, name)
    table = blank_table("character", "", "evidence", "prior", "after", "EM")
    wicked_C = wickedness(world)
    for c in np.argsort(-evidence_C):
        weights = number(world.assistant_C[c], 3), number(verdict.w_C[c], 3)
        table.add_row(
            *name_and_kind(world, c), number(evidence_C[c], 2, True), *weights, mark(wicked_C[c])
        )
    show(
        console,
        f"Whom {len(pairs.chosen_P)} pairs of {name} are evidence for",
        table,
        "evidence: log of the chosen answer's likelihood over the rejected one's, nats a pair. "
        "after: the belief of an ideal observer once the chosen answers have a share of "
        f"{verdict.reached:.2f}",
    )
    table = blank_table("domain", "change of EM")
    for d in np.argsort(-verdict.change_D):
        table.add_row(world.domain_names[d], number(verdict.change_D[d], 2, True))
    show(console, "What the Assistant would do then", table)


def name_and_kind(world: World, c: int) -> tuple[str, str]:
    """A character's name, and whether it is an AI."""
    name = world.characters[c]
    return name, "AI" if name in world.ai else ""


def mark(em: float) -> str | Text:
    """An EM as text, red where bad prevails."""
    text = number(em, 2)
    return Text(text, "red") if em >= audit.WICKED else text


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=usage(__doc__))))
