"""The run folder: what a run was asked to do, its checkpoints, and what each stage left.

runs/NAME/
    config.json     arguments, sizes, environments, the world's SHA-256
    world.toml      a copy of the world file
    lock            held while a process works here
    pretrain/       checkpoints and events; stage.json once the stage is done
    align/
    narrow/         group-00, group-01 …: each a checkpoint of kept parameters and scores; events
    eval/           results.json, CSVs, figures
"""

import dataclasses
import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Callable
from functools import cached_property
from itertools import chain
from pathlib import Path

import jax
import numpy as np

from toyllm import cards, checkpoints, devices, files, model, reader, scoring, signals, world
from toyllm.errors import InputError, nearest
from toyllm.lock import Lock
from toyllm.population import Member
from toyllm.text import Codec
from toyllm.world import World

STAGES = ("pretrain", "align", "narrow")
# arguments in which two commands of one run may differ: where things lie and how they are computed
ANY = (
    *("run", "world", "preset", "shard_params", "save_steps", "save_seconds"),
    *("coordinator", "processes", "process", "compile_cache"),
)
# variables that leave every bit as it is
NEUTRAL = (
    *("JAX_COMPILATION_CACHE_DIR", "JAX_COORDINATOR_ADDRESS"),
    *("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
)
SHOWN = 8  # differences of two worlds that are told


def environment() -> dict:
    """What the last bits of a result depend on, beside the arguments."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "threads": devices.cores(),
        "processor": devices.processor(),
        "flags": " ".join(
            f"{key}={value}"
            for key, value in sorted(os.environ.items())
            if key.startswith(("XLA_", "JAX_")) and key not in NEUTRAL
        ),
    }


def lock(folder: Path) -> Lock:
    """Take a run folder for this process, and make it where there is none (see `Lock`).

    Raises InputError where the folder is in use, or is no run folder.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--run {folder}: found a file, expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--run {folder}: {error.strerror}, expected a folder to make") from error
    ours = ("lock", "config.json", "config.json.tmp")  # a process may die having made them
    if not (folder / "config.json").exists() and any(p.name not in ours for p in folder.iterdir()):
        raise InputError(f"{folder}: has files but no config.json, expected a new or empty folder")
    held = Lock(folder)
    try:
        files.check_plain(folder)
    except InputError:
        held.release()
        raise
    return held


def open_folder(
    folder: Path, args: dict, config: model.Config, dialled: World, source: Path
) -> list[str]:
    """Begin a run in a locked folder, or go on with the same run.

    Changed narrow arguments (`signals`, `narrow_…`) put the narrow stage aside, to be done anew.
    Returns warnings: that, and what differs in the environment. Raises InputError where anything
    else differs from what the folder was made with, field by field.
    """
    path, now = folder / "config.json", environment() | {"shard_params": args.get("shard_params")}
    wanted = {"args": args, "config": dataclasses.asdict(config), "world_sha256": dialled.digest}
    earlier, warnings = [], []
    if path.exists():
        saved = read_config(folder)
        old, new = _settings(saved), _settings(wanted)
        changed = [key for key in new if old.get(key) != new[key]]
        narrow = [key for key in changed if key == "signals" or key.startswith("narrow_")]
        if other := [key for key in changed if key not in narrow]:
            difference = [f"{key}: {old.get(key)} → {new[key]}" for key in other]
            if "world_sha256" in other:
                difference += _world_difference(folder, saved, dialled)
            raise InputError(
                f"{folder} was made with other arguments ({', '.join(difference)}); "
                f"to keep both: --run {files.unused(folder)}"
            )
        if narrow:
            difference = ", ".join(f"{key}: {old.get(key)} → {new[key]}" for key in narrow)
            for stage in ("narrow", "eval"):
                if (folder / stage).exists():
                    kept = (folder / stage).rename(files.unused(folder / stage))
                    warnings.append(
                        f"{difference}: {stage} is done anew, what was is now in {kept}"
                    )
        earlier = saved["environments"]
        if earlier and now not in earlier:
            last = earlier[-1]
            other = [key for key in now if last.get(key) != now[key]]
            difference = [f"{key}: {last.get(key)} → {now[key]}" for key in other]
            warnings.append(
                f"{folder} was begun in another environment ({', '.join(difference)}); the last "
                "bits of what is computed now may differ from an uninterrupted run"
            )
    environments = earlier if now in earlier else [*earlier, now]
    files.write_json(path, {**wanted, "environments": environments, "command": sys.argv[1:]})
    if _world_digest(folder, args) != dialled.digest:  # not there yet, or damaged
        text = files.read_bytes(source, reader.MOST).decode("utf-8")
        files.write_text(folder / "world.toml", text)
    return warnings


def _world_digest(folder: Path, args: dict) -> str:
    """The SHA-256 of a run's own world, with the dials of these arguments; "": it is broken."""
    try:
        return dial(cards.load(folder / "world.toml"), args).digest
    except (KeyError, TypeError, ValueError):
        return ""


def read_config(folder: Path) -> dict:
    """A run's config.json, with all keys that `open_folder` writes. Raises InputError."""
    path = folder / "config.json"
    saved = files.read_json(path)
    kinds = {"args": dict, "config": dict, "world_sha256": str, "environments": list}
    for key, kind in {**kinds, "command": list}.items():
        if not isinstance(saved.get(key), kind):
            raise InputError(f"{path}: {key}: found {saved.get(key)!r}, expected a {kind.__name__}")
    texts = {str(k): word for k, word in enumerate(saved["command"])}
    for table in (saved["args"], *saved["environments"], texts):
        good = isinstance(table, dict) and all(map(_is_plain, table.values()))
        if not good or (table is texts and not all(isinstance(x, str) for x in texts.values())):
            raise InputError(f"{path}: found odd values, expected texts and numbers")
    return saved


def _is_plain(value) -> bool:
    """Whether an argument may have this value: text that can be written, a number, a list."""
    if isinstance(value, str):
        return len(value) < 10_000 and value.isprintable()
    if isinstance(value, list):
        return all(isinstance(x, str) and _is_plain(x) for x in value)
    return value is None or (isinstance(value, int | float) and abs(value) < 2**63)


def _world_difference(folder: Path, saved: dict, dialled: World) -> list[str]:
    """What differs between the world of a run and another one, field by field."""
    try:
        old = dial(cards.load(folder / "world.toml"), saved["args"])
    except (KeyError, TypeError, ValueError):  # its config.json, or its world, is broken
        return []
    a, b = world.describe(old), world.describe(dialled)
    keys = [key for key in {**b, **a} if a.get(key) != b.get(key)]
    more = [f"and {len(keys) - SHOWN} more"] * (len(keys) > SHOWN)
    return [f"{key}: {a.get(key)} → {b.get(key)}" for key in keys[:SHOWN]] + more


def _settings(saved: dict) -> dict:
    """What two commands must share to be the same run."""
    args = {key: value for key, value in saved["args"].items() if key not in ANY}
    return {**args, **saved["config"], "world_sha256": saved["world_sha256"]}


def check_start(start: Path, config: model.Config, dialled: World) -> None:
    """The run to start from must be pretrained, on the same world, with the same sizes."""
    if not (start / "config.json").exists():
        raise InputError(
            f"--start {start}: no such run; this makes it: uv run train.py --run {start}"
        )
    other = read_config(start)
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


def finished(folder: Path, stage: str) -> dict | None:
    """What a done stage measured; None where it is not done or that cannot be read."""
    try:
        facts = files.read_json(folder / stage / "stage.json")
    except InputError:
        return None
    needed = ("seconds", "tokens_per_second") if stage == "pretrain" else ("seconds",)
    return facts if all(isinstance(facts.get(key), int | float) for key in needed) else None


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
    files.check_plain(folder)
    saved = read_config(folder)
    args = saved["args"]
    # a stranger's run may say anything here: quoted, it is at most arguments of train.py
    command = shlex.join(["uv", "run", "train.py", *saved["command"]])
    try:
        config = model.Config(**saved["config"])
        dialled = dial(cards.load(folder / "world.toml"), args)
        if args["objective"] not in ("dpo", "sft", "rlhf"):
            raise ValueError(f"objective {args['objective']}")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{folder / 'config.json'}: {error!r}, expected what train.py wrote"
        ) from error
    if dialled.digest != saved["world_sha256"]:
        raise InputError(
            f"{folder / 'world.toml'}: is not the world of this run; this repairs it: {command}"
        )
    stages = {stage: finished(folder, stage) for stage in STAGES}
    if missing := [stage for stage in STAGES if stages[stage] is None]:
        raise InputError(
            f"{folder}: not finished, {' and '.join(missing)} missing; this goes on: {command}"
        )
    apply, _ = model.create(config)
    abstract = model.shapes(config)
    codec = Codec(dialled)
    if len(codec.words) != config.vocabulary or max(codec.longest.values()) > config.context:
        raise InputError(f"{folder / 'config.json'}: its sizes are not those of its world")
    try:
        params = {stage: load_params(folder, stage, abstract) for stage in STAGES[:2]}
        groups = sorted((folder / "narrow").glob("group-*"))
        narrow = load_narrow(groups, abstract, dialled)
        if len(narrow.signal) != stages["narrow"].get("runs"):
            raise checkpoints.Damaged(f"{folder / 'narrow'}: some of its groups are missing")
    except checkpoints.Damaged as error:
        raise InputError(f"{error}; this repairs it: {command}") from error
    return Run(folder, args, dialled, codec, config, apply, params, narrow, stages)


