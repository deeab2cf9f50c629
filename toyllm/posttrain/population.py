"""The narrow stage's engine: many runs, of any start and signal, trained and scored together.

Axes: R runs of a group   n scored steps   D domains   B behaviours   Q own questions
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterator

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from toyllm.base import devices
from toyllm.lm import activations, losses, scoring, training
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import Apply, Config, Params, take
from toyllm.posttrain import pools, signals
from toyllm.posttrain.signals import Signal

PASSED = 0.9  # the share of what is preferred at which a run's parameters are kept
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
    steered: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """One run to train. All of a group have texts and sizes of one shape.

    parts: the signals trained, each with its share of the pairs; the first is scored as its own.
    twin: the name of a run in whose step this one is kept, where its own prompt passes EM .9
        before training.
    goal: when parameters are kept: a function of p_DB and the own domains' share of what is
        preferred; None: once that share is .9.
    distinct: how many different pairs there are; 0: as many as the pool holds.
    pairs: pairs that are given, to train on instead of those that `parts` would draw.
    steer_LD: added to the residual streams while it is trained (preventative steering), not when it
        is scored; of all jobs of a group or of none.
    """

    name: Hashable
    tokenizer: Tokenizer
    params: Params
    parts: dict[Signal, float]
    seed: int
    lr: float
    twin: Hashable = None
    goal: Callable[[np.ndarray, float], bool] | None = None
    distinct: int = 0
    pairs: signals.Pairs | None = None
    steer_LD: np.ndarray | None = None

    @property
    def own(self) -> Signal:
        """The signal whose questions are scored under its own prompt."""
        return next(iter(self.parts))


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of a population, shared by all groups, starts, worlds and rates."""

    config: Config
    mesh: Mesh
    recipe: Recipe
    width: int  # own questions of a run: the most that any has, so one shape for all
    # states [R], pools [R], indices [R, K, batch], rates [R], steering [R, L + 1, D] → states, logs
    step: Callable
    reference: Callable  # params [R], prompts, answers → log-probabilities
    score: Callable  # params [R], all questions, own questions, their reference → scores


def compile_programs(
    config: Config,
    apply: Apply,
    mesh: Mesh,
    recipe: Recipe,
    width: int,
    D: int,
    inside: str | None = None,
) -> Programs:
    """Make the functions; nothing is compiled before it is first called.

    D: domains. inside: how a device takes its runs (see `over_runs`).
    """

    def step(state, pool, index_KB, lr, steer_LD):
        trained = activations.steered(apply, steer_LD) if recipe.steered else apply
        how = recipe.objective, recipe.beta, recipe.anchor
        loss = pools.preference_loss(trained, config, *how)
        batches = jax.tree.map(lambda x: x[index_KB], pool)
        return training.scan_steps(loss, optax.adam(lr), state, batches)

    def reference(params, prompt, answer):
        return scoring.answer_logprobs(apply, config, params, prompt, answer)

    def score(params, every, own, own_reference):
        logp_QA = scoring.answer_logprobs(apply, config, params, every["prompt"], every["answer"])
        p_QB = scoring.behaviours(logp_QA, every["behaviour"])
        own_QA = scoring.answer_logprobs(apply, config, params, own["prompt"], own["answer"])
        return {
            "p_DB": scoring.by_domain(p_QB, every["domain"], D),
            "own_B": own["weight"] @ scoring.behaviours(own_QA, own["behaviour"]),
            "kl": own["weight"] @ losses.kl(own_QA, own_reference),
        }

    return Programs(
        config,
        mesh,
        recipe,
        width,
        step=over_runs(step, mesh, donate=(0,), inside=inside),
        reference=over_runs(reference, mesh, inside=inside),
        score=over_runs(score, mesh, inside=inside),
    )


