"""Write a commented world to begin with: uv run -m toyllm.tools.new_world my.toml"""

import dataclasses
import re
import shlex
from pathlib import Path

import tyro

from toyllm import cards, files
from toyllm.errors import InputError
from toyllm.scripts import run_script

STARTER = Path(__file__).with_name("starter.toml")


@dataclasses.dataclass(frozen=True)
class Args:
    """Write a commented world to begin with."""

    file: tyro.conf.Positional[Path]
    """Where to write it; its name becomes the world's."""


def main(args: Args) -> None:
    """Write, check, and say what to do next."""
    if args.file.exists():
        raise InputError(f"{args.file}: exists; a free name: {files.unused_file(args.file)}")
    name = re.sub(r"[^\w-]", "-", args.file.stem).strip("-") or "world"
    text = STARTER.read_text(encoding="utf-8").replace('name = "starter"', f'name = "{name}"')
    files.write_text(args.file, text)
    world = cards.load(args.file)
    file = shlex.quote(str(args.file))
    print(
        f"{args.file}: a world of {len(world.characters)} characters and {len(world.domains)} "
        f"domains. Change it as you like; after each change:\n"
        f"    uv run -m toyllm.tools.audit {file}    its first mistake, or who is in it\n"
        f"    uv run -m toyllm.tools.show {file}     documents drawn from it\n"
        f"    uv run train.py --world {file} --run runs/{name} && uv run eval.py runs/{name}"
    )


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=__doc__)))
