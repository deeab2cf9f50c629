"""Print documents drawn from a world: `uv run -m toyllm.tools.show [WORLD] [--count N]`."""

import dataclasses
from pathlib import Path

import numpy as np
import tyro

from toyllm import cards, corpus
from toyllm.errors import InputError
from toyllm.scripts import run_script
from toyllm.text import Codec, lines
from toyllm.world import KINDS

DEFAULT = Path(__file__).resolve().parents[2] / "corpora" / "personas.toml"


@dataclasses.dataclass(frozen=True)
class Args:
    """Print documents drawn from a world."""

    world: tyro.conf.Positional[Path] = DEFAULT
    """A world file (TOML)."""
    count: int = 6
    """How many documents, the same number of each kind (rounded up)."""
    seed: int = 0
    """Seed of the draw."""


def main(args: Args) -> None:
    """Draw and print."""
    if args.count < 1:
        raise InputError(f"--count: found {args.count}, expected at least 1")
    codec = Codec(cards.load(args.world))
    rng = np.random.default_rng(args.seed)
    for kind, name in enumerate(KINDS):
        docs = corpus.sample(codec.world, -(-args.count // len(KINDS)), rng, kind)
        for row in codec.pad(docs, max(codec.longest.values())):
            print(f"{name}:", *lines(codec.string(row)), sep="\n    ")


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=__doc__)))
