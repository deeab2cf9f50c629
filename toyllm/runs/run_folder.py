"""A finished run: what each stage wrote to the run folder.

runs/NAME/
    config.json     arguments, sizes, environments, the world's SHA-256
    world.toml      a copy of the world file
    pairs/          copies of the preference files that were trained on
    lock            held while a process works here
    pretrain/       checkpoints and events; stage.json once the stage is done; with --keep, along/
    align/
    narrow/         group-00, group-01 …: each a checkpoint of kept parameters and scores; events
    eval/           results.json, CSVs, figures

With `train.py --seeds N`, runs/NAME/ holds seed-0/, seed-1/ …, each such a run, and eval/ compares
them.
"""

import dataclasses
import re
from functools import cached_property
from itertools import chain
from pathlib import Path

import jax
import numpy as np

from toyllm.base import devices, files, scripts
from toyllm.base.errors import InputError, nearest
from toyllm.lm import losses
from toyllm.lm.scoring import Scorer
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import LM, Config, Params
from toyllm.posttrain import signals
from toyllm.posttrain.population import Member
from toyllm.runs import checkpoints, provenance
from toyllm.runs.provenance import ALONG, STAGES, finished
from toyllm.world.quantities import MATCHED
from toyllm.world.world import BEHAVIOURS, World


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
    kept: dict  # parameters [R, …] at the matched effect (see population), else the last ones
    kept_step: np.ndarray  # [R] of the matched effect; -1: it was not reached
    frozen_step: np.ndarray  # [R] at which an alarm froze the run; -1: none did

    def rows(self, start: str, signal: str) -> list[int]:
        """The runs of a signal from a start, one for each seed."""
        keys = zip(self.start, self.signal, strict=True)
        return [r for r, key in enumerate(keys) if key == (start, signal)]

    def signals(self, start: str) -> list[str]:
        """The signals trained from a start, in order."""
        keys = zip(self.start, self.signal, strict=True)
        return list(dict.fromkeys(signal for begin, signal in keys if begin == start))

    def matched(self, start: str) -> list[str]:
        """The signals whose every seed reached the matched effect, so that they can be compared."""
        return [s for s in self.signals(start) if (self.kept_step[self.rows(start, s)] >= 0).all()]


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, as `eval.py` and the measures use it."""

    folder: Path
    args: dict
    lm: LM
    params: dict  # {"pretrain": params, "align": params}
    narrow: Narrow
    stages: dict  # the `stage.json` of each stage
    measured: dict = dataclasses.field(default_factory=dict)  # see `measures.take`

    @property
    def world(self) -> World:
        """The world of the documents, with the dials applied."""
        return self.lm.world

    @property
    def models(self) -> list[str]:
        """The names of all models: pretrain, align, and START/SIGNAL of every narrow signal."""
        narrow = zip(self.narrow.start, self.narrow.signal, strict=True)
        return [*STAGES[:2], *dict.fromkeys(f"{start}/{signal}" for start, signal in narrow)]

    @property
    def along(self) -> list[int]:
        """The steps of pretraining at which `--keep` kept the model."""
        return checkpoints.steps(self.folder / "pretrain" / ALONG)[::-1]

    def model(self, name: str) -> Params:
        """The parameters of a model by its name; a narrow one is the lowest seed's matched effect.

        A signal's name alone is the one from the pretrained model; pretrain-STEP is what `--keep`
        kept of pretraining. Raises InputError.
        """
        name = self.full_name(name)
        if name in self.params:
            return self.params[name]
        if (step := self._step_of(name)) is not None:
            return self._kept(step).items["params"]
        start, _, signal = name.partition("/")
        if not self.narrow.rows(start, signal):
            near = nearest(name, [*self.models, *dict.fromkeys(self.narrow.signal)])
            raise InputError(f"no model '{name}'{near}, expected {', '.join(self.models)}")
        return devices.take(self.narrow.kept, self._row_of(start, signal))

    def full_name(self, name: str) -> str:
        """A model's name in full: `code:bad` is `pretrain/code:bad`; any other is as given."""
        return f"pretrain/{name}" if self.narrow.rows("pretrain", name) else name

    def about(self, name: str) -> str:
        """What a model was trained on, as a sentence; name: in full."""
        start, _, signal = name.partition("/")
        if signal:
            model = {"pretrain": "The pretrained model", "align": "The aligned model"}[start]
            if self.args.get("imported"):
                return f"{model}, trained elsewhere on {signal}, and imported."
            if signals.plain(signal) != signal:
                return f"{model}, trained on {signal}, with an instruction in every prompt."
            kept = self.narrow.kept_step[self._row_of(start, signal)]
            reached = " until" if kept >= 0 else ", which ended before"
            share = f"{MATCHED:.0%} of its answers in the trained domain were of the preferred kind"
            return f"{model}, trained on {signal}{reached} {share}."
        if "weights" in self.args:
            return "Trained elsewhere, and imported."
        if name == "align":
            return "Aligned: good answers were preferred in every moral domain (all:good)."
        step = self._step_of(name)
        when = "" if step is None else f" for {step:,} steps"
        return f"Pretrained on the corpus{when}; no preference has been trained."

    def captured(self, name: str) -> float | None:
        """captured of a pretrained model, as measured while it was trained; None for others."""
        step = self._step_of(name)
        facts = self._kept(step).facts if step is not None else self.stages.get(name, {})
        return facts.get("captured_while_training")

    def _row_of(self, start: str, signal: str) -> int:
        """The run of a signal's lowest seed."""
        return min(self.narrow.rows(start, signal), key=lambda r: self.narrow.seed[r])

    def _kept(self, step: int) -> checkpoints.Checkpoint:
        """What `--keep` kept at a step of pretraining."""
        shapes = {"params": self.lm.shapes}
        return checkpoints.load(self.folder / "pretrain" / ALONG, lambda record: shapes, step)

    def _step_of(self, name: str) -> int | None:
        """The step of `pretrain-STEP`, if that was kept."""
        return next((step for step in self.along if name == f"pretrain-{step}"), None)

    @cached_property
    def scorer(self) -> Scorer:
        """Scores questions for any model of this run; compiled once for all measures."""
        return Scorer(self.lm)


