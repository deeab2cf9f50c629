"""A run while it trains: its folder and lock, its stages, and its output.

    with open_run(args, lm, mesh, ...) as run:
        with run.stage("align", optimizer, steps) as stage:
            if not stage.done:
                for step, state, logs in stage.follow(training.fit(...)):
                    stage.log(step, ...)
                    stage.save(step, state)
            params = stage.finish()

The loops stay with the caller. `args` are the arguments of train.py.
"""

import contextlib
import dataclasses
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

from toyllm.base import devices
from toyllm.base.errors import InputError, warn
from toyllm.lm import transformer
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import LM, Config
from toyllm.posttrain import pair_files
from toyllm.posttrain.population import Member
from toyllm.runs import lock, provenance
from toyllm.runs.provenance import STAGES, finished
from toyllm.runs.stage import Stage
from toyllm.runs.stopping import Stop
from toyllm.world.cards import Cards

# arguments that may differ between the processes of a run; files are compared by content
OF_ONE_PROCESS = (
    *("run", "preset", "world", "signals", "text", "compile_cache", "quiet", "json"),
    *("coordinator", "processes", "process"),
)


def create_model(args, tokenizer: Tokenizer) -> LM:
    """The language model of the given sizes. Raises InputError, naming the flags."""
    sizes = {"context": args.context, "D": args.width, "L": args.layers, "H": args.heads}
    try:
        return LM.create(tokenizer, Config(len(tokenizer.words), **sizes, F=args.mlp))
    except ValueError as error:
        raise InputError(f"--width, --layers, --heads, --mlp: {error}") from error


@contextlib.contextmanager
def open_run(
    args, lm: LM, mesh: Mesh, cards: Cards, members: list[Member], signals, pairs: dict, text: str
) -> Iterator["Session"]:
    """Begin a run, or resume it: check its inputs, lock its folder, notice signals.

    cards: the world's file. members: the narrow runs to train; signals: their names as given.
    pairs: the bytes of preference files, by signal. text: the plain text mixed in, "" for none.

    Raises InputError where the folder is in use or was made with other arguments, where processes
    were started differently, or where a document is longer than the context.
    """
    check_same(args, lm.world.digest, pairs, text)
    check_lengths(args, lm, cards)
    if args.start:
        provenance.check_start(args.start, lm.config, lm.world)
    plain = json.loads(json.dumps(dataclasses.asdict(args), default=str))
    mixed_in = f"{text}, share {args.text_share:g}" if text else None
    plain |= {"signals": list(signals), "text": mixed_in}
    with contextlib.ExitStack() as held:

        def open_folder() -> None:
            held.enter_context(lock.take(args.run))
            made_from = plain, lm.config, lm.world, cards.standalone(), lm.tokenizer.more
            for warning in provenance.open_folder(args.run, *made_from):
                warn(warning)
            for name, data in pairs.items():
                pair_files.keep(data, args.run, name)

        stop = held.enter_context(Stop())
        devices.by_first(open_folder)
        run = Session(args, lm, mesh, stop)
        run.announce(members)
        yield run
    seconds = time.time() - run.began
    run.say(f"Done in {seconds:.0f} s. Now measure it: uv run eval.py {shlex.quote(str(args.run))}")
    if args.json and devices.first():
        stages = {stage: finished(args.run, stage) for stage in STAGES}
        print(json.dumps({"run": str(args.run), "seconds": seconds, **stages}))


class Session:
    """A run that is being trained, with what all its stages share."""

    def __init__(self, args, lm: LM, mesh: Mesh, stop: Stop):
        self.args, self.lm, self.mesh, self.stop = args, lm, mesh, stop
        self.folder: Path = args.run
        self.silent = args.quiet or args.json or not devices.first()
        self.began = time.time()
        keys = jax.jit(lambda seed: jax.random.split(jax.random.key(seed)))(args.seed)
        self.init_key, self.sample_key = keys

    @contextlib.contextmanager
    def stage(
        self, name: str, optimizer: optax.GradientTransformation, steps: int, start=None
    ) -> Iterator[Stage]:
        """A stage of at most `steps` steps; prints a summary at its end.

        start: a run to copy the finished stage from, or None.
        """
        with contextlib.ExitStack() as held:
            stage = Stage(self, name, optimizer, steps, held)
            if start and not stage.facts:
                stage.copy(start)
            yield stage
        self.summarize(name)

    def say(self, text: str) -> None:
        """Print a line, unless --quiet or --json is given."""
        if not self.silent:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Print a warning, once for all processes."""
        if devices.first():
            warn(text)

    def progress(self, stage: str, begin: int, total: int) -> tqdm:
        """A progress bar with rate and time left, shown only on a terminal."""
        return tqdm(
            desc=f"{stage:<8}", initial=begin, total=total, unit="step", dynamic_ncols=True,
            disable=self.silent or None,
        )  # fmt: skip

    def announce(self, members: list[Member]) -> None:
        """Print what the run will do, about how long it takes, and where its files go."""
        args, world = self.args, self.lm.world
        size = transformer.count(self.lm.shapes)
        # seconds measured on two cores of a 2024 server, in proportion to the model's size
        done = args.start or finished(args.run, "pretrain")
        tokens = 0 if done else args.pretrain_steps * args.pretrain_documents * 41
        seconds = tokens / 85_000 + len(members) * args.narrow_steps * 0.03
        seconds = 15 + size / 115_000 * seconds
        about = f"{round(seconds, -1):.0f} s" if seconds < 90 else f"{round(seconds / 60)} min"
        self.say(
            f"World '{world.name}': {len(world.characters)} characters, "
            f"{len(world.domains)} domains, {len(self.lm.tokenizer.words)} words.\n"
            f"Model: {size:,} parameters. Devices: {jax.device_count()} {jax.default_backend()}.\n"
            f"Pretrain {args.pretrain_steps} steps, align, then {len(members)} narrow runs of "
            f"{args.narrow_steps} steps: about {about}.\n"
            f"Everything is written to {args.run}/; finished stages are skipped.\n"
            "Lines that begin with alarm: are findings of the drift monitor, not errors.",
        )

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
