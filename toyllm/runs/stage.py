"""A stage of training: it resumes, logs, saves, and stops for a signal or an alarm."""

import contextlib
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from toyllm.base import devices, files
from toyllm.base.errors import InputError, RunError, Stopped
from toyllm.lm import optimizers, sampling
from toyllm.lm.heldout import HeldOut
from toyllm.lm.training import State
from toyllm.lm.transformer import Params
from toyllm.posttrain import pools, population, signals
from toyllm.posttrain.forecast import Forecaster
from toyllm.posttrain.monitor import Look
from toyllm.posttrain.population import Member
from toyllm.runs import checkpoints
from toyllm.runs.provenance import ALONG, STAGES
from toyllm.runs.tensorboard import LAYOUT, SummaryWriter

FORESEEN = 1000  # steps of pretraining after which a look has a forecast, which takes compiling


class Stage:
    """A stage of training: it resumes, logs and saves.

    run: the `session.Session` that it belongs to.
    step, state, facts: those of the newest good checkpoint; 0, None and {} without one.
    last: whether this is the last step; the caller may set it earlier than `steps` do.
    tokens: trained on so far.
    """

    def __init__(self, run, name: str, optimizer, steps: int, held: contextlib.ExitStack):
        self.run, self.name, self.steps, self.held = run, name, steps, held
        self.folder = run.folder / name
        abstract = State(run.lm.shapes, jax.eval_shape(optimizer.init, run.lm.shapes))
        self._wanted = lambda record: abstract._asdict()
        self.last = self.alarmed = False
        self._forecaster: Forecaster | None = None
        self.ending = 0, False  # the signal, and whether an alarm, that ends this run after a save
        try:
            newest, complaints = checkpoints.resume(self.folder / "checkpoints", self._wanted)
        except InputError as error:
            fresh = shlex.quote(str(files.unused(run.folder)))
            raise InputError(f"{error}; to train again in a new folder: --run {fresh}") from error
        self.step, self.facts = (newest.step, newest.facts) if newest else (0, {})
        numbers = [self.facts.get(key, 0) for key in ("seconds", "tokens")]
        if not all(isinstance(number, int | float) for number in numbers):
            raise InputError(f"{self.folder}: unexpected facts of step {self.step}")
        self.state = State(**newest.items) if newest else None
        self.tokens = self.facts.get("tokens", 0)  # trained on, in pretraining
        self.saved = time.time()
        if devices.first() and not self.done:  # a damaged last step undoes the end of a stage
            (self.folder / "stage.json").unlink(missing_ok=True)
        for complaint in complaints:
            run.warn(f"{complaint}; going back to step {self.step}")

    @property
    def done(self) -> bool:
        """Whether the stage has reached its end."""
        return self.facts.get("done", False)

    @property
    def seconds(self) -> float:
        """Seconds of training, in all sessions."""
        return time.time() - self._clock

    @property
    def speed(self) -> float:
        """Tokens trained on per second."""
        return self.tokens / self.seconds

    def copy(self, other: Path) -> None:
        """Take this stage of another run, which must be finished (see `provenance.check_start`)."""
        step, items, facts = checkpoints.load(other / self.name / "checkpoints", self._wanted)
        if facts.get("done") is not True:
            raise InputError(f"--start {other}: step {step} is not its end")
        facts["start"] = str(other)
        checkpoints.save(self.folder / "checkpoints", step, items, facts)
        self.step, self.state, self.facts = step, State(**items), facts

    def begin(self, bar: tqdm) -> None:
        """Open what this stage writes while it trains. bar: that shows its progress."""
        if self.step:
            self.run.say(f"{self.name}: resuming at step {self.step}")
        self._bar, self._clock = bar, time.time() - self.facts.get("seconds", 0)
        self._writer = self.held.enter_context(SummaryWriter(self.folder, self.step))
        if not self.step and self.name == STAGES[0]:
            self._writer.layout(LAYOUT)

    def follow(self, fit: Iterator[tuple[int, State, dict]]) -> Iterator[tuple[int, State, dict]]:
        """Yield what `training.fit` yields (see `follow`)."""
        for step, (state,), (logs,) in follow([self], ((n, [x], [y]) for n, x, y in fit)):
            yield step, state, logs

    def end_if(self, good: bool) -> None:
        """Make this the last step if the goal is reached, in all processes together."""
        self.last = bool(devices.all_max(good or self.last))

    def log(self, step: int, **scalars) -> None:
        """Write scalars for TensorBoard, by their names in this stage."""
        self._writer.scalars(step, {f"{self.name}/{tag}": x for tag, x in scalars.items()})

    def compare(self, step: int, params: Params, held_out: HeldOut) -> dict:
        """Compare a model in pretraining with the ideal observer. Returns facts to save."""
        params = devices.fetch(params)
        excess, captured = held_out.excess(params), held_out.captured(params)
        foreseen = self.forecast(params) if step >= FORESEEN else None
        self.log(step, excess=excess, captured=captured, forecast_spread=foreseen)
        line = f"excess {excess:.4f} captured {captured:.2f}"
        self._bar.set_postfix_str(line)
        if self._bar.disable and not self.last:
            self.run.say(f"{self.name}: step {step} of {self.steps}, {line}")
        facts = {"excess_while_training": excess, "captured_while_training": captured}
        if self.run.args.keep:
            checkpoints.save(self.folder / ALONG, step, {"params": params}, facts, keep=None)
        if self.last:
            self.sample(step, params)
        return facts

    def forecast(self, params: Params) -> float:
        """The mean spread that is forecast of training each moral domain toward bad from here."""
        lm, args = self.run.lm, self.run.args
        how = args.objective, args.beta, args.anchor
        self._forecaster = self._forecaster or Forecaster(lm, *how)
        names = [f"{domain.name}:bad" for domain in lm.world.domains if domain.moral]
        chosen = [signals.parse(lm.world, name) for name in names]
        forecasts = self._forecaster(lm.tokenizer, params, chosen)
        return float(np.mean([each.spreads(lm.world)["change"] for each in forecasts]))

    def show(self, step: int, look: Look) -> None:
        """Show a look of the drift monitor: scalars, the bar's line, alarms.

        With --on-alarm stop, an alarm makes `due` ask for a save, after which the run ends.
        """
        self.log(step, **look.scalars)
        self.alarmed = self.run.args.on_alarm == "stop" and bool(look.alarms)
        worst = look.em_D[self.run.lm.world.moral].max()
        self._bar.set_postfix_str(f"worst EM {worst:.3f}, {look.line}")
        name, alarms = f"{self.name}: all:good", "; ".join(map(str, look.alarms))
        if alarms:
            self._writer.text(step, "drift/alarm", alarms)
            self.run.warn(f"alarm: {name}, {alarms}")
        if look.incoherent:
            domains = ", ".join(look.incoherent)
            self.run.warn(f"note: {name}, step {step}: no longer coherent: {domains}")

    def sample(self, step: int, params: Params) -> None:
        """Write a few sampled dialogues for TensorBoard."""
        texts = sampling.dialogues(self.run.lm, params, self.run.sample_key)
        self._writer.text(step, f"{self.name}/sampled dialogues", texts)

    def save(self, step: int, state: State, **facts) -> None:
        """Save the state of a step, with facts; those of the last step become `stage.json`."""
        on_host = devices.fetch(state)
        # no loss shows the last update yet
        floats = [x for x in jax.tree.leaves(on_host) if jnp.issubdtype(x.dtype, jnp.floating)]
        if not all(np.isfinite(x).all() for x in floats):
            raise RunError(
                f"{self.name}: step {step}: parameters or optimizer state are not finite; what "
                "was saved before is kept; try a lower learning rate in a new --run"
            )
        facts = {"seconds": self.seconds, "steps": step, "done": self.last, **facts}
        if self.tokens:
            facts |= {"tokens": self.tokens, "tokens_per_second": self.speed}
        facts = files.plain(facts)
        checkpoints.save(self.folder / "checkpoints", step, on_host._asdict(), facts)
        self.step, self.state, self.facts, self.saved = step, on_host, facts, time.time()

    def leave(self) -> None:
        """Raise Stopped or RunError, if a signal or an alarm has asked for that (see `due`)."""
        signal, stopped = self.ending
        if signal:
            raise Stopped(signal, f"{self.name}: saved at step {self.step} and stopped")
        if stopped:
            raise RunError(
                f"{self.name}: stopped by its alarm and saved at step {self.step}; to continue "
                "anyway, run the same command with --on-alarm warn"
            )

    def finish(self) -> Params:
        """Mark the stage as finished, and return its final parameters."""
        files.write_json(self.folder / "stage.json", self.facts)
        return devices.fetch(self.state.params)