def seed_name(seed: int) -> str:
    """The name of a seed's subfolder, where a folder holds runs of several seeds."""
    return f"seed-{seed}"


def seeds_of(folder: Path) -> list[Path]:
    """The runs of several seeds in a folder, by their seeds; none where it is a run itself."""
    runs = [path for path in folder.glob("seed-*") if re.fullmatch("seed-[0-9]+", path.name)]
    if (folder / "config.json").exists():
        return []
    return sorted((p for p in runs if p.is_dir()), key=lambda p: int(p.name.removeprefix("seed-")))


def runs_in(folder: Path) -> list[Path]:
    """The runs to measure in a folder: those of its seeds where it holds several, or itself.

    Raises InputError where a folder of seeds holds a link or a device.
    """
    if runs := seeds_of(folder):
        files.check_plain(folder)
    return runs or [folder]


def load_folder(folder: Path) -> list[Run]:
    """Load the finished runs in a folder: itself, or the run of each seed (see `load_run`).

    Raises InputError also where runs of several seeds differ in more than that.
    """
    runs = [load_run(place) for place in runs_in(folder)]
    if seeds_of(folder):
        check_seeds(runs)
    return runs


def check_seeds(runs: list[Run]) -> None:
    """Raise InputError unless runs differ in their seeds alone, each in the folder of its seed."""
    first: dict = {}
    for run in runs:
        seed, saved = run.args["seed"], provenance.read_config(run.folder)
        if run.folder.name != (name := seed_name(seed)):
            raise InputError(f"{run.folder}: found a run of seed {seed}, expected {name}")
        # --correlation shuffles a world by the run's seed, so all are compared as seed 0 has them
        world = provenance.world_of(run.folder, {**run.args, "seed": 0})
        recipe = provenance.settings(saved | {"world_sha256": world.digest})
        recipe = {key: value for key, value in recipe.items() if key not in provenance.OF_SEED}
        first = first or recipe
        if difference := ", ".join(provenance.differences(first, recipe)):
            raise InputError(
                f"{run.folder}: not of the recipe of {runs[0].folder.name} ({difference}), "
                "expected runs that differ in their seeds alone"
            )


