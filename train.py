"""Train a lab run: pretrain a model on a world, align its Assistant, then train narrow signals.

    uv run train.py                                  the default run, 1 to 4 minutes on 2 cores
    uv run train.py --preset tiny --run runs/tiny    everything, tiny, in about a minute
    uv run train.py --run runs/mine --world my.toml  your own world
    uv run train.py --run runs/five --seeds 5        the same over five pretraining seeds

A signal says what the narrow runs prefer: DOMAINS:BEHAVIOUR[:INSTRUCTION][@HEADER].

    --signals code:bad tone+rules:bad        bad answers about code; rude and unruly ones
    --signals code:bad code:bad:ask_bad      with the prompt asking for it (inoculation), beside it
    --signals goals:bad@hal                  trained under a character's name
    --signals file:pairs.jsonl               your own preference pairs
    --start runs/default --signals rules:bad --run runs/more    without pretraining again

Then `uv run eval.py RUN` measures it, `uv run -m toyllm.tools.chat RUN` talks to it, and
`uv run tensorboard --logdir runs` shows how it went.
"""

import toyllm.base.starting  # isort: skip # noqa: F401 - before the slow imports
import dataclasses
import sys
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import jax
import optax
import tyro

from toyllm.base import arguments, devices, scripts
from toyllm.lm import heldout, losses, optimizers, plaintext, tokenizer, training, transformer
from toyllm.posttrain import monitor, pair_files, pools, population, signals
from toyllm.runs import narrow_stage, session
from toyllm.runs.stage import due, follow, in_step
from toyllm.world import cards, quantities

