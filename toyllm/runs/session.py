"""A run while it trains: its folder and lock, its stages, and its output.

    with open_runs(args, lms, mesh, ...) as runs:
        for run in runs:
            with run.stage("align", optimizer, steps) as stage:
                if not stage.done:
                    for step, state, logs in stage.follow(training.fit(...)):
                        stage.log(step, ...)
                        if due([stage], step):
                            stage.save(step, state)
                params = stage.finish()

There is one run, or with --seeds one for each seed; `stages` is a stage of several that train at
once. The loops stay with the caller. `args` are the arguments of train.py.
"""

import contextlib
import dataclasses
import functools
import json
import shlex
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import jax
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from toyllm.base import devices, files, scripts
from toyllm.base.errors import InputError, warn
from toyllm.lm import transformer
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import LM, Config
from toyllm.posttrain.population import Member
from toyllm.runs import lock, provenance, run_folder
from toyllm.runs.provenance import STAGES, finished
from toyllm.runs.stage import Stage
from toyllm.runs.stopping import Stop
from toyllm.world.cards import Cards
from toyllm.world.world import World

# arguments that may differ between the processes of a run; files are compared by content
OF_ONE_PROCESS = (
    *("run", "preset", "world", "signals", "text", "compile_cache", "quiet", "json"),
    *("coordinator", "processes", "process"),
)


def create_models(args, tokenizer: Tokenizer, worlds: list[World]) -> list[LM]:
    """A language model of the given sizes for each world. Raises InputError, naming the flags.

    The worlds have the words of `tokenizer`; all models share the functions of one.
    """
    sizes = {"context": args.context, "D": args.width, "L": args.layers, "H": args.heads}
    try:
        lm = LM.create(tokenizer, Config(len(tokenizer.words), **sizes, F=args.mlp))
        return [lm.speaking_of(world) for world in worlds]
    except ValueError as error:
        raise InputError(f"--width, --layers, --heads, --mlp: {error}") from error


def each_seed(args) -> list:
    """The arguments of each run: with --seeds N, of N runs in subfolders `seed-K`, else `args`."""
    if args.seeds == 1:
        if runs := run_folder.seeds_of(args.run):
            raise InputError(
                f"--run {args.run}: found runs of several seeds ({runs[0].name} …), expected one "
                f"run; give --seeds, or --run {shlex.quote(str(files.unused(args.run)))}"
            )
        return [args]
    if (args.run / "config.json").exists():
        fresh = shlex.quote(str(files.unused(args.run)))
        raise InputError(
            f"--seeds: {args.run} holds a single run, try another folder: --run {fresh}"
        )
    if args.shard_params:
        raise InputError("--seeds: with --shard-params only one seed can be trained")

    def of(seed: int):
        name = run_folder.seed_name(seed)
        start = args.start and args.start / name
        return dataclasses.replace(args, run=args.run / name, seed=seed, seeds=1, start=start)

    return [of(args.seed + k) for k in range(args.seeds)]


@contextlib.contextmanager
def open_runs(
    args,
    lms: list[LM],
    mesh: Mesh,
    cards: Cards,
    members: list[Member],
    signals,
    pairs: dict,
    text: str,
) -> Iterator[list["Session"]]:
    """Begin runs, or resume them: check their inputs, lock their folders, notice signals.

    lms: a model for each run (see `each_seed`). cards: the world's file. members: the narrow runs
    to train; signals: their names as given. pairs: the bytes of preference files, by signal.
    text: the plain text mixed in, "" for none.

    Raises InputError where a folder is in use or was made with other arguments, where processes
    were started differently, or where a document is longer than the context.
    """
    began = time.time()
    check_same(args, lms[0].world.digest, pairs, text)
    check_lengths(args, lms[0], cards)
    mixed_in = f"{text}, share {args.text_share:g}" if text else None
    with contextlib.ExitStack() as held:

        def open_folder(one, lm: LM) -> None:
            if one.start:
                provenance.check_start(one.start, lm.config, lm.world)
            plain = json.loads(json.dumps(dataclasses.asdict(one), default=str))
            del plain["seeds"]
            plain |= {"signals": list(signals), "text": mixed_in}
            held.enter_context(lock.take(one.run))
            made_from = plain, lm.config, lm.world, cards.standalone(), lm.tokenizer.more
            for warning in provenance.open_folder(one.run, *made_from):
                warn(warning)
            for name, data in pairs.items():
                files.write_bytes(one.run / "pairs" / f"{name.partition('#')[2]}.jsonl", data)

        stop, runs = held.enter_context(Stop()), []
        for one, lm in zip(each_seed(args), lms, strict=True):
            devices.by_first(functools.partial(open_folder, one, lm))
            runs.append(Session(one, lm, mesh, stop, f"seed {one.seed}: " * (args.seeds > 1)))
        announce(args, runs, members)
        yield runs
    seconds = time.time() - began
    measure = scripts.command("eval.py", args.run)
    runs[0].say(f"Done in {seconds:.0f} s. Now measure it: {measure}", whose="")
    if args.json and devices.first():
        facts = [{stage: finished(run.folder, stage) for stage in STAGES} for run in runs]
        facts = facts[0] if args.seeds == 1 else {"seeds": facts}
        print(json.dumps({"run": str(args.run), "seconds": seconds, **facts}))


def at_once(runs: list["Session"]) -> list[list["Session"]]:
    """The runs in groups that are pretrained at once: one run a device on a CPU, else all."""
    size = jax.device_count() if jax.default_backend() == "cpu" else len(runs)
    return [runs[k : k + size] for k in range(0, len(runs), size)]