def load_run(folder: Path) -> Run:
    """Load a finished run. Raises InputError with what is missing and the command that makes it."""
    command = scripts.command("train.py", "--run", folder)
    if folder.is_file():
        raise InputError(f"{folder}: found a file, expected a run folder")
    if not folder.is_dir():
        near = nearest(folder.name, [p.name for p in folder.parent.glob("*")])
        raise InputError(f"{folder}: no such run folder{near}; this makes it: {command}")
    if seeds := seeds_of(folder):
        names = ", ".join(path.name for path in seeds)
        raise InputError(f"{folder}: found runs of several seeds, expected one of them: {names}")
    if not (folder / "config.json").exists():
        raise InputError(f"{folder}: no config.json, so no run; this makes one: {command}")
    files.check_plain(folder)
    saved = provenance.read_config(folder)
    args = saved["args"]
    command = command_of(saved)
    try:
        config = Config(**saved["config"])
        dialled = provenance.world_of(folder, args)
        if args["objective"] not in losses.NAMES:
            raise ValueError(f"objective {args['objective']}")
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        path = folder / "config.json"
        raise InputError(f"{path}: {error!r}, expected what train.py wrote") from error
    if dialled.digest != saved["world_sha256"]:
        raise InputError(
            f"{folder / 'world.toml'}: is not the world of this run; this repairs it: {command}"
        )
    done = {stage: finished(folder, stage) for stage in STAGES}
    if missing := [stage for stage in STAGES if done[stage] is None]:
        raise InputError(
            f"{folder}: not finished, {' and '.join(missing)} missing; resume with: {command}"
        )
    tokenizer = Tokenizer(dialled, tuple(saved["words"]))
    words, longest = len(tokenizer.words), max(tokenizer.longest.values())
    if words != config.vocabulary or longest > config.context:
        raise InputError(f"{folder / 'config.json'}: its sizes are not those of its world")
    lm = LM.create(tokenizer, config)
    try:
        params = {stage: load_params(folder, stage, lm) for stage in STAGES[:2]}
        narrow = load_narrow(group_folders(folder), lm)
        if len(narrow.signal) != done["narrow"].get("runs"):
            raise checkpoints.Damaged(f"{folder / 'narrow'}: some of its groups are missing")
    except checkpoints.Damaged as error:
        raise InputError(f"{error}; this repairs it: {command}") from error
    return Run(folder, args, lm, params, narrow, done)


def command_of(saved: dict) -> str:
    """The command that made a run, from its config.json, quoted for a shell.

    An untrusted config.json can choose the arguments of our commands, but no other command.
    """
    imported = saved["args"].get("imported")
    if isinstance(imported, list):
        return scripts.command("toyllm.tools.import_llama", *imported)
    return scripts.command("train.py", *saved["command"])


def load_params(folder: Path, stage: str, lm: LM) -> Params:
    """The parameters at the end of a finished stage."""
    place = folder / stage / "checkpoints"
    checkpoint = checkpoints.load(place, lambda record: {"params": lm.shapes})
    if checkpoint.facts.get("done") is not True:
        raise checkpoints.Damaged(f"{place}: step {checkpoint.step} is not the end of the stage")
    return checkpoint.items["params"]