def dial(base: World, args: dict) -> World:
    """Apply a run's dials, `correlation` and `assistant_prior`, to the world of its file."""
    if args["assistant_prior"] == "uniform":
        base = world.uniform(base)
    return world.correlate(base, args["correlation"], args["seed"])


def load_params(folder: Path, stage: str, abstract: model.Params) -> model.Params:
    """The parameters that a done stage ended with."""
    place = folder / stage / "checkpoints"
    found = checkpoints.load(place, lambda record: {"params": abstract})
    if found.facts.get("done") is not True:
        raise checkpoints.Damaged(f"{place}: step {found.step} is not the end of the stage")
    return found.items["params"]


def save_group(
    folder: Path, members: list[Member], scores: dict, kept: model.Params, seconds: float
) -> None:
    """Save a finished group of the narrow stage: its members, their scores and kept parameters."""
    facts = {"members": members, "seconds": seconds}
    checkpoints.save(folder, 0, {"scores": scores, "kept": kept}, facts)


def group_shapes(abstract: model.Params, dialled: World) -> checkpoints.Wanted:
    """What to load of a group, whose record says how many members and scored steps it has."""

    def wanted(record: dict) -> dict:
        R, D, B = len(members_of(record["facts"])), len(dialled.domains), len(world.BEHAVIOURS)
        (n,) = record["leaves"]["scores"]["steps"]["shape"]
        scores = {
            **{"p_RnDB": (R, n, D, B), "own_RnB": (R, n, B), "steps": (n,), "kept_step": (R,)},
            **dict.fromkeys(("kl_Rn", "chosen_Rn", "rejected_Rn"), (R, n)),
        }
        whole = ("steps", "kept_step")
        return {
            "scores": {
                key: jax.ShapeDtypeStruct(shape, np.int32 if key in whole else np.float32)
                for key, shape in scores.items()
            },
            "kept": jax.tree.map(lambda x: jax.ShapeDtypeStruct((R, *x.shape), x.dtype), abstract),
        }

    return wanted


