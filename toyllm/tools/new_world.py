"""Write a world file: one with comments to begin with, or one that is drawn at random.

uv run -m toyllm.tools.new_world my.toml
uv run -m toyllm.tools.new_world --random 7 my.toml
uv run -m toyllm.tools.new_world --random 7 --characters 12 --correlation 0.9 my.toml
"""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Annotated

import tyro

from toyllm.base import arguments, files
from toyllm.base.arguments import Between
from toyllm.base.errors import InputError
from toyllm.base.scripts import command, run_script, usage
from toyllm.world import cards, random_worlds
from toyllm.world.reader import MAX_NAME

STARTER = Path(__file__).with_name("starter.toml")


@dataclasses.dataclass(frozen=True)
class Args:
    """Write a world file."""

    file: tyro.conf.Positional[Path]  # Where to write it; its name becomes the world's.
    random: Annotated[int | None, Between(0, 2**31 - 1), tyro.conf.arg(metavar="SEED")] = None
    """Draw a world of nonsense words from this seed. The other flags are for this alone."""
    shape: Annotated[random_worlds.Shape, tyro.conf.arg(name="")] = random_worlds.USUAL


def main(args: Args) -> None:
    """Write, check, and say what to do next."""
    if args.file.exists():
        free = shlex.quote(str(files.unused(args.file)))
        raise InputError(f"{args.file}: exists; a free name: {free}")
    name = re.sub(r"[^\w-]", "-", args.file.stem).strip("-")[:MAX_NAME].rstrip("-") or "world"
    arguments.check(args)
    if args.random is not None:
        text = random_worlds.write(args.random, args.shape, name)
    elif args.shape != random_worlds.USUAL:
        raise InputError("flags of a random world without its seed, expected --random SEED too")
    else:
        text = STARTER.read_text(encoding="utf-8").replace('name = "starter"', f'name = "{name}"')
    files.write_text(args.file, text)
    try:
        world = cards.load(args.file)
    except InputError:
        args.file.unlink()
        raise
    moral = [domain.name for domain in world.domains if domain.moral]
    train = command("train.py", "--world", args.file, "--run", f"runs/{name}")
    audit, show = (command(f"toyllm.tools.{tool}", args.file) for tool in ("audit", "show"))
    print(
        f"{args.file}: a world of {len(world.characters)} characters and {len(world.domains)} "
        f"domains. Change it as you like; after each change:\n"
        f"    {audit}    its first mistake, or who is in it\n"
        f"    {show}     documents drawn from it\n"
        f"    {train} && {command('eval.py', f'runs/{name}')}\n"
        f"--signals {moral[-1]}:bad … chooses what is trained; fewer --pretrain-steps "
        "are faster, and eval.py says how much was learned."
    )


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=usage(__doc__))))
