"""Print documents drawn from a world: `uv run -m toyllm.tools.show [WORLD] [--count N]`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from toyllm.base import arguments
from toyllm.base.arguments import Between
from toyllm.base.scripts import run_script
from toyllm.lm.tokenizer import Tokenizer, lines
from toyllm.world import cards, corpus
from toyllm.world.world import KINDS


@dataclasses.dataclass(frozen=True)
class Args:
    """Print documents drawn from a world."""

    world: tyro.conf.Positional[Path] = cards.DEFAULT  # A world file (TOML).
    count: int = 6  # How many documents, the same number of each kind (rounded up).
    seed: Annotated[int, Between(0, 10**6)] = 0  # Seed of the draw.


def main(args: Args) -> None:
    """Draw and print."""
    arguments.check(args)
    tokenizer = Tokenizer(cards.load(args.world))
    rng = np.random.default_rng(args.seed)
    kinds = np.flatnonzero(tokenizer.world.kind_weights)
    for kind in kinds:
        docs = corpus.sample(tokenizer.world, -(-args.count // len(kinds)), rng, kind)
        for row in tokenizer.pad(docs, max(tokenizer.longest.values())):
            print(f"{KINDS[kind]}:", *lines(tokenizer.string(row)), sep="\n    ")


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=__doc__)))
