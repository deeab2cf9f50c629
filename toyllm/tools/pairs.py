"""Write the preference pairs of a signal, or check a file of them.

uv run -m toyllm.tools.pairs code:bad > pairs.jsonl    512 pairs of that signal
uv run -m toyllm.tools.pairs pairs.jsonl               what is in it, or the first mistake
uv run -m toyllm.tools.pairs code:bad --conversational as lists of messages, as TRL has them
uv run train.py --signals file:pairs.jsonl             train on it
"""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from toyllm.base import arguments
from toyllm.base.arguments import Between
from toyllm.base.errors import InputError
from toyllm.base.scripts import run_script, usage
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
    world: Path = DEFAULT  # A world file (TOML).
    count: int = 512  # How many pairs to write.
    seed: Annotated[int, Between(0, 10**6)] = 0  # Seed of the draw.
    conversational: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write lists of messages; only for signals of the Assistant."""


def main(args: Args) -> None:
    """Write or check."""
    tokenizer = Tokenizer(cards.load(args.world))
    if Path(args.source).suffix in pair_files.SUFFIXES or Path(args.source).exists():
        if args.conversational:
            raise InputError(f"--conversational: found the file {args.source}, expected a signal")
        print_summary(tokenizer, pair_files.load(Path(args.source), tokenizer))
        return
    arguments.check(args)
    signal = signals.parse(tokenizer.world, args.source)
    pairs = signals.pairs(tokenizer, signal, args.count, args.seed)
    for line in pair_files.dump(tokenizer, pairs, args.conversational):
        print(line)


def print_summary(tokenizer: Tokenizer, pairs: signals.Pairs) -> None:
    """Print the number of pairs, and how many of each domain prefer which behaviour to which."""
    rows, names = np.arange(len(pairs.chosen_P)), tokenizer.world.domain_names
    behaviours = (pairs.grid.behaviour_QA[rows, x] for x in (pairs.chosen_P, pairs.rejected_P))
    kinds = Counter(zip(pairs.grid.domain_Q, *behaviours, strict=True))
    print(
        f"{len(rows)} pairs in the words of world '{tokenizer.world.name}', "
        f"as a signal: {pair_files.preferred(tokenizer, pairs)}"
    )
    for (d, chosen, rejected), count in sorted(kinds.items()):
        print(f"{count:>6}  {names[d]}: {BEHAVIOURS[chosen]} preferred to {BEHAVIOURS[rejected]}")


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=usage(__doc__))))