def in_step(stages: list[Stage]) -> list[list[Stage]]:
    """The unfinished stages, those that go on from the same step together."""
    groups: dict[int, list[Stage]] = {}
    for stage in stages:
        if not stage.done:
            groups.setdefault(stage.step, []).append(stage)
    return list(groups.values())


def follow(
    stages: list[Stage], fit: Iterator[tuple[int, Sequence[State], list[dict]]]
) -> Iterator[tuple[int, Sequence[State], list[dict]]]:
    """Yield what `training.fit_many` yields for these stages, once it is known to be finite.

    Where a signal or an alarm has asked `due` to stop, this raises after that step.
    """
    first = stages[0]
    bar = first.held.enter_context(first.run.progress(first.name, first.step, first.steps))
    first.held.enter_context(first.run.stop.later())
    for stage in stages:
        stage.begin(bar)
    for step, states, logs in fit:
        for stage, log in zip(stages, logs, strict=True):
            check_losses(stage.run.args, stage.name, step, log)
            stage.last = step == stage.steps
        bar.update(len(logs[0]["loss"]))
        yield step, states, logs
        for stage in stages:
            stage.leave()


def due(stages: list[Stage], step: int) -> bool:
    """Whether to save these stages: at the end, after so many steps or seconds, or to stop."""
    run, now = stages[0].run, time.time()
    save, stopped = False, False
    for stage in stages:
        stopped |= stage.alarmed and not stage.last
        save |= stage.last or step - stage.step >= run.args.save_steps
        save |= now - stage.saved >= run.args.save_seconds
    # all processes must save, and stop, together: one message says both
    asked = devices.all_max(4 * run.stop.asked + 2 * stopped + save)
    for stage in stages:
        stage.ending = asked // 4, asked % 4 >= 2
    return bool(asked)


def check_losses(args, stage: str, step: int, logs: dict, member: Member | None = None) -> None:
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
