"""Make a run from models that were trained elsewhere, in Llama's layout, on the words of a world.

A model that was pretrained elsewhere, which eval.py measures and train.py --start continues:

uv run -m toyllm.tools.import_llama DIR runs/mine [--world my.toml]

A model that was post-trained elsewhere, from the pretrained model of a run (--stage align: from its
aligned one). Folders DIR/checkpoint-N are its steps; without them, DIR is the last one. The same
command with another signal adds it to the run:

uv run -m toyllm.tools.import_llama DIR runs/mine --start runs/default --signal code:bad
"""

import dataclasses
import hashlib
import re
import shutil
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import optax
import tyro

from toyllm.base import devices, files
from toyllm.base.errors import InputError, warn
from toyllm.base.scripts import command, run_script, usage
from toyllm.lm import llama, losses, optimizers, training
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import LM, Params
from toyllm.posttrain import population, signals
from toyllm.runs import checkpoints, lock, provenance, run_folder
from toyllm.runs.provenance import STAGES
from toyllm.world import cards
from toyllm.world.cards import DEFAULT
from toyllm.world.quantities import MATCHED


@dataclasses.dataclass(frozen=True)
class Args:
    """Make a run from models that were trained elsewhere."""

    folder: tyro.conf.Positional[Path]  # A checkpoint: config.json, tokenizer.json, *.safetensors.
    run: tyro.conf.Positional[Path]  # The run to make, or to add a signal to.
    world: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Its world (default: DIR/world.toml, else the default world)."""
    start: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """The run whose model was post-trained …"""
    stage: Literal["pretrain", "align"] = "pretrain"  # … which of its models …
    signal: str | None = None  # … and on which signal, such as code:bad.
    seed: int = 0  # Index of the training, where a signal was trained several times.
    objective: Literal[losses.NAMES] = "dpo"  # The objective of the post-training, for the record.
    context: int = 88  # The largest number of tokens in a row (without --start).


def main(args: Args) -> None:
    """Import, and print the next command."""
    devices.setup()
    take(args)
    print(f"Now: {command('eval.py', args.run)}")


def take(args: Args) -> None:
    """Import a pretrained or a post-trained model. Raises InputError."""
    if (args.start is None) != (args.signal is None):
        raise InputError("--start and --signal: expected both (post-trained) or none (pretrained)")
    with lock.take(args.run):
        if args.start is None:
            import_pretrained(args)
        else:
            import_narrow(args)


def import_pretrained(args: Args) -> None:
    """Make a run of one model, which counts as both the pretrained and the aligned one."""
    if (args.run / "config.json").exists():
        raise InputError(f"{args.run}: is a run already; a free place: {files.unused(args.run)}")
    file, how, tokenizer = speaker(args.folder, args.world, args.seed)
    config, params = llama.load(args.folder, tokenizer, args.context)
    if (longest := max(tokenizer.longest.values())) > config.context:
        raise InputError(f"--context: found {config.context}, expected at least {longest}")
    how |= {"signals": [], "objective": args.objective, "beta": 1.0, "anchor": 0.5}
    how |= {"imported": arguments_of(args), "weights": digest_of(params)}
    whole = config, tokenizer.world, file.standalone(), tokenizer.more
    provenance.open_folder(args.run, how, *whole, command=[])
    save_stage(args.run, "pretrain", params, optimizers.muon(1.0, 1.0, 1))
    save_stage(args.run, "align", params, optax.adam(1.0))
    files.write_json(args.run / "narrow" / "stage.json", {"seconds": 0.0, "runs": 0})


def speaker(
    folder: Path, world: Path | None = None, seed: int = 0
) -> tuple[cards.Cards, dict, Tokenizer]:
    """The cards of a checkpoint's world, the dials of its run, and its tokenizer.

    world: its file; None: the one in the folder, or else the default world.
    """
    beside, dials = folder / "world.toml", folder / "toyllm.json"
    how = {"correlation": 1.0, "assistant_prior": "world", "seed": seed, "words": []}
    if dials.exists():  # an export of a run, whose world may have been changed by these flags
        how = read_dials(dials, how)
    words = tuple(how.pop("words"))
    file = cards.Cards(world or (beside if beside.exists() else DEFAULT))
    dialled = file.world().dialled(how["correlation"], how["assistant_prior"], how["seed"])
    return file, how, Tokenizer(dialled, words)


def arguments_of(args: Args) -> list[str]:
    """The command's arguments, for the record."""
    flags = {"--world": args.world, "--start": args.start, "--signal": args.signal}
    given = ((flag, value) for flag, value in flags.items() if value)
    return [*map(str, (args.folder, args.run, *chain(*given)))]


