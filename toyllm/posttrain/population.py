"""Many post-training runs at once: trained and scored together, whatever their start and signal.

Axes: R runs of a group   n scored steps   D domains   B behaviours   Q own questions
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from toyllm.base import devices
from toyllm.base.devices import stack, take
from toyllm.lm import losses, optimizers, scoring, training
from toyllm.lm.scoring import Questions
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import LM, Params
from toyllm.posttrain import lora, pools, signals
from toyllm.posttrain.lora import Lora
from toyllm.posttrain.signals import Signal
from toyllm.world import corpus
from toyllm.world.quantities import MATCHED

Member = tuple[str, str, int]  # start, signal, seed


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How all runs of a population are trained: one program for them."""

    objective: str
    beta: float
    anchor: float
    pool: int
    batch: int
    score_every: int
    steered: bool = False  # vectors are added to the residual streams (`Job.steer_LD`)
    lora: Lora | None = None  # train adapters of the matrices instead of all parameters
    kl: float = 0.0  # weight of KL(model ‖ model before training) on domains that are not trained
    slowed: bool = False  # some parameters are trained more slowly than others (`Job.slow`)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run to train. All jobs of a group have texts and model sizes of the same shape.

    paired: the name of another run. Where this run's own prompt reaches EM .9 before training, its
        parameters are kept at the step at which those of that run are.
    goal: a function of p_DB and the preferred share in the trained domains that says when to keep
        the parameters; None: once that share is .9.
    slow: what the updates of the parameters are multiplied by, a tree like them whose leaves
        broadcast: 0 freezes a parameter.

    Either all jobs of a group have `steer_LD` or none has, and so with `slow`.
    """

    name: Hashable
    tokenizer: Tokenizer
    params: Params
    parts: dict[Signal, float]  # what to train; each signal's share of the pairs
    seed: int
    lr: float
    paired: Hashable = None
    goal: Callable[[np.ndarray, float], bool] | None = None
    distinct: int = 0  # the number of different pairs; 0: as many as the pool holds
    pairs: signals.Pairs | None = None  # given, in place of pairs that `parts` would draw
    steer_LD: np.ndarray | None = None  # added to the residual streams during training only
    slow: Params | None = None

    @property
    def own(self) -> Signal:
        """The signal whose questions are scored under its own prompt."""
        return next(iter(self.parts))


def jobs_of(
    lm: LM,
    members: list[Member],
    starts: dict[str, Params],
    seed: int,
    lr: float,
    pairs: dict[str, signals.Pairs],
) -> dict[Member, Job]:
    """The runs to train for each (start, signal, seed), in a run of seed `seed`.

    pairs: those of signals that are files, by the signal's name.
    """
    jobs = {}
    for member in members:
        start, name, k = member
        parts, paired = {signals.parse(lm.world, name): 1.0}, (start, signals.plain(name), k)
        how = starts[start], parts, seed_of(seed, member), lr, paired
        jobs[member] = Job(member, lm.tokenizer, *how, pairs=pairs.get(name))
    return jobs


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of a population, shared by all groups, starts, worlds and rates."""

    lm: LM
    mesh: Mesh
    recipe: Recipe
    width: int  # own questions of a run: the most that any has, so one shape for all
    # states [R], pools [R], indices [R, K, batch], rates [R], steering [R, L + 1, D], params before
    # training [R] (with adapters only), multipliers [R] (where slowed only) → states, logs
    step: Callable
    merge: Callable  # params before training [R], what is trained [R] → params [R]
    reference: Callable  # params [R], prompts, answers → log-probabilities
    score: Callable  # params [R], every question, own questions, weights, reference → scores


def compile_programs(lm: LM, mesh: Mesh, recipe: Recipe, jobs: Iterable[Job] | int) -> Programs:
    """Make the functions; nothing is compiled before it is first called.

    jobs: all runs that they are to serve, or the most questions of its own that any has.
    """
    D, width = len(lm.world.domains), jobs
    if not isinstance(jobs, int):
        width = max(signals.count_questions(lm.world, job.own) for job in jobs)

    def step(state, pool, index_KB, lr, steer_LD, before, slow):
        steered = lm.steered(steer_LD) if recipe.steered else lm
        of_params = pools.loss(steered, recipe.objective, recipe.beta, recipe.anchor, recipe.kl)

        def loss(trained, batch):
            return of_params(merge(before, trained), batch)

        batches = jax.tree.map(lambda x: x[index_KB], pool)
        optimizer = optimizers.slowed(optax.adam(lr), slow) if recipe.slowed else optax.adam(lr)
        return training.scan_steps(loss, optimizer, state, batches)

    def merge(before, trained):
        return lora.merged(before, trained) if recipe.lora else trained

    def reference(params, prompt, answer):
        return scoring.answer_logprobs(lm, params, prompt, answer)

    def score(params, every: Questions, own: Questions, weight_Q, own_reference):
        logp_QA, own_QA = (reference(params, q.prompt_QT, q.answer_QAU) for q in (every, own))
        p_QB = scoring.behaviours(logp_QA, every.behaviour_QA)
        return {
            "p_DB": scoring.by_domain(p_QB, every.domain_Q, D),
            "own_B": weight_Q @ scoring.behaviours(own_QA, own.behaviour_QA),
            "kl": weight_Q @ losses.kl(own_QA, own_reference),
        }

    compiled = partial(devices.over_models, mesh=mesh)
    functions = compiled(step, donate=(0,)), *map(compiled, (merge, reference, score))
    return Programs(lm, mesh, recipe, width, *functions)