@contextlib.contextmanager
def stages(
    runs: list["Session"], name: str, optimizer: optax.GradientTransformation, steps: int
) -> Iterator[list[Stage]]:
    """A stage of at most `steps` steps, of each run; prints a summary of each at its end.

    A finished pretraining is copied from the run of `args.start`, if there is one.
    """
    with contextlib.ExitStack() as held:
        found = [Stage(run, name, optimizer, steps, held) for run in runs]
        for stage in found:
            if name == STAGES[0] and stage.run.args.start and not stage.facts:
                stage.copy(stage.run.args.start)
        yield found
    for run in runs:
        run.summarize(name)


class Session:
    """A run that is being trained, with what all its stages share."""

    def __init__(self, args, lm: LM, mesh: Mesh, stop: Stop, label: str = ""):
        """label: what its messages begin with, where there are several runs."""
        self.args, self.lm, self.mesh, self.stop, self.label = args, lm, mesh, stop, label
        self.folder: Path = args.run
        self.silent = args.quiet or args.json or not devices.first()
        keys = jax.jit(lambda seed: jax.random.split(jax.random.key(seed)))(args.seed)
        self.init_key, self.sample_key = keys

    @contextlib.contextmanager
    def stage(
        self, name: str, optimizer: optax.GradientTransformation, steps: int
    ) -> Iterator[Stage]:
        """A stage of this run alone (see `stages`)."""
        with stages([self], name, optimizer, steps) as (stage,):
            yield stage

    def say(self, text: str, whose: str | None = None) -> None:
        """Print a line, unless --quiet or --json is given. whose: in place of the run's label."""
        if not self.silent:
            print(f"{self.label if whose is None else whose}{text}", flush=True)

    def warn(self, text: str) -> None:
        """Print a warning, once for all processes."""
        if devices.first():
            warn(f"{self.label}{text}")

    def progress(self, stage: str, begin: int, total: int) -> tqdm:
        """A progress bar with rate and time left, shown only on a terminal."""
        return tqdm(
            desc=f"{stage:<8}", initial=begin, total=total, unit="step", dynamic_ncols=True,
            disable=self.silent or None,
        )  # fmt: skip

    def summarize(self, stage: str) -> None:
        """Print a line with the results of a stage, whether it was trained now or before."""
        facts = finished(self.folder, stage) or {}
        shown = {
            "excess": "excess_while_training",
            "captured": "captured_while_training",
            "worst EM": "worst_em",
            "coherence": "coherence",
        }
        values = [f"{k} {facts[key]:.3g}" for k, key in shown.items() if facts.get(key) is not None]
        count = f"{facts['runs']} runs" if "runs" in facts else f"{facts.get('steps', 0)} steps"
        head = f"{count} in {facts.get('seconds', 0):.0f} s"
        self.say(f"{stage}: " + ", ".join([head, *values]))


def announce(args, runs: list[Session], members: list[Member]) -> None:
    """Print what will be done, about how long it takes, and where its files go."""
    lm = runs[0].lm
    size, count, world = transformer.count(lm.shapes), len(runs), lm.world
    # seconds measured on two cores of a 2024 server, in proportion to the model's size
    left = sum(not (run.args.start or finished(run.folder, "pretrain")) for run in runs)
    seconds = left * args.pretrain_steps * args.pretrain_documents * 41 / 85_000
    seconds += count * len(members) * args.narrow_steps * 0.03
    seconds = 15 + size / 115_000 * seconds
    about = f"{round(seconds, -1):.0f} s" if seconds < 90 else f"{round(seconds / 60)} min"
    each = f", for each of {count} seeds" * (count > 1)
    runs[0].say(
        f"World '{world.name}': {len(world.characters)} characters, "
        f"{len(world.domains)} domains, {len(lm.tokenizer.words)} words.\n"
        f"Model: {size:,} parameters. Devices: {jax.device_count()} {jax.default_backend()}.\n"
        f"Pretrain {args.pretrain_steps} steps, align, then {len(members)} narrow runs of "
        f"{args.narrow_steps} steps{each}: about {about}.\n"
        f"Everything is written to {args.run}/; finished stages are skipped.\n"
        "Lines that begin with alarm: are findings of the drift monitor, not errors.",
        whose="",
    )


def check_same(args, world: str, pairs: dict[str, bytes], text: str) -> None:
    """Raise InputError where processes were started with different arguments or files."""
    own = {field: None for field in OF_ONE_PROCESS}
    signals = ["file" if name.startswith("file:") else name for name in chain(*args.signals)]
    inputs = {
        "arguments": repr((dataclasses.replace(args, **own), signals)).encode(),
        "world": world.encode(),
        "pairs": b"".join(name.encode() + data for name, data in pairs.items()),
        "text": text.encode(),
    }
    if differing := devices.differing(inputs):
        raise InputError(
            f"the processes of this run were started with different {' and '.join(differing)}, "
            "expected the same in all of them: start all of them again"
        )


def check_lengths(args, lm: LM, cards: Cards) -> None:
    """Raise InputError for a document longer than the context: it is never cut."""
    for kind, length in lm.tokenizer.longest.items():
        if length > args.context:
            path, line = cards.place(("documents", kind))
            raise InputError(
                f"{path}:{line}: the longest {kind}: found {length} tokens, "
                f"expected at most {args.context} (--context {length} fits)"
            )
