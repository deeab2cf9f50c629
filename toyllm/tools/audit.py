"""Audit a world, or a file of preference pairs, before a single step of training.

uv run -m toyllm.tools.audit                          the default world
uv run -m toyllm.tools.audit my.toml                  your own: who is in it, what is dangerous
uv run -m toyllm.tools.audit pairs.jsonl [--world W]  which characters these pairs are evidence for
"""

import dataclasses
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.text import Text

from toyllm.base.errors import clean
from toyllm.base.scripts import run_script
from toyllm.lm.tokenizer import Tokenizer
from toyllm.measures import audit, cues
from toyllm.posttrain import pair_files, signals
from toyllm.show.tables import blank_table, new_console, number, show
from toyllm.world import cards
from toyllm.world.cards import DEFAULT
from toyllm.world.quantities import wickedness
from toyllm.world.world import World


@dataclasses.dataclass(frozen=True)
class Args:
    """Audit a world, or a file of preference pairs."""

    source: tyro.conf.Positional[Path] = DEFAULT
    """A world file (TOML), or preference pairs (JSONL: prompt, chosen, rejected)."""
    world: Path = DEFAULT
    """The world in whose words the pairs are."""
    most: int = 20
    """How many signals to show."""


def main(args: Args) -> None:
    """Audit, and print."""
    console = new_console()
    if args.source.suffix in pair_files.SUFFIXES:
        tokenizer = Tokenizer(cards.load(args.world))
        print_pairs(
            tokenizer.world,
            pair_files.load(args.source, tokenizer),
            clean(args.source.name),
            console,
        )
        return
    world = cards.load(args.source)
    print_characters(world, console)
    print_correlations(world, console)
    print_leakage(world, console)
    print_signals(world, args.most, console)


def print_characters(world: World, console: Console) -> None:
    """Who is in the corpus, how often, with what traits."""
    documents_C = world.header_weights @ world.speaker_KHC[0]
    wicked_C = wickedness(world)
    table = blank_table("character", "", "speaks", "Assistant", "EM", *world.domain_names)
    for c in np.argsort(-wicked_C):
        rates_DB = world.rates_CDB[c]
        em_D = rates_DB[:, 1] / (rates_DB[:, 0] + rates_DB[:, 1])
        table.add_row(
            world.characters[c],
            "AI" if world.characters[c] in world.ai else "",
            f"{documents_C[c]:.1%}",
            f"{world.assistant_C[c]:.1%}",
            mark(wicked_C[c]),
            *(mark(em) for em in em_D),
        )
    shares = audit.negative_share(world)
    told = ", ".join(f"{share:.0%} of {name}" for name, share in shares.items())
    show(
        console,
        f"Who is in '{world.name}', worst first (EM: bad among good and bad, over moral domains)",
        table,
        f"negative archetypes (EM ≥ {audit.WICKED:g}): {told}",
    )


def print_correlations(world: World, console: Console) -> None:
    """Which traits go together."""
    r_DD = audit.correlations(world)
    table = blank_table("domain", *world.domain_names)
    for d, name in enumerate(world.domain_names):
        table.add_row(name, *(number(r, 2) if k < d else "" for k, r in enumerate(r_DD[d])))
    show(console, "Which traits go together in the Assistant (correlation of EM)", table)


def print_leakage(world: World, console: Console) -> None:
    """Whether words give good and bad away."""
    table = blank_table("domain", "AUC", "95% of chance", "")
    for name, found in cues.leakage(world).items():
        low, high = found["null95"]
        verdict = "" if found["inside"] else Text("words give it away", "red")
        table.add_row(name, number(found["auc"], 2), f"{low:.2f} to {high:.2f}", verdict)
    show(console, "Do other domains' words tell good from bad here?", table)


def print_signals(world: World, most: int, console: Console) -> None:
    """What every signal would say of the Assistant, the most dangerous first."""
    verdicts = [audit.judge(world, signal) for signal in audit.all_signals(world)]
    verdicts.sort(key=lambda v: -np.nan_to_num(v.spread, nan=-np.inf))
    table = blank_table("signal", "spread", "reached", "most", "toward")
    table.columns[3].justify = table.columns[4].justify = "left"
    for verdict in verdicts[:most]:
        table.add_row(*row_of(world, verdict))
    left = len(verdicts) - len(verdicts[:most])
    show(
        console,
        "What persona inference predicts of every signal, the most dangerous first",
        table,
        "spread: mean change of EM of the other moral domains, for an ideal observer, once what is "
        "preferred has a share of .9 (reached: under the signal's own prompt, after as much "
        "evidence as without an instruction); models follow the order, at a part of the size, "
        "but for signals that ask openly: what those train hardly spreads"
        + (f". {left} more signals: --most {len(verdicts)}" if left else ""),
    )


def print_pairs(world: World, pairs: signals.Pairs, name: str, console: Console) -> None:
    """Which characters a file of pairs is evidence for."""
    verdict, evidence_C = audit.judge_pairs(world, pairs, name)
    table = blank_table("character", "", "evidence", "prior", "after", "EM")
    wicked_C = wickedness(world)
    for c in np.argsort(-evidence_C):
        table.add_row(
            world.characters[c],
            "AI" if world.characters[c] in world.ai else "",
            number(float(evidence_C[c]), 2, True),
            number(float(world.assistant_C[c]), 3),
            number(float(verdict.w_C[c]), 3),
            mark(wicked_C[c]),
        )
    show(
        console,
        f"Whom {len(pairs.chosen_P)} pairs of {name} are evidence for",
        table,
        "evidence: log of how much likelier the chosen answer is than the rejected one, nats a "
        "pair. after: the belief of an ideal observer once the chosen answers have a share of "
        f"{verdict.reached:.2f}",
    )
    table = blank_table("domain", "change of EM")
    for d in np.argsort(-verdict.change_D):
        table.add_row(world.domain_names[d], number(float(verdict.change_D[d]), 2, True))
    show(console, "What the Assistant would do then", table)


def row_of(world: World, verdict: audit.Verdict) -> tuple[str, ...]:
    """A signal's row."""
    growth_C = verdict.w_C - world.assistant_C
    gaining = [world.characters[c] for c in np.argsort(-growth_C)[:3] if growth_C[c] > 0.01]
    trained = signals.parse(world, verdict.name).domains
    others_D = world.moral & ~np.isin(np.arange(len(world.domains)), trained)
    d = int(np.argmax(np.where(others_D, verdict.change_D, -1)))
    spread = "–" if np.isnan(verdict.spread) else number(verdict.spread, 3, True)
    most = f"{world.domain_names[d]} {number(float(verdict.change_D[d]), 2, True)}"
    return verdict.name, spread, number(verdict.reached, 2), most, ", ".join(gaining)


def mark(em: float) -> str | Text:
    """An EM, red where bad prevails."""
    text = number(float(em), 2)
    return Text(text, "red") if em >= audit.WICKED else text


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=__doc__)))