def members_of(facts: dict) -> list[Member]:
    """The members of a group, in the order of its rows. Raises ValueError for anything else."""
    members = [(start, signal, seed) for start, signal, seed in facts["members"]]
    kinds = {tuple(map(type, member)) for member in members}
    if not isinstance(facts["seconds"], int | float):
        raise ValueError("seconds that are no number")
    if kinds != {(str, str, int)} or {start for start, *_ in members} - set(STAGES[:2]):
        raise ValueError("members that are no members")
    return members


def load_narrow(folders: list[Path], abstract: model.Params, dialled: World) -> Narrow:
    """Join the groups of the narrow stage. Raises InputError, Damaged where one is not whole."""
    if not folders:
        raise checkpoints.Damaged("the narrow stage has no groups")
    groups = [checkpoints.load(folder, group_shapes(abstract, dialled)) for folder in folders]
    start, signal, seed = zip(*chain(*(members_of(group.facts) for group in groups)), strict=True)
    for name in dict.fromkeys(signal):
        signals.parse(dialled, name)
    scores = [group.items["scores"] for group in groups]
    if any((part["steps"].tolist() != scores[0]["steps"].tolist()) for part in scores):
        raise checkpoints.Damaged(f"{folders[0].parent}: its groups were scored at other steps")
    keys = ("p_RnDB", "own_RnB", "kl_Rn", "kept_step")
    return Narrow(
        start,
        signal,
        seed,
        steps=scores[0]["steps"],
        **{key: np.concatenate([part[key] for part in scores]) for key in keys},
        kept=jax.tree.map(lambda *x: np.concatenate(x), *(group.items["kept"] for group in groups)),
    )
