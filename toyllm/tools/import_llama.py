"""Make a run of models that were trained elsewhere, in Llama's layout, on the words of a world.

uv run -m toyllm.tools.import_llama DIR runs/mine [--world my.toml]
    a model pretrained elsewhere: eval.py measures it, train.py --start runs/mine goes on from it

uv run -m toyllm.tools.import_llama DIR runs/mine --start runs/default --signal code:bad
    a model post-trained elsewhere, from the pretrained model of runs/default (--stage align: from
    its aligned one). Folders DIR/checkpoint-N are its steps; without them DIR is its end. Another
    signal can be added to the same run by the same command.
"""

import dataclasses
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import optax
import tyro

from toyllm import (
    cards,
    checkpoints,
    devices,
    files,
    llama,
    lock,
    model,
    objectives,
    optimizers,
    population,
    provenance,
    runs,
    signals,
    training,
)
from toyllm.errors import InputError
from toyllm.model import Config, Params
from toyllm.scripts import run_script
from toyllm.stages import STAGES
from toyllm.text import Codec
from toyllm.tools.show import DEFAULT


@dataclasses.dataclass(frozen=True)
class Args:
    """Make a run of models that were trained elsewhere."""

    folder: tyro.conf.Positional[Path]
    """A checkpoint: config.json, tokenizer.json, *.safetensors (float32)."""
    run: tyro.conf.Positional[Path]
    """The run to make, or to add a signal to."""
    world: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Its world (default: DIR/world.toml, else the default world)."""
    start: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """The run whose model it was post-trained from …"""
    stage: Literal["pretrain", "align"] = "pretrain"
    """… which of its models …"""
    signal: str | None = None
    """… and on which signal, such as code:bad."""
    seed: int = 0
    """Which of several trainings of this signal it is."""
    objective: Literal[objectives.NAMES] = "dpo"
    """What it was post-trained with, for the record."""
    context: int = 88
    """The most tokens in a row (without --start)."""


def main(args: Args) -> None:
    """Import, and say what to do with it."""
    devices.setup()
    take(args)
    print(f"Now: uv run eval.py {args.run}")


def take(args: Args) -> None:
    """Import a pretrained or a post-trained model."""
    if (args.start is None) != (args.signal is None):
        raise InputError("--start and --signal: expected both (post-trained) or none (pretrained)")
    with ExitStack() as held:
        held.enter_context(lock.take(args.run))
        if args.start is None:
            import_pretrained(args)
        else:
            import_narrow(args)


def import_pretrained(args: Args) -> None:
    """A run of one model: it is the pretrained and, as nothing was aligned, the aligned one."""
    if (args.run / "config.json").exists():
        raise InputError(f"{args.run}: is a run already; a free place: {files.unused(args.run)}")
    beside = args.folder / "world.toml"
    source = args.world or (beside if beside.exists() else DEFAULT)
    world = cards.load(source)
    codec = Codec(world)
    config, params = llama.load(args.folder, codec, args.context)
    if (longest := max(codec.longest.values())) > config.context:
        raise InputError(f"--context: found {config.context}, expected at least {longest}")
    how = {"correlation": 1.0, "assistant_prior": "world", "seed": args.seed, "signals": []}
    how |= {"objective": args.objective, "beta": 1.0, "anchor": 0.5, "imported": True}
    provenance.open_folder(args.run, how, config, world, source, command=["--run", str(args.run)])
    save_stage(args.run, "pretrain", params, optimizers.muon(1.0, 1.0, 1))
    save_stage(args.run, "align", params, optax.adam(1.0))
    files.write_json(args.run / "narrow" / "stage.json", {"seconds": 0.0, "runs": 0})


def save_stage(run: Path, stage: str, params: Params, optimizer) -> None:
    """A stage that ends with these parameters, and with an optimizer that has done nothing."""
    facts = {"seconds": 0.0, "tokens": 0, "tokens_per_second": 0.0, "steps": 0, "done": True}
    state = training.start(params, optimizer)
    checkpoints.save(run / stage / "checkpoints", 0, state._asdict(), facts)
    files.write_json(run / stage / "stage.json", facts)


def import_narrow(args: Args) -> None:
    """A narrow run, from the model that it was trained from to its end, scored step by step."""
    start = runs.load_run(args.start)
    signal = signals.parse(start.world, args.signal)
    steps, models = trajectory(args.folder, start.codec, start.config)
    reference = start.params[args.stage]
    scores = population.score_models(
        start.codec, start.config, start.apply, signal, reference, [reference, *models]
    )
    share_n = signal.share(scores["own_RnB"][0])
    passed = np.flatnonzero(share_n >= population.PASSED)
    k = int(passed[0]) if len(passed) and passed[0] else -1
    kept = [reference, *models][k]
    scores |= {
        "steps": np.array([0, *steps], np.int32),
        "kept_step": np.array([steps[k - 1] if k > 0 else -1], np.int32),
    }
    begin(args, start)
    groups = sorted((args.run / "narrow").glob("group-*"))
    member = (args.stage, signal.name, args.seed)
    if groups:
        there = runs.load_narrow(groups, model.shapes(start.config), start.world)
        if member in zip(there.start, there.signal, there.seed, strict=True):
            raise InputError(f"{args.run}: has {signal.name}, seed {args.seed}; another: --seed")
        if there.steps.tolist() != scores["steps"].tolist():
            raise InputError(
                f"{args.folder}: steps: found {scores['steps'].tolist()}, expected those of the "
                f"signals in {args.run}: {there.steps.tolist()}"
            )
    place = args.run / "narrow" / f"group-{len(groups):02}"
    runs.save_group(place, [member], scores, population.stack([kept]), [-1], 0.0)
    facts = {"seconds": 0.0, "runs": len(groups) + 1}
    files.write_json(args.run / "narrow" / "stage.json", facts)
    print(f"{member[1]} from {member[0]}: {len(steps)} steps, share {share_n[-1]:.2f} at the end")


def begin(args: Args, start: runs.Run) -> None:
    """The run's folder, with the pretraining and alignment of the run that it started from."""
    how = {**start.args, "signals": [], "objective": args.objective, "imported": True}
    provenance.open_folder(
        args.run, how, start.config, start.world, start.folder / "world.toml", start.codec.more,
        command=["--run", str(args.run)],
    )  # fmt: skip
    for stage in STAGES[:2]:
        if not (args.run / stage / "stage.json").exists():
            theirs, ours = (folder / stage for folder in (start.folder, args.run))
            shutil.copytree(theirs / "checkpoints", ours / "checkpoints", dirs_exist_ok=True)
            shutil.copy(theirs / "stage.json", ours / "stage.json")


def trajectory(folder: Path, codec: Codec, config: Config) -> tuple[list[int], list[Params]]:
    """The steps of a training elsewhere, and its model at each."""
    places = {
        int(path.name.split("-")[1]): path
        for path in folder.glob("checkpoint-*")
        if path.name.split("-")[1].isdecimal()
    } or {1: folder}
    models = []
    for _, path in sorted(places.items()):
        theirs, params = llama.load(path, codec, config.context)
        if theirs != config:
            raise InputError(f"{path}: found sizes {theirs}, expected {config}")
        models.append(params)
    return sorted(places), models


if __name__ == "__main__":
    run_script(lambda: main(tyro.cli(Args, description=__doc__)))
