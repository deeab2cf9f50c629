"""The run folder: what a run was asked to do, its checkpoints, and what each stage left.

runs/NAME/
    config.json     arguments, sizes, versions, the world's SHA-256
    world.toml      a copy of the world file
    pretrain/       checkpoints and events; stage.json once the stage is done
    align/
    narrow/         group-00, group-01 …: kept and final parameters, scores.npz
    eval/           results.json, CSVs, figures
"""

import dataclasses
import importlib.metadata
import json
import platform
import shlex
import shutil
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import jax
import numpy as np

from toyllm import cards, devices, model, scoring, world
from toyllm.errors import InputError, nearest
from toyllm.text import Codec
from toyllm.world import World

STAGES = ("pretrain", "align", "narrow")
# arguments in which two commands of one run may differ: where things lie and how they are computed
ANY = (
    *("run", "world", "preset", "shard_params"),
    *("coordinator", "processes", "process", "compile_cache"),
)


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all; only the first process writes."""
    if not devices.first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    draft.replace(path)


def read_json(path: Path) -> dict:
    """Read JSON. Raises InputError, one line, where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}, expected JSON written by train.py") from error


def versions() -> dict:
    """What the bits of a result depend on."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "machine": platform.machine(),
    }


def open_folder(
    folder: Path, args: dict, config: model.Config, dialled: World, source: Path
) -> None:
    """Begin a run in `folder`, or go on with the same run.

    Changed narrow arguments (`signals`, `narrow_…`) drop the narrow stage, to be done anew.
    Raises InputError where anything else differs from what the folder was made with.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--run {folder}: found a file, expected a folder")
    path = folder / "config.json"
    wanted = {"args": args, "config": dataclasses.asdict(config), "world_sha256": dialled.digest}
    if path.exists():
        saved = read_json(path)
        old, new = _settings(saved), _settings(wanted)
        changed = [key for key in new if old.get(key) != new[key]]
        narrow = [key for key in changed if key == "signals" or key.startswith("narrow_")]
        if other := [key for key in changed if key not in narrow]:
            difference = ", ".join(f"{key}: {old.get(key)} → {new[key]}" for key in other)
            free = next(f for i in range(2, 10_000) if not (f := Path(f"{folder}-{i}")).exists())
            raise InputError(
                f"{folder} was made with other arguments ({difference}); to keep both: --run {free}"
            )
        if narrow:
            for stage in ("narrow", "eval"):
                shutil.rmtree(folder / stage, ignore_errors=True)
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: has files but no config.json, expected a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "world.toml").exists():
        shutil.copyfile(source, folder / "world.toml")
    first = read_json(path)["versions"] if path.exists() else versions()
    write_json(path, {**wanted, "versions": first, "command": shlex.join(sys.argv)})


def _settings(saved: dict) -> dict:
    """What two commands must share to be the same run."""
    args = {key: value for key, value in saved.get("args", {}).items() if key not in ANY}
    return {**args, **saved.get("config", {}), "world_sha256": saved.get("world_sha256")}


def check_start(start: Path, config: model.Config, dialled: World) -> None:
    """The run to start from must be pretrained, on the same world, with the same sizes."""
    if not (start / "config.json").exists():
        raise InputError(
            f"--start {start}: no such run; this makes it: uv run train.py --run {start}"
        )
    other = read_json(start / "config.json")
    if finished(start, "pretrain") is None:
        raise InputError(
            f"--start {start}: its pretraining is not finished; "
            f"this goes on: uv run train.py --run {start}"
        )
    mine = {**dataclasses.asdict(config), "world_sha256": dialled.digest}
    theirs = {**other["config"], "world_sha256": other["world_sha256"]}
    if changed := [key for key in mine if mine[key] != theirs.get(key)]:
        difference = ", ".join(f"{key}: {theirs.get(key)} → {mine[key]}" for key in changed)
        raise InputError(f"--start {start}: another world or other sizes ({difference})")


def finish(folder: Path, stage: str, facts: dict) -> None:
    """Mark a stage as done, with what it measured."""
    write_json(folder / stage / "stage.json", facts)


def finished(folder: Path, stage: str) -> dict | None:
    """What a done stage measured, or None."""
    path = folder / stage / "stage.json"
    return read_json(path) if path.exists() else None


def save(folder: Path, step: int, tree) -> None:
    """Save a tree of arrays as `folder/step`, atomically; the last two steps are kept.

    All processes call this; each writes what its devices hold.
    """
    from orbax.checkpoint import v1 as ocp

    keep = ocp.training.preservation_policies.LatestN(2)
    folder = folder.absolute()
    with ocp.training.Checkpointer(
        folder, preservation_policy=keep, cleanup_tmp_directories=True
    ) as checkpointer:
        checkpointer.save(step, tree, overwrite=True)


def latest(folder: Path) -> int | None:
    """The step of the newest checkpoint, or None."""
    steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit()] if folder.exists() else []
    return max(steps, default=None)