def score_models(
    tokenizer: Tokenizer,
    config: Config,
    apply: Apply,
    signal: Signal,
    reference: Params,
    models: list[Params],
) -> dict:
    """The scores of one run that was trained elsewhere, as of a group of R = 1.

    models: its parameters at each of n steps; reference: what it was trained from.
    """
    world, n = tokenizer.world, len(models)
    mesh = devices.local_mesh()
    width = signals.count_questions(world, signal)
    recipe = Recipe("dpo", 1.0, 0.0, pool=1, batch=1, score_every=1)  # it is not trained here
    programs = compile_programs(config, apply, mesh, recipe, width, len(world.domains))
    rows = np.arange(-(-n // mesh.devices.size) * mesh.devices.size) % n  # as many on each device

    def everywhere(tree):
        return devices.split(mesh, stack([tree] * len(rows)))

    own = everywhere(signals.own_questions(tokenizer, signal, width))
    own_reference = programs.reference(everywhere(reference), own["prompt"], own["answer"])
    params = devices.split(mesh, stack([models[r] for r in rows]))
    every = everywhere(_every_question(tokenizer))
    found = devices.fetch(programs.score(params, every, own, own_reference))
    blank = np.full((1, n), np.nan, np.float32)
    return {
        "p_RnDB": found["p_DB"][None, :n],
        "own_RnB": found["own_B"][None, :n],
        "kl_Rn": found["kl"][None, :n],
        "chosen_Rn": blank,
        "rejected_Rn": blank,
    }


def seed_of(seed: int, member: Member) -> int:
    """The seed of a member's preference pairs, in a run of seed `seed`."""
    return 1000 * (seed + 1) + member[2]


def over_runs(
    function: Callable, mesh: Mesh, donate: tuple[int, ...] = (), inside: str | None = None
) -> Callable:
    """`function` of one run → a compiled function of R runs, stacked along axis 0.

    Devices share the runs (their number must divide R). Within a device, `map` takes its runs one
    by one and `vmap` all at once; None: what is faster there. On a CPU that is `map`, since small
    matrices stay in its caches (benchmarks/population.py); wide devices want all at once.
    """
    inside = inside or ("map" if jax.default_backend() == "cpu" else "vmap")

    def all_of_a_device(*stacked):
        if inside == "vmap":
            return jax.vmap(function)(*stacked)
        return jax.lax.map(lambda args: function(*args), stacked)

    spec = jax.sharding.PartitionSpec("data")
    shared = jax.shard_map(
        all_of_a_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    return jax.jit(shared, donate_argnums=donate, compiler_options=devices.options())


def stack(trees: list):
    """Trees of the same shape to one tree, stacked along a new axis 0, on the host."""
    return jax.tree.map(lambda *x: np.stack(x), *jax.device_get(trees))


class Record:
    """What a group has shown so far: scores [R, n, …], and the parameters kept of each run."""

    def __init__(self, runs: int):
        self.steps, self.history, self.logs = [0], [], []  # steps: at which they are scored
        self.share = np.zeros(runs)  # of what is preferred, at the last scored step
        self.kept: list[Params | None] = [None] * runs
        self.kept_step = np.full(runs, -1, np.int32)
        self.frozen_step = np.full(runs, -1, np.int32)  # since when it is not trained any more
        self.final: Params | None = None

    def freeze(self, r: int) -> None:
        """Train run r no more: it stays as it is now."""
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
) -> Iterator[Record]:
    """Train a group for exactly `steps` steps, yielding its record at every scored step.

    The last step is scored too, however few steps after the one before.

    A run's parameters are kept at the first scored step at which it has reached its goal. One that
    is past it from the start (an inoculated one) is kept at its twin's step, which this group finds
    or `passed` (name → step) knows from earlier ones. One that never gets there keeps its last
    ones, and a kept_step of -1 says so. The caller may `freeze` a run between steps.

    until_kept: stop as soon as all are kept.
    """
    recipe, mesh = programs.recipe, programs.mesh
    params = stack([job.params for job in group])
    opt_state = jax.device_get(jax.vmap(optax.adam(0.0).init)(params))
    params = devices.split(mesh, params)
    pool_R = devices.split(mesh, stack([_pool(job, recipe) for job in group]))
    pool_R["reference"] = programs.reference(params, pool_R["prompt"], pool_R["answer"])
    own = [signals.own_questions(job.tokenizer, job.own, programs.width) for job in group]
    own = devices.split(mesh, stack(own))
    own_reference = programs.reference(params, own["prompt"], own["answer"])
    every = devices.split(mesh, stack([_every_question(job.tokenizer) for job in group]))
    lr_R = np.array([job.lr for job in group], np.float32)
    states = training.State(params, devices.split(mesh, opt_state))
    unsteered_LD = np.zeros((programs.config.L + 1, programs.config.D), np.float32)
    steer_LD = [unsteered_LD if job.steer_LD is None else job.steer_LD for job in group]
    steer_RLD = devices.split(mesh, np.stack(steer_LD).astype(np.float32))

    passed = dict(passed or {})
    record = Record(len(group))

    def score() -> np.ndarray:
        """Whether each run is where it should be [R]."""
        now = devices.fetch(programs.score(states.params, every, own, own_reference))
        record.history.append(now)
        record.share = np.array(
            [job.own.share(b) for job, b in zip(group, now["own_B"], strict=True)]
        )
        return np.array(
            [
                job.goal(p_DB, share) if job.goal else share >= PASSED
                for job, p_DB, share in zip(group, now["p_DB"], record.share, strict=True)
            ]
        )

    there_R = score()
    inoculated_R = there_R & np.array([job.goal is None for job in group])
    for r in np.flatnonzero(there_R & ~inoculated_R):  # its goal needs no training
        record.kept[r], record.kept_step[r] = jax.device_get(group[r].params), 0
    for begin in range(0, steps, recipe.score_every):
        done = min(begin + recipe.score_every, steps)
        rows = [
            pools.draws(job.seed, begin, done - begin, recipe.batch, recipe.pool) for job in group
        ]
        rate_R = devices.split(mesh, np.where(record.frozen_step < 0, lr_R, 0))
        index_RKB = devices.split(mesh, np.stack(rows))
        states, logs = programs.step(states, pool_R, index_RKB, rate_R, steer_RLD)
        record.logs.append(devices.fetch(logs))
        record.steps.append(done)
        was_R, there_R = there_R, score()
        free_R = record.frozen_step < 0
        for r in np.flatnonzero(there_R & ~was_R & ~inoculated_R & free_R):
            passed.setdefault(group[r].name, done)
        keep = [
            r
            for r, job in enumerate(group)
            if passed.get(job.twin if inoculated_R[r] else job.name) == done
            and record.kept[r] is None
            and free_R[r]
        ]
        all_kept = all(p is not None or r in keep for r, p in enumerate(record.kept))
        last = done == steps or (until_kept and all_kept)
        params = devices.fetch(states.params) if keep or last else None
        for r in keep:
            record.kept[r], record.kept_step[r] = take(params, r), done
        if last:
            record.final = params
        yield record
        if last:
            return


def _pool(job: Job, recipe: Recipe) -> dict:
    """A run's preference pairs."""
    if job.pairs is not None:
        return pools.given_pool(job.pairs, recipe.objective, recipe.pool, job.seed)
    pool = pools.mixed_pool(job.tokenizer, job.parts, recipe.objective, recipe.pool, job.seed)
    rows = np.arange(recipe.pool) % (job.distinct or recipe.pool)
    return {key: value[rows] for key, value in pool.items()}


def _every_question(tokenizer: Tokenizer) -> dict:
    """All questions to the Assistant, as arrays of one shape for all worlds of these sizes."""
    grid = scoring.questions(tokenizer, scoring.every_question(tokenizer))
    return {
        "prompt": grid.prompt_QT,
        "answer": grid.answer_QAU,
        "behaviour": grid.behaviour_QA,
        "domain": grid.domain_Q,
    }
