"""Write a commented world to begin with: uv run -m toyllm.tools.new_world my.toml"""

import dataclasses
import re
import shlex
from pathlib import Path

import tyro

from toyllm.base import files
from toyllm.base.errors import InputError
from toyllm.base.scripts import run_script
from toyllm.world import cards
from toyllm.world.reader import MAX_NAME

STARTER = Path(__file__).with_name("starter.toml")


@dataclasses.dataclass(frozen=True)
class Args:
    """Write a commented world to begin with."""

    file: tyro.conf.Positional[Path]
    """Where to write it; its name becomes the world's."""


def main(args: Args) -> None:
    """Write, check, and say what to do next."""
    if args.file.exists():
        free = shlex.quote(str(files.unused(args.file)))
        raise InputError(f"{args.file}: exists; a free name: {free}")
    name = re.sub(r"[^\w-]", "-", args.file.stem).strip("-")[:MAX_NAME].rstrip("-") or "world"
    text = STARTER.read_text(encoding="utf-8").replace('name = "starter"', f'name = "{name}"')
    files.write_text(args.file, text)
    try:
        world = cards.load(args.file)
    except InputError:
        args.file.unlink()
        raise
    file, run = shlex.quote(str(args.file)), shlex.quote(f"runs/{name}")
    print(
        f"{args.file}: a world of {len(world.characters)} characters and {len(world.domains)} "
        f"domains. Change it as you like; after each change:\n"
        f"    uv run -m toyllm.tools.audit {file}    its first mistake, or who is in it\n"
        f"    uv run -m toyllm.tools.show {file}     documents drawn from it\n"
        f"    uv run train.py --world {file} --run {run} && uv run eval.py {run}"
    )


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=__doc__)))