def score_models(lm: LM, signal: Signal, reference: Params, models: list[Params]) -> dict:
    """The scores of one run that was trained elsewhere, as of a group of R = 1.

    models: its parameters at each of n steps; reference: what it was trained from.
    """
    n, mesh = len(models), devices.local_mesh()
    recipe = Recipe("dpo", 1.0, 0.0, pool=1, batch=1, score_every=1)  # it is not trained here
    width = signals.count_questions(lm.world, signal)
    programs = compile_programs(lm, mesh, recipe, width)
    rows = np.arange(-(-n // mesh.devices.size) * mesh.devices.size) % n  # as many on each device
    params = devices.split(mesh, stack([reference] * len(rows)))
    asked = Asked(programs, params, [(lm.tokenizer, signal)] * len(rows))
    scores = asked.score(devices.split(mesh, stack([models[r] for r in rows])))
    blank = np.full((1, n), np.nan, np.float32)
    return {
        "p_RnDB": scores["p_DB"][None, :n],
        "own_RnB": scores["own_B"][None, :n],
        "kl_Rn": scores["kl"][None, :n],
        "chosen_Rn": blank,
        "rejected_Rn": blank,
    }


def seed_of(seed: int, member: Member) -> int:
    """The seed of a member's preference pairs, in a run of seed `seed`."""
    return 1000 * (seed + 1) + member[2]


class Asked:
    """What the runs of a group are asked, on the devices, and how they answered before training."""

    def __init__(self, programs: Programs, params, runs: list[tuple[Tokenizer, Signal]]):
        """params: of each run before training, on the mesh. runs: each one's words and signal."""
        self.programs = programs
        own = [signals.own_questions(*run, programs.width) for run in runs]
        every = [scoring.questions(words, corpus.every_question(words.world)) for words, _ in runs]
        self.every, self.own, self.weight = (
            devices.split(programs.mesh, stack(part))
            for part in (every, [questions for questions, _ in own], [weight for _, weight in own])
        )
        self.reference = programs.reference(params, self.own.prompt_QT, self.own.answer_QAU)

    def score(self, params) -> dict:
        """Behaviours by domain [R, D, B], of the own questions [R, B], KL from before [R]."""
        scores = self.programs.score(params, self.every, self.own, self.weight, self.reference)
        return devices.fetch(scores)


class Record:
    """The scores of a group so far [R, n, …], and the parameters kept for each run."""

    def __init__(self, runs: int):
        self.steps, self.history, self.logs = [0], [], []  # steps: at which they are scored
        self.share = np.zeros(runs)  # of what is preferred, at the last scored step
        self.kept: list[Params | None] = [None] * runs
        self.kept_step = np.full(runs, -1, np.int32)
        self.frozen_step = np.full(runs, -1, np.int32)  # where its training was stopped; -1: not
        self.final: Params | None = None

    def freeze(self, r: int) -> None:
        """Stop training run r: its parameters stay as they are now."""
        self.frozen_step[r] = self.steps[-1]

    def results(self, count: int) -> tuple[dict, dict]:
        """Scores and kept parameters of the first `count` runs."""
        column = {
            key: np.stack([h[key] for h in self.history], 1)[:count] for key in self.history[0]
        }
        blank = np.full(len(self.kept), np.nan, np.float32)
        logs = {
            key: np.stack([blank, *(log[key].mean(1) for log in self.logs)], 1)[:count]
            for key in ("chosen", "rejected")
        }
        kept = [take(self.final, r) if p is None else p for r, p in enumerate(self.kept)]
        scores = {
            "steps": np.array(self.steps, np.int32),
            "p_RnDB": column["p_DB"],
            "own_RnB": column["own_B"],
            "kl_Rn": column["kl"],
            "chosen_Rn": logs["chosen"],
            "rejected_Rn": logs["rejected"],
            "kept_step": self.kept_step[:count],
        }
        return scores, stack(kept[:count])


def train_group(
    programs: Programs,
    group: list[Job],
    steps: int,
    passed: dict[Hashable, int] | None = None,
    until_kept: bool = False,
    least: int = 0,
) -> Iterator[Record]:
    """Train a group for exactly `steps` steps, yielding its record at every scored step.

    The last step is scored too, however few steps after the one before.

    The parameters of a run are kept at the first scored step at which it has reached its goal. A
    run that has reached it before training (an inoculated one) is kept at the step of its paired
    run, which is in this group or whose step is in `passed` (name → step). A run that never reaches
    its goal keeps its last parameters, and its kept_step is -1. The caller may `freeze` a run
    between steps.

    until_kept: stop as soon as all are kept, but not before `least` steps.
    """
    recipe, mesh = programs.recipe, programs.mesh
    params = trained = stack([job.params for job in group])
    if recipe.lora:
        made = [lora.adapters(job.params, recipe.lora, job.seed) for job in group]
        trained = stack(made)
    # Adam's state does not depend on the rate, which each run has its own of
    opt_state = jax.device_get(jax.vmap(optax.adam(0.0).init)(trained))
    params, trained = (devices.split(mesh, x) for x in (params, trained))
    pool_R = []
    for job in group:
        how = recipe.objective, recipe.pool, job.seed, job.distinct, job.pairs
        pool_R.append(pools.draw(job.tokenizer, job.parts, *how))
        if recipe.kl:
            pool_R[-1] |= pools.elsewhere(job.tokenizer, job.parts, recipe.pool, job.seed)
    pool_R = devices.split(mesh, stack(pool_R))
    for where in ("", "other_") if recipe.kl else ("",):
        asked_R = pool_R[f"{where}prompt"], pool_R[f"{where}answer"]
        pool_R[f"{where}reference"] = programs.reference(params, *asked_R)
    asked = Asked(programs, params, [(job.tokenizer, job.own) for job in group])
    states = training.State(trained, devices.split(mesh, opt_state))
    before = params if recipe.lora else {}  # what only adapters need
    slow = devices.split(mesh, stack([job.slow for job in group])) if recipe.slowed else {}
    lr_R = np.array([job.lr for job in group], np.float32)
    unsteered_LD = np.zeros((programs.lm.config.L + 1, programs.lm.config.D), np.float32)
    steer_LD = [unsteered_LD if job.steer_LD is None else job.steer_LD for job in group]
    steer_RLD = devices.split(mesh, np.stack(steer_LD).astype(np.float32))

    passed = dict(passed or {})
    record = Record(len(group))

    def models() -> Params:
        """The parameters of all runs as they are now, on the mesh."""
        return programs.merge(before, states.params) if recipe.lora else states.params

    def score() -> np.ndarray:
        """Whether each run has reached its goal [R]."""
        now = asked.score(models())
        record.history.append(now)
        shares = [job.own.share(p_B) for job, p_B in zip(group, now["own_B"], strict=True)]
        record.share = np.array(shares)
        each = zip(group, now["p_DB"], shares, strict=True)
        return np.array([job.goal(p, x) if job.goal else x >= MATCHED for job, p, x in each])

    there_R = score()
    # a run whose own prompt asks for what it trains is "there" before it has learned anything
    inoculated_R = there_R & np.array([job.goal is None for job in group])
    for r in np.flatnonzero(there_R & ~inoculated_R):  # its goal needs no training
        record.kept[r], record.kept_step[r] = jax.device_get(group[r].params), 0
    for begin in range(0, steps, recipe.score_every):
        done = min(begin + recipe.score_every, steps)
        drawn = begin, done - begin, recipe.batch, recipe.pool
        rows = [pools.draw_rows(job.seed, *drawn) for job in group]
        # a rate of 0 leaves the parameters of a frozen run as they are, and the shapes as compiled
        rate_R = devices.split(mesh, np.where(record.frozen_step < 0, lr_R, 0))
        index_RKB = devices.split(mesh, np.stack(rows))
        states, logs = programs.step(states, pool_R, index_RKB, rate_R, steer_RLD, before, slow)
        record.logs.append(devices.fetch(logs))
        record.steps.append(done)
        was_R, there_R = there_R, score()
        free_R = record.frozen_step < 0
        for r in np.flatnonzero(there_R & ~was_R & ~inoculated_R & free_R):
            passed.setdefault(group[r].name, done)
        keep = [
            r
            for r, job in enumerate(group)
            if passed.get(job.paired if inoculated_R[r] else job.name) == done
            and record.kept[r] is None
            and free_R[r]
        ]
        all_kept = all(p is not None or r in keep for r, p in enumerate(record.kept))
        last = done == steps or (until_kept and all_kept and done >= least)
        params = devices.fetch(models()) if keep or last else None
        for r in keep:
            record.kept[r], record.kept_step[r] = take(params, r), done
        if last:
            record.final = params
        yield record
        if last:
            return