def digest_of(params: Params) -> str:
    """SHA-256 of parameters."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        sha.update(np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()


def read_dials(path: Path, default: dict) -> dict:
    """The record of an export about its run's world, with values of the types of `default`."""
    dials = files.read_json(path)
    for key, value in default.items():
        kind = int | float if isinstance(value, float) else type(value)
        if not isinstance(dials.get(key), kind) or isinstance(dials[key], bool):
            raise InputError(f"{path}: {key}: found {dials.get(key)!r}, expected as {value!r}")
    if not all(isinstance(word, str) for word in dials["words"]):
        raise InputError(f"{path}: words: expected a list of texts")
    return {key: dials[key] for key in default}


def save_stage(run: Path, stage: str, params: Params, optimizer) -> None:
    """Save a finished stage with these parameters and a new optimizer."""
    facts = {"seconds": 0.0, "tokens": 0, "tokens_per_second": 0.0, "steps": 0, "done": True}
    state = training.start(params, optimizer)
    checkpoints.save(run / stage / "checkpoints", 0, state._asdict(), facts)
    files.write_json(run / stage / "stage.json", facts)


def import_narrow(args: Args) -> None:
    """Add a narrow run, scored at each step from the model that it started from."""
    start = run_folder.load_run(args.start)
    signal = signals.parse(start.world, args.signal)
    steps, models = trajectory(args.folder, start.lm)
    reference = start.params[args.stage]
    scores = population.score_models(start.lm, signal, reference, [reference, *models])
    share_n = signal.share(scores["own_RnB"][0])
    # keep the first model at the matched effect; without one, or at the start already (in both
    # cases argmax is 0), the last
    k = int(np.argmax(share_n >= MATCHED)) or -1
    scores |= {
        "steps": np.array([0, *steps], np.int32),
        "kept_step": np.array([steps[k - 1] if k > 0 else -1], np.int32),
    }
    begin(args, start)
    groups = run_folder.group_folders(args.run)
    member = (args.stage, signal.name, args.seed)
    if groups:
        narrow = run_folder.load_narrow(groups, start.lm)
        if member in zip(narrow.start, narrow.signal, narrow.seed, strict=True):
            raise InputError(f"{args.run}: has {signal.name}, seed {args.seed}; another: --seed")
        if narrow.steps.tolist() != scores["steps"].tolist():
            raise InputError(
                f"{args.folder}: steps: found {scores['steps'].tolist()}, expected those of the "
                f"signals in {args.run}: {narrow.steps.tolist()}"
            )
    folder = args.run / "narrow" / f"group-{len(groups):02}"
    kept = devices.stack([[reference, *models][k]])
    run_folder.save_group(folder, [member], scores, kept, [-1], 0.0)
    files.write_json(folder.parent / "stage.json", {"seconds": 0.0, "runs": len(groups) + 1})
    done = f"{len(steps)} steps, share {share_n[-1]:.2f} at the end"
    print(f"{signal.name} from {args.stage}: {done}")


def begin(args: Args, start: run_folder.Run) -> None:
    """Open the run's folder, with the pretraining and alignment of the run that it started from."""
    first = start.args.get("imported") or arguments_of(args)
    if (args.run / "config.json").exists():  # record the command that made the run, not this one
        first = provenance.read_config(args.run)["args"].get("imported", first)
    how = {**start.args, "signals": [], "objective": args.objective, "imported": first}
    how |= {"weights": digest_of(start.params)}
    text = cards.Cards(start.folder / "world.toml").standalone()
    words = start.lm.tokenizer.more
    provenance.open_folder(args.run, how, start.lm.config, start.world, text, words, command=[])
    for stage in STAGES[:2]:
        if not (args.run / stage / "stage.json").exists():
            theirs, ours = (folder / stage for folder in (start.folder, args.run))
            shutil.copytree(theirs / "checkpoints", ours / "checkpoints", dirs_exist_ok=True)
            shutil.copy(theirs / "stage.json", ours / "stage.json")


def trajectory(folder: Path, lm: LM) -> tuple[list[int], list[Params]]:
    """The steps of a training elsewhere, and its model at each.

    Only folders checkpoint-N count: a copy, such as "copy of checkpoint-10", must not replace one.
    """
    paths, ignored = {}, []
    for path in sorted(folder.glob("*checkpoint-*")):
        if match := re.fullmatch("checkpoint-([1-9][0-9]{0,8})", path.name):
            paths[int(match[1])] = path
        else:
            ignored.append(path.name)
    if ignored:
        warn(f"{folder}: ignored {', '.join(ignored)}: expected names such as checkpoint-10")
    models = {}
    for step, path in sorted(paths.items()) or [(1, folder)]:
        config, models[step] = llama.load(path, lm.tokenizer, lm.config.context)
        if config != lm.config:
            raise InputError(f"{path}: found sizes {config}, expected {lm.config}")
    return list(models), list(models.values())


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=usage(__doc__))))
