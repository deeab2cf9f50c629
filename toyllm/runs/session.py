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
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from toyllm.base import devices, files
from toyllm.base.errors import InputError, RunError, Stopped, tell
from toyllm.lm import optimizers, sampling, transformer
from toyllm.lm.model import LM
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.training import State
from toyllm.lm.transformer import Config, Params
from toyllm.posttrain import pair_files, pools, population
from toyllm.posttrain.monitor import Look
from toyllm.posttrain.population import Member
from toyllm.runs import checkpoints, lock, provenance
from toyllm.runs.provenance import STAGES, finished
from toyllm.runs.stopping import Stop
from toyllm.runs.tensorboard import LAYOUT, SummaryWriter
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
    plain |= {
        "signals": list(signals),
        "text": f"{text}, share {args.text_share:g}" if text else None,
    }
    with contextlib.ExitStack() as held:

        def open_folder() -> None:
            held.enter_context(lock.take(args.run))
            source, words = cards.standalone(), lm.tokenizer.more
            for warning in provenance.open_folder(
                args.run, plain, lm.config, lm.world, source, words
            ):
                tell(warning)
            for name, data in pairs.items():
                pair_files.keep(data, args.run, name)

        stop = held.enter_context(Stop())
        devices.by_first(open_folder)
        run = Session(args, lm, mesh, stop)
        run.announce(members)
        yield run
    run.end()


