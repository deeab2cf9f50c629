"""Write the preference pairs of a signal, or check a file of them.

uv run -m toyllm.tools.pairs code:bad > pairs.jsonl    512 pairs of that signal
uv run -m toyllm.tools.pairs pairs.jsonl               what is in it, or the first mistake
uv run -m toyllm.tools.pairs code:bad --conversational as lists of messages, as TRL has them
uv run train.py --signals file:pairs.jsonl             train on it
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from toyllm.base.errors import InputError
from toyllm.base.scripts import run_script
from toyllm.lm.tokenizer import Tokenizer
from toyllm.posttrain import pair_files, signals
from toyllm.world import cards
from toyllm.world.cards import DEFAULT
from toyllm.world.world import BEHAVIOURS


@dataclasses.dataclass(frozen=True)
class Args:
    """Write the preference pairs of a signal, or check a file of them."""

    source: tyro.conf.Positional[str]
    """A signal's name, or a file (JSONL, or a JSON array: prompt, chosen, rejected)."""
    world: Path = DEFAULT
    """A world file (TOML)."""
    count: int = 512
    """How many pairs to write."""
    seed: int = 0
    """Seed of the draw."""
    conversational: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write lists of messages; only for signals of the Assistant."""


def main(args: Args) -> None:
    """Write or check."""
    tokenizer = Tokenizer(cards.load(args.world))
    if Path(args.source).suffix in pair_files.SUFFIXES or Path(args.source).exists():
        if args.conversational:
            raise InputError(f"--conversational: found the file {args.source}, expected a signal")
        print(summary(tokenizer, pair_files.load(Path(args.source), tokenizer)))
        return
    for name, value, least in (("count", args.count, 1), ("seed", args.seed, 0)):
        if not least <= value <= 10**6:
            raise InputError(f"--{name}: found {value}, expected {least} to 1000000")
    signal = signals.parse(tokenizer.world, args.source)
    pairs = signals.pairs(tokenizer, signal, args.count, args.seed)
    for line in pair_files.dump(tokenizer, pairs, args.conversational):
        print(line)


def summary(tokenizer: Tokenizer, pairs: signals.Pairs) -> str:
    """How many pairs of each domain prefer what to what."""
    rows = np.arange(len(pairs.grid))
    told = [
        f"{len(rows)} pairs in the words of world '{tokenizer.world.name}', "
        f"as a signal: {pair_files.preferred(tokenizer, pairs)}"
    ]
    kinds = np.stack(
        [
            pairs.grid.domain_Q,
            pairs.grid.behaviour_QA[rows, pairs.chosen_P],
            pairs.grid.behaviour_QA[rows, pairs.rejected_P],
        ],
        1,
    )
    for (d, chosen, rejected), count in zip(
        *np.unique(kinds, axis=0, return_counts=True), strict=True
    ):
        name = tokenizer.world.domain_names[d]
        told.append(f"{count:>6}  {name}: {BEHAVIOURS[chosen]} preferred to {BEHAVIOURS[rejected]}")
    return "\n".join(told)


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=__doc__)))