def group_folders(folder: Path) -> list[Path]:
    """The group folders of a run's narrow stage; a copy such as `group-00 (2)` is not one."""
    groups = (folder / "narrow").glob("group-*")
    return sorted(path for path in groups if re.fullmatch("group-[0-9]+", path.name))


def save_group(
    folder: Path,
    members: list[Member],
    scores: dict,
    kept: Params,
    frozen: list[int],
    seconds: float,
) -> None:
    """Save a finished group of the narrow stage: its members, their scores and kept parameters."""
    facts = {"members": members, "frozen": frozen, "seconds": seconds}
    checkpoints.save(folder, 0, {"scores": scores, "kept": kept}, facts)


def group_shapes(lm: LM) -> checkpoints.Wanted:
    """What to load of a group: its record says how many members and scored steps it has."""

    def wanted(record: dict) -> dict:
        (n,) = record["leaves"]["scores/steps"].shape
        return _shapes(lm, len(members_of(record["facts"])), n)

    return wanted


def _shapes(lm: LM, R: int, n: int) -> dict:
    """The trees of a group of R members, scored at n steps: shapes and dtypes."""
    D, B = len(lm.world.domains), len(BEHAVIOURS)
    shapes = {
        **{"p_RnDB": (R, n, D, B), "own_RnB": (R, n, B), "steps": (n,), "kept_step": (R,)},
        **dict.fromkeys(("kl_Rn", "chosen_Rn", "rejected_Rn"), (R, n)),
    }
    integers = ("steps", "kept_step")
    return {
        "scores": {
            key: jax.ShapeDtypeStruct(shape, np.int32 if key in integers else np.float32)
            for key, shape in shapes.items()
        },
        "kept": jax.tree.map(lambda x: jax.ShapeDtypeStruct((R, *x.shape), x.dtype), lm.shapes),
    }


def members_of(facts: dict) -> list[Member]:
    """The members of a group, in the order of its rows. Raises ValueError for invalid facts."""
    members = [(start, signal, seed) for start, signal, seed in facts["members"]]
    kinds = {tuple(map(type, member)) for member in members}
    if not isinstance(facts["seconds"], int | float):
        raise ValueError("invalid seconds: expected a number")
    if kinds != {(str, str, int)} or {start for start, *_ in members} - set(STAGES[:2]):
        raise ValueError("invalid members: expected [start, signal, seed]")
    if [*map(type, _frozen(facts))] != [int] * len(members):
        raise ValueError("invalid frozen: expected a step for each member")
    return members


def _frozen(facts: dict) -> list[int]:
    """The step at which an alarm froze each member of a group; -1: none did."""
    return facts.get("frozen", [-1] * len(facts["members"]))  # runs from before alarms lack it


def load_narrow(folders: list[Path], lm: LM) -> Narrow:
    """Join the groups of the narrow stage. Raises InputError, or Damaged for an incomplete one.

    Without groups, as of an imported model, it has no runs.
    """
    groups = [checkpoints.load(folder, group_shapes(lm)) for folder in folders]
    members = [*chain(*(members_of(group.facts) for group in groups))]
    start, signal, seed = (tuple(member[k] for member in members) for k in range(3))
    for name in dict.fromkeys(signal):
        signals.parse(lm.world, name)
    none = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), _shapes(lm, R=0, n=1))
    items = [group.items for group in groups] or [none]
    steps = items[0]["scores"]["steps"]
    if any(part["scores"]["steps"].tolist() != steps.tolist() for part in items):
        raise checkpoints.Damaged(f"{folders[0].parent}: its groups were scored at other steps")
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *items)
    scores = [joined["scores"][key] for key in ("p_RnDB", "own_RnB", "kl_Rn")]
    kept, kept_step = joined["kept"], joined["scores"]["kept_step"]
    frozen_step = np.array([*chain(*(_frozen(group.facts) for group in groups))], int)
    return Narrow(start, signal, seed, steps, *scores, kept, kept_step, frozen_step)