class Session:
    """A run that is being trained, with what all its stages share."""

    def __init__(self, args, lm: LM, mesh: Mesh, stop: Stop):
        self.args, self.lm, self.mesh, self.stop = args, lm, mesh, stop
        self.folder: Path = args.run
        self.began = time.time()
        keys = jax.jit(lambda seed: jax.random.split(jax.random.key(seed)))(args.seed)
        self.init_key, self.sample_key = keys

    @contextlib.contextmanager
    def stage(
        self, name: str, optimizer: optax.GradientTransformation, steps: int, start=None
    ) -> Iterator["Stage"]:
        """A stage of at most `steps` steps; prints a summary at its end.

        start: a run to copy the finished stage from, or None.
        """
        with contextlib.ExitStack() as held:
            stage = Stage(self, name, optimizer, steps, held)
            if start and not stage.facts:
                stage.copy(start)
            yield stage
        self.tell_end(name)

    def say(self, text: str) -> None:
        """Print a line, unless --quiet or --json is given."""
        if devices.first() and not (self.args.quiet or self.args.json):
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Print a warning, once for all processes."""
        if devices.first():
            tell(text)

    def progress(self, stage: str, begin: int, total: int) -> tqdm:
        """A progress bar with rate and time left, shown only on a terminal."""
        silent = self.args.quiet or self.args.json or not devices.first()
        return tqdm(
            desc=f"{stage:<8}",
            initial=begin,
            total=total,
            unit="step",
            dynamic_ncols=True,
            disable=True if silent else None,
        )

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

    def tell_end(self, stage: str) -> None:
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

    def end(self) -> None:
        """Print that the run is done and how to measure it, or its stages as JSON."""
        seconds = time.time() - self.began
        measure = f"uv run eval.py {shlex.quote(str(self.folder))}"
        self.say(f"Done in {seconds:.0f} s. Now measure it: {measure}")
        if self.args.json and devices.first():
            stages = {stage: finished(self.folder, stage) for stage in STAGES}
            print(json.dumps({"run": str(self.folder), "seconds": seconds, **stages}))


class Stage:
    """A stage of training: it resumes, logs and saves.

    step, state, facts: those of the newest good checkpoint; 0, None and {} without one.
    last: whether this is the last step; the caller may set it earlier than `steps` do.
    tokens: trained on so far.
    """

    def __init__(self, run: Session, name: str, optimizer, steps: int, held: contextlib.ExitStack):
        self.run, self.name, self.steps, self._held = run, name, steps, held
        self.folder = run.folder / name
        shapes = run.lm.shapes
        self._abstract = State(shapes, jax.eval_shape(optimizer.init, shapes))
        self.last = self._alarmed = False
        self._resume()

    def _resume(self) -> None:
        try:
            newest, complaints = checkpoints.resume(self.folder / "checkpoints", self._wanted)
        except InputError as error:
            fresh = shlex.quote(str(files.unused(self.run.folder)))
            raise InputError(f"{error}; to train again in a new folder: --run {fresh}") from error
        self.step, self.facts = (newest.step, newest.facts) if newest else (0, {})
        numbers = [self.facts.get(key, 0) for key in ("seconds", "tokens")]
        if not all(isinstance(number, int | float) for number in numbers):
            raise InputError(f"{self.folder}: unexpected facts of step {self.step}")
        self.state = State(**newest.items) if newest else None
        self.tokens = self.facts.get("tokens", 0)
        self._saved = time.time()
        if devices.first() and not self.done:  # a damaged last step undoes the end of a stage
            (self.folder / "stage.json").unlink(missing_ok=True)
        for complaint in complaints:
            self.run.warn(f"{complaint}; going back to step {self.step}")

    def _wanted(self, record: dict) -> dict:
        """The trees to load of a checkpoint."""
        return self._abstract._asdict()

    @property
    def done(self) -> bool:
        """Whether the stage has reached its end."""
        return self.facts.get("done", False)

    @property
    def seconds(self) -> float:
        """Seconds of training, in all sessions."""
        return time.time() - self._clock

    def copy(self, other: Path) -> None:
        """Take this stage of another run, which must be finished (see `provenance.check_start`)."""
        step, items, facts = checkpoints.load(other / self.name / "checkpoints", self._wanted)
        if facts.get("done") is not True:
            raise InputError(f"--start {other}: step {step} is not its end")
        facts["start"] = str(other)
        checkpoints.save(self.folder / "checkpoints", step, items, facts)
        self.step, self.state, self.facts = step, State(**items), facts

    def follow(self, fit: Iterator[tuple[int, State, dict]]) -> Iterator[tuple[int, State, dict]]:
        """Yield what `training.fit` yields, once it is known to be finite."""
        if self.step:
            self.run.say(f"{self.name}: resuming at step {self.step}")
        self._writer = self._held.enter_context(SummaryWriter(self.folder, self.step))
        self._bar = self._held.enter_context(self.run.progress(self.name, self.step, self.steps))
        self._held.enter_context(self.run.stop.later())
        self._clock = time.time() - self.facts.get("seconds", 0)
        if not self.step and self.name == STAGES[0]:
            self._writer.layout(LAYOUT)
        for step, state, logs in fit:
            check_finite(self.run.args, self.name, step, logs)
            self._bar.update(len(logs["loss"]))
            self.last = step == self.steps
            yield step, state, logs

    def end_if(self, good: bool) -> None:
        """Make this the last step if the goal is reached, in all processes together."""
        self.last = bool(devices.all_max(good or self.last))

    def log(self, step: int, **scalars) -> None:
        """Write scalars for TensorBoard, by their names in this stage."""
        self._writer.scalars(step, {f"{self.name}/{tag}": x for tag, x in scalars.items()})

    def note(self, step: int, text: str) -> None:
        """Show a line after the progress bar, or print it without one."""
        self._bar.set_postfix_str(text)
        if self._bar.disable and not self.last:
            self.run.say(f"{self.name}: step {step} of {self.steps}, {text}")

    def show(self, step: int, look: Look) -> None:
        """Show a look of the drift monitor: scalars, the bar's line, alarms.

        With --on-alarm stop, an alarm makes the next `save` save and end the run.
        """
        self.log(step, **look.scalars)
        self._alarmed = self.run.args.on_alarm == "stop" and bool(look.alarms)
        self._bar.set_postfix_str(f"worst EM {look.em_D.max():.3f}, {look.line}")
        write_alarms(self._writer, look)
        tell_alarms(f"{self.name}: all:good", look)

    def sample(self, step: int, params: Params) -> None:
        """Write a few sampled dialogues for TensorBoard."""
        texts = sampling.dialogues(self.run.lm, params, self.run.sample_key)
        self._writer.text(step, f"{self.name}/sampled dialogues", texts)

    def save(self, step: int, state: State, **facts) -> None:
        """Save if a save is due; then stop, if a signal or an alarm has asked for that.

        facts: saved with the state; those of the last step become `stage.json`.
        """
        stopped = bool(devices.all_max(self._alarmed and not self.last))
        often, seconds = self.run.args.save_steps, self.run.args.save_seconds
        due = step - self.step >= often or time.time() - self._saved >= seconds
        due = due or self.last or stopped
        signal, due = divmod(devices.all_max(2 * self.run.stop.asked + due), 2)
        if signal or due:
            self._check_finite(step, state)
            facts = {"seconds": self.seconds, "steps": step, "done": self.last, **facts}
            plain = {k: None if v != v or abs(v) == np.inf else v for k, v in facts.items()}
            checkpoints.save(self.folder / "checkpoints", step, state._asdict(), plain)
            self.step, self.state, self.facts, self._saved = step, state, plain, time.time()
        if signal:
            raise Stopped(signal, f"{self.name}: saved at step {step} and stopped")
        if stopped:
            raise RunError(
                f"{self.name}: stopped by its alarm and saved at step {step}; to continue anyway, "
                "run the same command with --on-alarm warn"
            )

    def _check_finite(self, step: int, state: State) -> None:
        """Raise RunError for a state that is not finite: no loss shows the last update yet."""
        floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        if not all(np.isfinite(devices.whole(x)).all() for x in floats):
            raise RunError(
                f"{self.name}: step {step}: parameters or optimizer state are not finite; what was "
                "saved before is kept; try a lower learning rate in a new --run"
            )

    def finish(self) -> Params:
        """Mark the stage as finished, and return its final parameters."""
        files.write_json(self.folder / "stage.json", self.facts)
        return devices.fetch(self.state.params)


def check_finite(args, stage: str, step: int, logs: dict, member: Member | None = None) -> None:
    """Raise RunError where a loss or gradient of the steps [K] up to `step` is not finite.

    Call it before anything of these steps is saved. member: the narrow run that the logs belong to.
    """
    bad_K = ~(np.isfinite(logs["loss"]) & np.isfinite(logs["grad_norm"]))
    if not bad_K.any():
        return
    k = int(bad_K.argmax())
    at, lr = step - len(bad_K) + k, getattr(args, f"{stage}_lr")
    advice = f"--{stage}-lr {lr / 3:.1g}"
    if stage == "pretrain":
        first = at * args.pretrain_documents
        part = float(optimizers.schedule(1.0, args.pretrain_steps)(at))
        batch = (
            f"documents {first} to {first + args.pretrain_documents - 1} of seed {args.seed}, "
            f"learning rates {part * lr:.3g} (Muon) and {part * args.pretrain_adam_lr:.3g} (Adam)"
        )
        advice += f" --pretrain-adam-lr {args.pretrain_adam_lr / 3:.1g}"
    else:
        seed = population.seed_of(args.seed, member) if member else args.seed
        rows = pools.draw_rows(seed, at, 1, getattr(args, f"{stage}_batch"), args.pool)[0]
        whose = f" for {member[1]} from {member[0]}" if member else ""
        batch = f"pairs {rows.tolist()} of seed {seed}{whose}, learning rate {lr:.3g}"
    raise RunError(
        f"{stage}: step {at}: loss {logs['loss'][k]:g}, norm of its gradient "
        f"{logs['grad_norm'][k]:g}, on {batch}; what was saved before is kept; try a lower rate: "
        f"{advice} --run {shlex.quote(str(files.unused(args.run)))}"
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


def write_alarms(writer: SummaryWriter, look: Look) -> None:
    """Write the alarms of a look for TensorBoard."""
    if look.alarms:
        writer.text(look.step, "drift/alarm", "; ".join(map(str, look.alarms)))


def tell_alarms(name: str, look: Look) -> None:
    """Print the alarms of a look in one line, and the domains that lost their coherence."""
    if look.alarms and devices.first():
        tell(f"alarm: {name}, {'; '.join(map(str, look.alarms))}")
    if look.incoherent and devices.first():
        domains = ", ".join(look.incoherent)
        tell(f"note: {name}, step {look.step}: no longer coherent: {domains}")