def load(folder: Path, abstract):
    """Load the newest checkpoint of a folder as NumPy arrays, of the shapes of `abstract`.

    Raises InputError where there is none, or where its shapes are others.
    """
    from orbax.checkpoint import v1 as ocp

    step = latest(folder)
    if step is None:
        raise InputError(f"{folder}: no checkpoint")
    place = jax.sharding.NamedSharding(devices.mesh(), jax.sharding.PartitionSpec())
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract
    )
    try:
        with ocp.training.Checkpointer(folder.absolute()) as checkpointer:
            return jax.device_get(checkpointer.load(step, abstract))
    except (ValueError, KeyError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{folder / str(step)}: cannot be restored: {first}") from error


@dataclasses.dataclass(frozen=True)
class Narrow:
    """The narrow stage: R runs, each scored n times under the Assistant, with no history."""

    start: tuple[str, ...]  # [R] pretrain or align
    signal: tuple[str, ...]  # [R]
    seed: tuple[int, ...]  # [R]
    steps: np.ndarray  # [n]
    p_RnDB: np.ndarray  # behaviour probabilities
    own_RnB: np.ndarray  # the trained domains' under the run's own prompt
    kl_Rn: np.ndarray  # from the reference, under its own prompt (nats)
    kept: dict  # parameters [R, …] at the matched effect (see population), else the last
    final: dict
    kept_step: np.ndarray  # [R]; -1: there was no such step

    def rows(self, start: str, signal: str) -> list[int]:
        """The runs of a signal from a start, one for each seed."""
        which = zip(self.start, self.signal, strict=True)
        return [r for r, key in enumerate(which) if key == (start, signal)]

    def signals(self, start: str) -> list[str]:
        """The signals trained from a start, in order."""
        which = zip(self.start, self.signal, strict=True)
        return list(dict.fromkeys(signal for begin, signal in which if begin == start))

    def matched(self, start: str) -> list[str]:
        """Those of which every seed was kept at the matched effect: what may be compared."""
        return [s for s in self.signals(start) if (self.kept_step[self.rows(start, s)] >= 0).all()]


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, as `eval.py` and the measures see it."""

    folder: Path
    args: dict
    world: World
    codec: Codec
    config: model.Config
    apply: model.Apply
    params: dict  # {"pretrain": params, "align": params}
    narrow: Narrow
    stages: dict  # what each stage measured of itself

    @cached_property
    def ask(self) -> Callable[..., np.ndarray]:
        """See `scoring.interviewer`: compiled once for all measures."""
        return scoring.interviewer(self.codec, self.config, self.apply)


def load_run(folder: Path) -> Run:
    """Load a finished run. Raises InputError saying what is missing and what makes it."""
    command = f"uv run train.py --run {folder}"
    if folder.is_file():
        raise InputError(f"{folder}: found a file, expected a run folder")
    if not folder.is_dir():
        near = nearest(folder.name, [p.name for p in folder.parent.glob("*")])
        raise InputError(f"{folder}: no such run folder{near}; this makes it: {command}")
    if not (folder / "config.json").exists():
        raise InputError(f"{folder}: no config.json, so no run; this makes one: {command}")
    saved = read_json(folder / "config.json")
    try:
        args = saved["args"]
        config = model.Config(**saved["config"])
        dialled = dial(cards.load(folder / "world.toml"), args)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'config.json'}: {error}, expected what train.py wrote"
        ) from error
    stages = {stage: finished(folder, stage) for stage in STAGES}
    if missing := [stage for stage in STAGES if stages[stage] is None]:
        again = (
            command if args.get("preset") == "default" else f"{command} --preset {args['preset']}"
        )
        raise InputError(
            f"{folder}: not finished, {' and '.join(missing)} missing; "
            f"this goes on: {(saved.get('command') and _again(saved)) or again}"
        )
    apply, _ = model.create(config)
    abstract = model.shapes(config)
    params = {stage: load(folder / stage / "params", abstract) for stage in STAGES[:2]}
    codec = Codec(dialled)
    groups = sorted((folder / "narrow").glob("group-*"))
    narrow = load_narrow(groups, abstract)
    return Run(folder, args, dialled, codec, config, apply, params, narrow, stages)


def _again(saved: dict) -> str:
    return "uv run " + saved["command"]


def dial(base: World, args: dict) -> World:
    """Apply a run's dials, `correlation` and `assistant_prior`, to the world of its file."""
    if args["assistant_prior"] == "uniform":
        base = world.uniform(base)
    return world.correlate(base, args["correlation"], args["seed"])


def save_group(folder: Path, rows: list[tuple[str, str, int]], scores: dict, trees: dict) -> None:
    """Save one finished group of the narrow stage; scores.npz, written last, marks it done."""
    save(folder / "params", 0, trees)
    if not devices.first():
        return
    start, signal, seed = zip(*rows, strict=True)
    draft = folder / "scores.tmp.npz"
    np.savez(draft, start=start, signal=signal, seed=seed, **scores)
    draft.replace(folder / "scores.npz")


def kept_steps(folder: Path) -> list[int]:
    """At which step each run of a finished group was kept; -1: never."""
    with np.load(folder / "scores.npz", allow_pickle=False) as file:
        return file["kept_step"].tolist()


def load_narrow(groups: list[Path], abstract) -> Narrow:
    """Join the groups of the narrow stage."""
    parts, trees = [], []
    for group in groups:
        with np.load(group / "scores.npz", allow_pickle=False) as file:
            parts.append(dict(file))
        R = len(parts[-1]["seed"])
        many = jax.tree.map(lambda x, R=R: jax.ShapeDtypeStruct((R, *x.shape), x.dtype), abstract)
        trees.append(load(group / "params", {"kept": many, "final": many}))

    def join(key: str) -> np.ndarray:
        return np.concatenate([part[key] for part in parts])

    params = jax.tree.map(lambda *x: np.concatenate(x), *trees)
    return Narrow(
        start=tuple(map(str, join("start"))),
        signal=tuple(map(str, join("signal"))),
        seed=tuple(map(int, join("seed"))),
        steps=parts[0]["steps"],
        **{key: join(key) for key in ("p_RnDB", "own_RnB", "kl_Rn", "kept_step")},
        kept=params["kept"],
        final=params["final"],
    )