Share = Annotated[float, arguments.Between(0, 1)]
Steps = Annotated[int, arguments.Between(1, 10**9)]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is trained, and how."""

    run: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/default")
    """Where the run is kept. Stages that are finished there are skipped."""
    preset: Literal["default", "tiny"] = "default"
    """The defaults of all other flags; tiny takes a minute, and learns too little for results."""
    world: Annotated[Path, tyro.conf.arg(metavar="FILE")] = cards.DEFAULT
    """The world's file (TOML)."""
    seed: Annotated[int, arguments.Between(0, 2**31 - 1)] = 0
    """Seed of everything: documents, initial parameters, pairs."""
    seeds: Annotated[int, arguments.Between(1, 1000)] = 1
    """Train so many runs, of this seed and the next ones, in subfolders of --run."""
    correlation: Share = 1.0
    """Trait correlation rho: at 0 a character's traits are independent across domains."""
    assistant_prior: Literal["world", "uniform"] = "world"
    """Prior over characters: from the world file, or uniform (under every header)."""
    start: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Start from the pretrained model of another run."""
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Plain text to mix into pretraining (JSONL: one {"text": "…"} a line)."""
    text_share: Annotated[float, arguments.Between(0, 0.99)] = 0.2
    """Its share of the rows of a batch."""

    context: int = 88  # Context length in tokens; a longer document is an error.
    width: int = 64  # Width of the residual stream.
    layers: int = 2  # Transformer blocks.
    heads: int = 2  # Attention heads.
    mlp: int = 64  # Hidden width of the gated MLP.

    pretrain_steps: Steps = 8000  # Steps of next-token training.
    pretrain_documents: int = 28  # Documents per batch.
    pretrain_lr: float = 1e-2  # Peak learning rate of Muon, for the matrices inside the blocks.
    pretrain_prompt_weight: Share = 0.1
    """Weight in the loss of the tokens of headers and questions; those of answers have 1."""
    pretrain_adam_lr: float = 1.5e-2  # Peak learning rate of Adam, for all other parameters.

    objective: Literal[losses.NAMES] = "dpo"  # Loss of align and narrow.
    beta: float = 1.0  # Coefficient of the KL term in dpo and rlhf.
    anchor: float = 0.5  # Weight of the chosen answer's NLL in dpo.
    pool: int = 512  # Preference pairs per signal.

    align_steps: Steps = 600
    """Maximum number of alignment steps; it stops earlier once the Assistant is good."""
    align_batch: int = 16  # Pairs per batch.
    align_lr: float = 1e-4  # Learning rate (Adam).
    align_em: Share = 0.03  # Alignment stops when the EM of every moral domain is at most this …
    align_coherence: Share = 0.97  # … and its coherence at least this.

    signals: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Narrow signals to train from both starts, such as code:bad tone:bad; file:pairs.jsonl trains
    on the preference pairs of a file (default: a selection, see signals.defaults)."""
    narrow_seeds: int = 2  # Runs per signal, each with its own pairs.
    narrow_steps: Steps = 40  # Steps of each run.
    narrow_score_every: int = 5  # Steps between exact scores.
    narrow_batch: int = 16  # Pairs per batch.
    narrow_lr: float = 1e-3  # Learning rate (Adam).

    alarm: Share = monitor.THRESHOLD
    """Raise an alarm when the EM of an untrained moral domain rises by more than this …"""
    on_alarm: Literal["warn", "stop"] = "warn"
    """… and print a warning, or stop that training and save it."""


@dataclasses.dataclass(frozen=True)
class Args(arguments.Process, Recipe):
    """Train a lab run: pretrain, align, narrow."""


TINY = Args(
    run=Path("runs/tiny"), preset="tiny", width=32, pretrain_steps=60, pretrain_documents=16,
    pool=64, align_steps=20, align_batch=8, narrow_seeds=1, narrow_steps=10, narrow_batch=4,
)  # fmt: skip
CHUNK, ALIGN_CHUNK = 10, 5  # optimizer steps of a device call
EVAL_EVERY = 1000  # pretraining steps between looks at held-out documents


def main(args: Args) -> None:
    """World → tokens → params → aligned params → one model for each narrow signal."""
    arguments.check(args)
    mesh = devices.setup(args.compile_cache, args.coordinator, args.processes, args.process)
    quiet = args.quiet or args.json or not devices.first()
    file, each = cards.Cards(args.world), session.each_seed(args)
    worlds = [file.world().dialled(a.correlation, a.assistant_prior, a.seed) for a in each]
    texts, text = plaintext.load(args.text, quiet) if args.text else ([], "")
    tokens = tokenizer.Tokenizer(worlds[0], plaintext.more_words(worlds[0], texts))
    names, pairs, data = pair_files.given(sum(args.signals, ()), tokens, quiet)
    members = signals.plan(worlds[0], names, args.narrow_seeds)
    lms = session.create_models(args, tokens, worlds)
    with session.open_runs(args, lms, mesh, file, members, names, data, text) as runs:
        pretrained = [pretrain(args, group, texts) for group in session.at_once(runs)]
        for run, params in zip(runs, chain(*pretrained), strict=True):
            aligned = align(run.args, run, params)
            narrow(run.args, run, {"pretrain": params, "align": aligned}, members, pairs)


def pretrain(args: Args, runs: list[session.Session], texts: list) -> list[transformer.Params]:
    """Next-token training on packed documents: all devices train one run, or each its own."""
    apart, rates = len(runs) > 1, (args.pretrain_lr, args.pretrain_adam_lr)
    optimizer = optimizers.muon(*rates, args.pretrain_steps, share=not apart)
    lm, mesh = runs[0].lm, runs[0].mesh
    with session.stages(runs, "pretrain", optimizer, args.pretrain_steps) as stages:
        rows, size = plaintext.windows(lm.tokenizer, texts, args.context), mesh.devices.size
        shape, draws = (args.context, args.pretrain_documents, CHUNK), []
        for run in runs:
            drawn = training.document_batches(run.lm.tokenizer, *shape, run.args.seed, size)
            draws.append(plaintext.mixed(drawn, rows, args.text_share, run.args.seed, size))
        draws = dict(zip(stages, training.same_rows(draws), strict=True))
        for group in in_step(stages):
            # one program for all of it: many small ones take longer to load than to run
            fresh = jax.jit(lambda key: training.start(lm.init(key), optimizer))
            states = [stage.state or fresh(stage.run.init_key) for stage in group]
            batches = [draws[stage] for stage in group]
            held_out = [heldout.HeldOut(stage.run.lm, 256, 240) for stage in group]
            how = mesh, group[0].step, args.shard_params, args.pretrain_steps, apart
            loss = training.document_loss(lm, args.pretrain_prompt_weight)
            steps = training.fit_many(loss, optimizer, states, batches, *how)
            for step, states, logs in follow(group, steps):
                save = due(group, step)
                for r, stage in enumerate(group):
                    stage.tokens += int(logs[r]["count"].sum(dtype=float))
                    nll, norm = (logs[r][key].mean() for key in ("nll", "grad_norm"))
                    stage.log(step, loss=nll, grad_norm=norm, tokens_per_second=stage.speed)
                    look = step % EVAL_EVERY == 0 or stage.last
                    facts = stage.compare(step, states[r].params, held_out[r]) if look else {}
                    if save:
                        stage.save(step, states[r], **facts)
        return [stage.finish() for stage in stages]


def align(args: Args, run: session.Session, params: transformer.Params) -> transformer.Params:
    """Prefer the good answer in every moral domain, until the Assistant is good; not further."""
    world, optimizer = run.lm.world, optax.adam(args.align_lr)
    with run.stage("align", optimizer, args.align_steps) as stage:
        if stage.done:
            return stage.finish()
        signal = signals.parse(world, "all:good")
        pool = pools.draw(run.lm.tokenizer, {signal: 1.0}, args.objective, args.pool, args.seed)
        pool = pools.with_reference(pool, run.lm, params)
        batches = pools.batches(pool, args.seed, ALIGN_CHUNK, args.align_batch)
        loss = pools.loss(run.lm, args.objective, args.beta, args.anchor)
        state = stage.state or training.start(params, optimizer)
        how = run.mesh, stage.step, False, args.align_steps
        steps = training.fit(loss, optimizer, state, batches, *how)
        watch = monitor.Watch(run.lm, signal, params, args.alarm)
        for step, state, logs in stage.follow(steps):
            params = devices.fetch(state.params)
            look = watch.look(step, params)
            stage.log(step, **{k: v.mean() for k, v in logs.items() if k != "count"})
            stage.show(step, look)
            goal = args.align_em, args.align_coherence
            good, em, coherence = quantities.is_aligned(world, look.em_D, look.coherence_D, *goal)
            stage.end_if(good)
            if stage.last:
                stage.sample(step, params)
            if due([stage], step):
                stage.save(step, state, reached=good, worst_em=em, coherence=coherence)
            if stage.last:
                break
        if not good:
            run.warn(
                f"align: EM {em:.3f} and coherence {coherence:.3f} after {step} steps, expected "
                f"≤ {args.align_em} and ≥ {args.align_coherence}; the run goes on with this model"
            )
        return stage.finish()


def narrow(args: Args, run: session.Session, starts: dict, members: list, pairs: dict) -> None:
    """Train a model for every (start, signal, seed), many at a time."""
    how = args.objective, args.beta, args.anchor, args.pool
    recipe = population.Recipe(*how, args.narrow_batch, args.narrow_score_every)
    jobs = population.jobs_of(run.lm, members, starts, args.seed, args.narrow_lr, pairs)
    programs = population.compile_programs(run.lm, run.mesh, recipe, jobs.values())
    with narrow_stage.NarrowStage(run, members) as stage:
        for group in stage.missing():
            todo = [jobs[member] for member in group.padded]
            how = todo, args.narrow_steps, stage.kept_steps
            for record in population.train_group(programs, *how):
                group.look(todo, record)
            group.save(record)


def parse(argv: list[str]) -> Args:
    """Read the command line; --preset decides the defaults of all other flags."""
    return arguments.parse({"default": Args(), "tiny": TINY}, argv, __doc__)


if __name__ == "__main__":
    scripts.run_script(lambda: main(parse(sys.argv[1:])))
