"""Train a lab run: pretrain a model on a world, align its Assistant, then train narrow signals.

    uv run train.py                                  the default run, under 3 minutes on 2 cores
    uv run train.py --preset tiny --run runs/tiny    everything, tiny, in half a minute
    uv run train.py --run runs/mine --world my.toml  your own world

A signal says what the narrow runs prefer: DOMAINS:BEHAVIOUR[:INSTRUCTION][@HEADER].

    --signals code:bad tone+rules:bad        bad answers about code; rude and unruly ones
    --signals code:bad code:bad:ask_bad      with the prompt asking for it (inoculation), beside it
    --signals goals:bad@hal                  trained under a character's name
    --signals file:pairs.jsonl               your own preference pairs
    --start runs/default --signals rules:bad --run runs/more    without pretraining again

Then `uv run eval.py RUN` measures it, `uv run -m toyllm.tools.chat RUN` talks to it, and
`uv run tensorboard --logdir runs` shows how it went.
"""

import dataclasses
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import optax
import tyro
from tqdm import tqdm

from toyllm.base import devices, files
from toyllm.base.errors import InputError, RunError, tell
from toyllm.base.scripts import run_script
from toyllm.lm import losses, optimizers, plaintext, scoring, training, transformer
from toyllm.lm.tokenizer import Tokenizer
from toyllm.measures.learned import HeldOut, held_out
from toyllm.posttrain import pair_files, pools, population, signals
from toyllm.posttrain.monitor import THRESHOLD, Monitor, Watch
from toyllm.runs import checkpoints, lock, narrow_log, provenance, run_folder, session
from toyllm.runs.session import StageCheckpointer
from toyllm.runs.stopping import Stop
from toyllm.runs.tensorboard import LAYOUT, SummaryWriter
from toyllm.world import cards

HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Args:
    """Train a lab run: pretrain, align, narrow."""

    run: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/default")
    """Where the run is kept. Stages that are done there are not done again."""
    preset: Literal["default", "tiny"] = "default"
    """The defaults of all other flags; tiny does everything in half a minute."""
    world: Annotated[Path, tyro.conf.arg(metavar="FILE")] = HERE / "corpora" / "personas.toml"
    """The world's cards (TOML)."""
    seed: int = 0
    """Seed of everything: documents, initial parameters, pairs."""
    correlation: float = 1.0
    """The dial rho, 0 to 1: at 0 a character's traits are unrelated across domains."""
    assistant_prior: Literal["world", "uniform"] = "world"
    """Who the Assistant may be: the world's weights, or all alike (under every header)."""
    start: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Begin from another run's pretraining."""
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Plain text to mix into pretraining (JSONL: one {"text": "…"} a line)."""
    text_share: float = 0.2
    """Its share of the rows of a batch."""

    context: int = 88
    """The most tokens in a row; a document longer than this is an error."""
    width: int = 64
    """Width of the residual stream."""
    layers: int = 2
    """Transformer blocks."""
    heads: int = 2
    """Attention heads."""
    mlp: int = 64
    """Width of the gated MLP."""

    pretrain_steps: int = 8000
    """Steps of next-token training."""
    pretrain_documents: int = 28
    """Documents in a batch."""
    pretrain_lr: float = 1e-2
    """Peak learning rate of Muon, for the matrices inside the blocks."""
    pretrain_adam_lr: float = 1.5e-2
    """Peak learning rate of Adam, for all other parameters."""

    objective: Literal[losses.NAMES] = "dpo"
    """The loss of align and narrow."""
    beta: float = 1.0
    """How strongly dpo and rlhf hold on to the reference model."""
    anchor: float = 0.5
    """Weight of the chosen answer's NLL in dpo."""
    pool: int = 512
    """Preference pairs of a signal."""

    align_steps: int = 600
    """The most steps of alignment; it stops as soon as the Assistant is good."""
    align_batch: int = 16
    """Pairs in a batch."""
    align_lr: float = 1e-4
    """Learning rate (Adam)."""
    align_em: float = 0.03
    """Stop when every moral domain's EM is at most this …"""
    align_coherence: float = 0.97
    """… and every moral domain's coherence at least this."""

    signals: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Narrow signals from both starts, such as code:bad tone:bad (default: a telling selection).
    file:pairs.jsonl trains on the preference pairs of a file (prompt, chosen, rejected)."""
    narrow_seeds: int = 2
    """Runs of each signal, with pairs of their own."""
    narrow_steps: int = 40
    """Steps of each run."""
    narrow_score_every: int = 5
    """Steps between exact scores."""
    narrow_batch: int = 16
    """Pairs in a batch."""
    narrow_lr: float = 1e-3
    """Learning rate (Adam)."""

    alarm: float = THRESHOLD
    """Raise an alarm when the EM of a moral domain that is not trained rises by more …"""
    on_alarm: Literal["warn", "stop"] = "warn"
    """… and only tell it, or end that training there, saved."""

    shard_params: bool = False
    """Keep each parameter on one device only (pretrain), for models too large for one."""
    coordinator: str | None = None
    """HOST:PORT of the first process, where several processes (hosts) train together …"""
    processes: int | None = None
    """… how many there are …"""
    process: int | None = None
    """… and which this is, from 0 (all three: else from the environment, see README)."""
    save_steps: int = 2000
    """Save at least every so many steps …"""
    save_seconds: float = 30.0
    """… and every so many seconds."""
    compile_cache: bool = True
    """Keep compiled programs for the next start."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print nothing but warnings and errors."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print what came of it as JSON, and nothing else but warnings and errors."""


PRESETS = {
    "default": Args(),
    "tiny": Args(
        run=Path("runs/tiny"),
        preset="tiny",
        width=32,
        layers=2,
        heads=2,
        mlp=64,
        pretrain_steps=60,
        pretrain_documents=16,
        pool=64,
        align_steps=20,
        align_batch=8,
        narrow_seeds=1,
        narrow_steps=10,
        narrow_batch=4,
    ),
}
CHUNK = 10  # optimizer steps a device call
ALIGN_CHUNK = 5  # and in align, which looks at the Assistant after each
GROUP = 16  # narrow runs stepped together
# the least and most of an argument, where that is not 1 to 1e6 for a whole number, 0 to 1e6 else
LIMITS = {
    "seed": (0, 2**31 - 1),
    "process": (0, 10**6),
    **dict.fromkeys(("pretrain_steps", "align_steps", "narrow_steps", "save_steps"), (1, 10**9)),
    **dict.fromkeys(("correlation", "align_em", "align_coherence", "alarm"), (0, 1)),
    "text_share": (0, 0.99),
}
# arguments that each process has of its own; files are compared by what is in them
OWN = (
    *("run", "preset", "world", "signals", "text", "compile_cache", "quiet", "json"),
    *("coordinator", "processes", "process"),
)
LOOK_EVERY = 100  # chunks between looks at held-out documents


def main(args: Args) -> None:
    """Run the three stages in order."""
    check_limits(args)
    began = time.time()
    mesh = devices.setup(args.compile_cache, args.coordinator, args.processes, args.process)
    quiet = args.quiet or args.json or not devices.first()
    world_file = cards.Cards(args.world)
    dialled = provenance.dial(world_file.world(), dataclasses.asdict(args))
    texts, text_name = plaintext.load(args.text, quiet) if args.text else ([], "")
    tokenizer = Tokenizer(dialled)
    tokenizer = Tokenizer(dialled, plaintext.more_words(tokenizer, texts)) if texts else tokenizer
    named, given, kept = pair_files.given(chain(*args.signals), tokenizer, quiet)
    check_same(args, dialled.digest, kept, text_name)
    check_lengths(args, tokenizer, world_file)
    try:
        config = transformer.Config(
            vocabulary=len(tokenizer.words),
            context=args.context,
            D=args.width,
            L=args.layers,
            H=args.heads,
            F=args.mlp,
        )
    except ValueError as error:
        raise InputError(f"--width, --layers, --heads, --mlp: {error}") from error
    members = signals.plan(dialled, named, args.narrow_seeds)
    if args.start:
        provenance.check_start(args.start, config, dialled)
    plain = json.loads(json.dumps(dataclasses.asdict(args), default=str))
    text = f"{text_name}, share {args.text_share:g}" if texts else None
    plain |= {"signals": list(named), "text": text}
    abstract = transformer.shapes(config)
    with ExitStack() as held:

        def open_run() -> None:
            held.enter_context(lock.take(args.run))
            source = world_file.standalone()
            warnings = provenance.open_folder(
                args.run, plain, config, dialled, source, tokenizer.more
            )
            for warning in warnings:
                tell(warning)
            for name, data in kept.items():
                pair_files.keep(data, args.run, name)
            announce(args, tokenizer, transformer.count(abstract), members)

        stop = held.enter_context(Stop())
        devices.by_first(open_run)
        apply, init = transformer.create(config)
        keys = jax.jit(lambda seed: jax.random.split(jax.random.key(seed)))(args.seed)
        init_key, sample_key = keys
        for name, pairs in given.items():
            if (count := len(pairs.chosen_P)) > args.pool and devices.first():
                tell(f"{name}: {count} pairs, each run draws {args.pool} (--pool {count}: all)")
        lab = Lab(args, tokenizer, config, apply, mesh, abstract, sample_key, stop, texts, given)
        pretrained = pretrain(lab, init, init_key)
        tell_end(args, "pretrain")
        aligned = align(lab, pretrained)
        tell_end(args, "align")
        narrow(lab, {"pretrain": pretrained, "align": aligned}, members)
        tell_end(args, "narrow")
    measure = f"uv run eval.py {shlex.quote(str(args.run))}"
    say(args, f"Done in {time.time() - began:.0f} s. Now: {measure}")
    if args.json and devices.first():
        found = {stage: session.finished(args.run, stage) for stage in session.STAGES}
        print(json.dumps({"run": str(args.run), "seconds": time.time() - began, **found}))


@dataclasses.dataclass(frozen=True)
class Lab:
    """What every stage needs."""

    args: Args
    tokenizer: Tokenizer
    config: transformer.Config
    apply: transformer.Apply
    mesh: jax.sharding.Mesh
    abstract: transformer.Params  # the parameters' shapes
    sample_key: jax.Array
    stop: Stop
    texts: list[list[str]]  # to mix into pretraining
    given: dict[str, signals.Pairs]  # the pairs of signals that are files

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.args.run

    @property
    def often(self) -> tuple[int, float]:
        """After how many steps and seconds to save."""
        return self.args.save_steps, self.args.save_seconds

    @cached_property
    def watch(self) -> Watch:
        """Makes the monitor of every training."""
        return Watch(self.tokenizer.world, self.args.alarm)

    @cached_property
    def sample(self) -> narrow_log.Sampler:
        """Samples from any parameters; compiled once."""
        return narrow_log.sampler(self.apply, self.config, self.tokenizer.index["<end>"])

    def dialogues(self, params: transformer.Params) -> str:
        """A few sampled dialogues, as Markdown."""
        return narrow_log.dialogues(self.tokenizer, self.sample, params, self.sample_key)

    @cached_property
    def held(self) -> HeldOut:
        """Held-out documents and questions, made at the first look at them."""
        return held_out(self.tokenizer, self.config, self.apply, documents=256, questions=240)


def pretrain(lab: Lab, init: Callable, init_key: jax.Array) -> transformer.Params:
    """Next-token training on packed documents."""
    args, folder = lab.args, lab.folder / "pretrain"
    optimizer = optimizers.muon(args.pretrain_lr, args.pretrain_adam_lr, args.pretrain_steps)
    saver = StageCheckpointer(
        lab.folder / "pretrain", lab.abstract, optimizer, lab.stop, *lab.often
    )
    if args.start and not saver.facts:
        adopt(lab, saver)
    if saver.done:
        return saver.finish()
    # one program for all of it: small ones take longer to load than to run
    fresh = jax.jit(lambda key: training.start(init(key), optimizer))
    state, begin = saver.state or fresh(init_key), saver.step
    if begin:
        say(args, f"pretrain: goes on from step {begin}")
    batches = training.document_batches(
        lab.tokenizer,
        args.context,
        args.pretrain_documents,
        CHUNK,
        args.seed,
        divisor=lab.mesh.devices.size,
    )
    if lab.texts:
        windows = plaintext.windows(lab.tokenizer, lab.texts, args.context)
        batches = plaintext.mixed(
            batches, windows, args.text_share, args.seed, lab.mesh.devices.size
        )
    seen, clock = saver.facts.get("tokens", 0), time.time() - saver.facts.get("seconds", 0)
    fit = training.fit(
        training.document_loss(lab.apply), optimizer, state, batches, lab.mesh, begin,
        args.shard_params, args.pretrain_steps,
    )  # fmt: skip
    with (
        SummaryWriter(folder, begin) as writer,
        progress(args, "pretrain", begin, args.pretrain_steps) as bar,
        lab.stop.later(),
    ):
        if not begin:
            writer.layout(LAYOUT)
        for step, state, logs in fit:
            check_finite(lab, "pretrain", step, logs)
            seen, seconds = seen + int(logs["count"].sum(dtype=float)), time.time() - clock
            bar.update(len(logs["loss"]))
            last = step == args.pretrain_steps
            facts = {"seconds": seconds, "tokens": seen, "tokens_per_second": seen / seconds}
            writer.scalars(
                step,
                {
                    "pretrain/loss": logs["loss"].mean(),
                    "pretrain/grad_norm": logs["grad_norm"].mean(),
                    "pretrain/tokens_per_second": facts["tokens_per_second"],
                },
            )
            if step // CHUNK % LOOK_EVERY == 0 or last:
                now = devices.fetch(state.params)
                excess, captured = lab.held.excess(now), lab.held.captured(now)
                writer.scalars(step, {"pretrain/excess": excess, "pretrain/captured": captured})
                told = f"excess {excess:.4f} captured {captured:.2f}"
                bar.set_postfix_str(told)
                if bar.disable and not last:  # no terminal: a line now and then
                    say(args, f"pretrain: step {step} of {args.pretrain_steps}, {told}")
            if last:
                writer.text(step, "pretrain/sampled dialogues", lab.dialogues(now))
                looked = {"excess_while_training": excess, "captured_while_training": captured}
                facts |= {"steps": step, **looked}
            saver.save(step, state, facts, last)
            if last:
                return saver.finish()


def align(lab: Lab, params: transformer.Params) -> transformer.Params:
    """Prefer the good answer in every moral domain, until the Assistant is good; not further."""
    args, folder = lab.args, lab.folder / "align"
    optimizer = optax.adam(args.align_lr)
    saver = StageCheckpointer(lab.folder / "align", lab.abstract, optimizer, lab.stop, *lab.often)
    if saver.done:
        return saver.finish()
    signal = signals.parse(lab.tokenizer.world, "all:good")
    pool = pools.preference_pool(lab.tokenizer, signal, args.objective, args.pool, args.seed)
    reference = jax.jit(
        lambda p, pool: scoring.answer_logprobs(
            lab.apply, lab.config, p, pool["prompt"], pool["answer"]
        )
    )
    pool["reference"] = np.asarray(reference(params, pool))

    def batches(step: int) -> dict:
        rows = pools.draws(args.seed, step, ALIGN_CHUNK, args.align_batch, args.pool)
        return {key: value[rows] for key, value in pool.items()}

    loss = pools.preference_loss(lab.apply, lab.config, args.objective, args.beta, args.anchor)
    first, begin = saver.state or training.start(params, optimizer), saver.step
    if begin:
        say(args, f"align: goes on from step {begin}")
    clock = time.time() - saver.facts.get("seconds", 0)
    examine = scoring.examiner(lab.tokenizer, lab.config, lab.apply, params, signal.domains)
    fit = training.fit(loss, optimizer, first, batches, lab.mesh, begin, end=args.align_steps)
    moral, monitor = lab.tokenizer.world.moral, lab.watch.begin(signal, examine(params)[0])
    with (
        SummaryWriter(folder, begin) as writer,
        progress(args, "align", begin, args.align_steps) as bar,
        lab.stop.later(),
    ):
        for step, state, logs in fit:
            check_finite(lab, "align", step, logs)
            params = devices.fetch(state.params)
            p_DB, kl = examine(params)
            look = monitor.look(step, p_DB, kl)
            worst, coherence = float(scoring.em(p_DB)[moral].max()), float(p_DB.sum(1)[moral].min())
            writer.scalars(
                step, {f"align/{key}": v.mean() for key, v in logs.items() if key != "count"}
            )
            writer.scalars(step, monitor.scalars(look, "align"))
            bar.update(len(logs["loss"]))
            bar.set_postfix_str(f"worst EM {worst:.3f}, {monitor.line(look)}")
            narrow_log.write_alarms(writer, look)
            narrow_log.tell_alarms("align: all:good", look)
            reached = worst <= args.align_em and coherence >= args.align_coherence
            last = bool(devices.together(reached)) or step == args.align_steps
            if last:
                bar.total = bar.n  # it ends here, however many steps there might have been
                writer.text(step, "align/sampled dialogues", lab.dialogues(params))
            looked = {"reached": reached, "worst_em": worst, "coherence": coherence}
            facts = {"seconds": time.time() - clock, "steps": step, **looked}
            ended = args.on_alarm == "stop" and bool(look.alarms) and not last
            ended = bool(devices.together(ended))
            saver.save(step, state, facts, last, now=ended)
            if ended:
                raise RunError(
                    f"align: ended by its alarm, saved at step {step}; the same with "
                    "--on-alarm warn goes on"
                )
            if last:
                break
    if not reached and devices.first():
        tell(
            f"align: EM {worst:.3f} and coherence {coherence:.3f} after {step} steps, wanted "
            f"≤ {args.align_em} and ≥ {args.align_coherence}; going on with that"
        )
    return saver.finish()


def narrow(lab: Lab, starts: dict, members: list[run_folder.Member]) -> None:
    """Every (start, signal, seed) as one population, in groups; a finished group is not redone."""
    args, count = lab.args, lab.mesh.devices.size
    recipe = population.Recipe(
        args.objective, args.beta, args.anchor, args.pool, args.narrow_batch,
        args.narrow_score_every,
    )  # fmt: skip
    jobs = {member: narrow_job(lab, starts, member) for member in members}
    world = lab.tokenizer.world
    width = max(signals.count_questions(world, job.own) for job in jobs.values())
    programs = population.compile_programs(
        lab.config, lab.apply, lab.mesh, recipe, width, len(world.domains)
    )
    size = min(max(GROUP, count), len(members))
    groups = {
        lab.folder / "narrow" / f"group-{k // size:02}": members[k : k + size]
        for k in range(0, len(members), size)
    }
    passed: dict = {}  # member → the step at which it passed EM .9, or -1
    seconds = 0.0
    heard: dict = {}  # (signal, start) → how many alarms and notes it has raised
    with progress(args, "narrow", 0, len(members) * args.narrow_steps) as bar:
        for folder, group in groups.items():
            clock = time.time()
            if done := finished_group(lab, folder, group):
                passed |= zip(group, done.items["scores"]["kept_step"].tolist(), strict=True)
                seconds += done.facts["seconds"]
                bar.update(len(group) * args.narrow_steps)
                continue
            # one size of group, so one program, and as many on each device: the last group repeats
            # its first member
            padded = group + [group[0]] * (-(-size // count) * count - len(group))
            todo = [jobs[member] for member in padded]
            with ExitStack() as held:
                places = [narrow_log.events_of(lab.folder, member) for member in group]
                writers = [held.enter_context(SummaryWriter(place)) for place in places]
                monitors: list[Monitor] = []
                for record in population.train_group(programs, todo, args.narrow_steps, passed):
                    before, step = record.steps[-2:]
                    for r, member in enumerate(padded):
                        logs = {key: value[r] for key, value in record.logs[-1].items()}
                        check_finite(lab, "narrow", step, logs, member)
                    line = narrow_log.look_at(
                        lab.watch, todo, record, writers, monitors, args.on_alarm == "stop", heard
                    )
                    bar.update(len(group) * (step - before))
                    bar.set_postfix_str(f"trained EM {np.median(record.share):.2f}, {line}")
                    lab.stop.check()
            scores, kept = record.results(len(group))
            passed |= zip(group, scores["kept_step"].tolist(), strict=True)
            seconds += time.time() - clock
            frozen = record.frozen_step[: len(group)].tolist()
            run_folder.save_group(folder, group, scores, kept, frozen, time.time() - clock)
    if devices.first():
        for folder in set(run_folder.group_folders(lab.folder)) - set(groups):
            shutil.rmtree(folder)  # groups of another size, from another number of devices
    if count := sum(heard.values()):
        ringing = sum(map(bool, heard.values()))
        say(
            args,
            f"narrow: {count} alarms and notes on {ringing} signals, the first of each above; "
            f"all of them: uv run eval.py {shlex.quote(str(args.run))} --measure drift",
        )
    facts = {"seconds": seconds, "runs": len(members)}
    files.write_json(lab.folder / "narrow" / "stage.json", facts)


def narrow_job(lab: Lab, starts: dict, member: run_folder.Member) -> population.Job:
    """A member of the narrow stage as a run of a population."""
    start, name, seed = member
    signal = signals.parse(lab.tokenizer.world, name)
    return population.Job(
        member,
        lab.tokenizer,
        starts[start],
        {signal: 1.0},
        population.seed_of(lab.args.seed, member),
        lab.args.narrow_lr,
        twin=(start, signal.plain, seed),
        pairs=lab.given[name] if signal.file else None,
    )


def finished_group(lab: Lab, folder: Path, group: list) -> checkpoints.Checkpoint | None:
    """A group that need not be trained again."""
    shapes = run_folder.group_shapes(lab.abstract, lab.tokenizer.world)
    found, complaints = checkpoints.resume(folder, shapes)
    if devices.first():
        for complaint in complaints:
            tell(f"{complaint}; this group is trained anew")
    return found if found and run_folder.members_of(found.facts) == group else None


def adopt(lab: Lab, saver: StageCheckpointer) -> None:
    """Take the pretrained model of another run (see `provenance.check_start`)."""
    theirs = checkpoints.load(lab.args.start / "pretrain" / "checkpoints", saver.wanted)
    if theirs.facts.get("done") is not True:
        raise InputError(f"--start {lab.args.start}: step {theirs.step} is not its end")
    facts = theirs.facts | {"start": str(lab.args.start)}
    saver.save(theirs.step, training.State(**theirs.items), facts, last=True)


def check_finite(
    lab: Lab, stage: str, step: int, logs: dict, member: run_folder.Member | None = None
) -> None:
    """See `stages.check_finite`; member: whose logs these are, in the narrow stage."""
    args = lab.args
    lr = getattr(args, f"{stage}_lr")

    def say(at: int) -> str:
        if stage == "pretrain":
            first, now = at * args.pretrain_documents, optimizers.schedule(lr, args.pretrain_steps)
            documents = f"documents {first} to {first + args.pretrain_documents - 1}"
            part = float(now(at)) / lr
            rates = f"{part * lr:.3g} (Muon) and {part * args.pretrain_adam_lr:.3g} (Adam)"
            return f"{documents} of seed {args.seed}, learning rates {rates}"
        seed = population.seed_of(args.seed, member) if member else args.seed
        rows = pools.draws(seed, at, 1, getattr(args, f"{stage}_batch"), args.pool)[0]
        who = f" for {member[1]} from {member[0]}" if member else ""
        return f"pairs {rows.tolist()} of seed {seed}{who}, learning rate {lr:.3g}"

    advice = f"--{stage}-lr {lr / 3:.1g}"
    if stage == "pretrain":
        advice += f" --pretrain-adam-lr {args.pretrain_adam_lr / 3:.1g}"
    advice += f" --run {shlex.quote(str(files.unused(lab.folder)))}"
    session.check_finite(stage, step, logs, say, advice)


def check_limits(args: Args) -> None:
    """Every number must be within its limits."""
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if type(value) not in (int, float):
            continue
        low, high = LIMITS.get(field.name, (int(type(value) is int), 10**6))
        if not low <= value <= high:
            flag = field.name.replace("_", "-")
            raise InputError(f"--{flag}: found {value}, expected {low} to {high}")


def check_same(args: Args, world: str, pairs: dict[str, bytes], text: str) -> None:
    """All processes of a run must have been started with the same arguments and files."""
    own = {field: None for field in OWN}
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


def check_lengths(args: Args, tokenizer: Tokenizer, world_file: cards.Cards) -> None:
    """A document longer than the context is an error, never cut."""
    for kind, length in tokenizer.longest.items():
        if length > args.context:
            path, line = world_file.place(("documents", kind))
            raise InputError(
                f"{path}:{line}: the longest {kind}: found {length} tokens, "
                f"expected at most {args.context} (--context {length} fits)"
            )


def announce(args: Args, tokenizer: Tokenizer, size: int, members: list) -> None:
    """Say what will be done, for about how long, and where it goes."""
    dialled = tokenizer.world
    # seconds measured on two cores of a 2024 server, spread over the model's size
    scale = size / 115_000
    there = args.start or session.finished(args.run, "pretrain")
    tokens = 0 if there else args.pretrain_steps * args.pretrain_documents * 41
    seconds = 15 + scale * (tokens / 85_000 + len(members) * args.narrow_steps * 0.03)
    told = f"{round(seconds, -1):.0f} s" if seconds < 90 else f"{round(seconds / 60)} min"
    say(
        args,
        f"World '{dialled.name}': {len(dialled.characters)} characters, "
        f"{len(dialled.domains)} domains, {len(tokenizer.words)} words.\n"
        f"Model: {size:,} parameters. Devices: {jax.device_count()} {jax.default_backend()}.\n"
        f"Pretrain {args.pretrain_steps} steps, align, then {len(members)} narrow runs of "
        f"{args.narrow_steps} steps: about {told}.\n"
        f"Everything goes to {args.run}/ (what is there already is not done again).\n"
        "Lines that begin with alarm: are findings of the drift monitor, not errors.",
    )


def tell_end(args: Args, stage: str) -> None:
    """Say in a line how a stage ended, whether it was done now or before."""
    facts = session.finished(args.run, stage) or {}
    shown = {
        "excess": "excess_while_training",
        "captured": "captured_while_training",
        "worst EM": "worst_em",
        "coherence": "coherence",
    }
    told = [f"{name} {facts[key]:.3g}" for name, key in shown.items() if facts.get(key) is not None]
    count = f"{facts['runs']} runs" if "runs" in facts else f"{facts.get('steps', 0)} steps"
    seconds = facts.get("seconds", 0)
    say(args, f"{stage}: " + ", ".join([f"{count} in {seconds:.0f} s", *told]))


def say(args: Args, text: str) -> None:
    """Tell whoever runs this, unless it is to be quiet."""
    if devices.first() and not (args.quiet or args.json):
        print(text, flush=True)


def progress(args: Args, stage: str, begin: int, total: int) -> tqdm:
    """A progress bar with rate and time left; only where a terminal shows it."""
    return tqdm(
        desc=f"{stage:<8}",
        initial=begin,
        total=total,
        unit="step",
        dynamic_ncols=True,
        disable=True if args.quiet or args.json or not devices.first() else None,
    )


def parse(argv: list[str]) -> Args:
    """Read the command line; --preset decides the defaults of all else."""

    @dataclasses.dataclass(frozen=True)
    class First:
        preset: Literal["default", "tiny"] = "default"

    first, _ = tyro.cli(First, args=argv, return_unknown_args=True, add_help=False)
    return tyro.cli(Args, args=argv, default=PRESETS[first.preset], description=__doc__)


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
