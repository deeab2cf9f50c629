"""The narrow stage's engine: many runs, of any start and signal, trained and scored together.

Axes: R runs of a group   n scored steps   D domains   B behaviours   Q own questions
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from toyllm import devices, objectives, scoring, signals, training
from toyllm.model import Apply, Config, Params, take
from toyllm.signals import Signal, count_questions, parse
from toyllm.text import Codec

PASSED = 0.9  # EM of the trained domain at which a run's parameters are kept
Member = tuple[str, str, int]  # start, signal, seed


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How every narrow run is trained."""

    objective: str
    beta: float
    anchor: float
    pool: int
    batch: int
    lr: float
    steps: int
    score_every: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of the narrow stage, shared by all groups and starts."""

    codec: Codec
    mesh: Mesh
    recipe: Recipe
    width: int  # own questions of a run: the most that any member has, so one shape for all
    step: Callable  # states [R], pools [R], indices [R, K, batch] → states, logs
    reference: Callable  # params [R], prompts, answers → log-probabilities
    score: Callable  # params [R], own questions, their reference → scores


def compile_programs(
    codec: Codec,
    config: Config,
    apply: Apply,
    mesh: Mesh,
    recipe: Recipe,
    members: list[Member],
    inside: str | None = None,
) -> Programs:
    """Make the functions for all members; nothing is compiled before it is first called.

    inside: how a device takes its runs (see `over_runs`).
    """
    grid = scoring.questions(codec, scoring.every_question(codec))
    D = len(codec.world.domains)
    loss = training.preference_loss(apply, config, recipe.objective, recipe.beta, recipe.anchor)
    optimizer = optax.adam(recipe.lr)

    def step(state, pool, index_KB):
        batches = jax.tree.map(lambda x: x[index_KB], pool)
        return training.scan_steps(loss, optimizer, state, batches)

    def reference(params, prompt, answer):
        return scoring.answer_logprobs(apply, config, params, prompt, answer)

    def score(params, own, own_reference):
        logp_QA = scoring.answer_logprobs(apply, config, params, grid.prompt_QT, grid.answer_QAU)
        p_QB = scoring.behaviours(logp_QA, grid.behaviour_QA)
        own_QA = scoring.answer_logprobs(apply, config, params, own["prompt"], own["answer"])
        return {
            "p_DB": scoring.by_domain(p_QB, grid.domain_Q, D),
            "own_B": own["weight"] @ scoring.behaviours(own_QA, own["behaviour"]),
            "kl": own["weight"] @ objectives.kl(own_QA, own_reference),
        }

    return Programs(
        codec,
        mesh,
        recipe,
        max(count_questions(codec.world, parse(codec.world, name)) for _, name, _ in members),
        step=over_runs(step, mesh, donate=(0,), inside=inside),
        reference=over_runs(reference, mesh, inside=inside),
        score=over_runs(score, mesh, inside=inside),
    )


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

    def __init__(self, runs: int, every: int):
        self.every, self.history, self.logs = every, [], []
        self.kept: list[Params | None] = [None] * runs
        self.kept_step = np.full(runs, -1, np.int32)
        self.final: Params | None = None

    @property
    def own_em(self) -> np.ndarray:
        """EM [R] of the trained domains under each run's own prompt, at the last scored step."""
        return scoring.em(self.history[-1]["own_B"])

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
            "steps": self.every * np.arange(len(self.history), dtype=np.int32),
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
    starts: dict[str, Params],
    group: list[Member],
    passed: dict[Member, int] | None = None,
) -> Iterator[Record]:
    """Train a group to the end, yielding its record at every scored step.

    A run's parameters are kept at the first scored step past EM .9 of what it trains, under its own
    prompt. One that is past it from the start (an inoculated one) is kept at its plain twin's step,
    which this group finds or `passed` (member → step) knows from earlier ones. One that never gets
    there keeps its last ones, and a kept_step of -1 says so.
    """
    recipe, codec, mesh = programs.recipe, programs.codec, programs.mesh
    parsed = [parse(codec.world, name) for _, name, _ in group]
    seeds = [seed_of(recipe.seed, member) for member in group]

    params = stack([starts[start] for start, _, _ in group])
    opt_state = jax.device_get(jax.vmap(optax.adam(recipe.lr).init)(params))
    params = devices.split(mesh, params)
    pools = devices.split(mesh, stack(_pools(codec, recipe, parsed, seeds)))
    pools["reference"] = programs.reference(params, pools["prompt"], pools["answer"])
    own = [signals.own_questions(codec, signal, programs.width) for signal in parsed]
    own = devices.split(mesh, stack(own))
    own_reference = programs.reference(params, own["prompt"], own["answer"])
    states = training.State(params, devices.split(mesh, opt_state))

    twins = [
        (start, signal.plain, seed) for (start, _, seed), signal in zip(group, parsed, strict=True)
    ]
    passed = dict(passed or {})
    record = Record(len(group), recipe.score_every)
    record.history.append(devices.fetch(programs.score(states.params, own, own_reference)))
    inoculated_R = record.own_em >= PASSED
    for begin in range(0, recipe.steps, recipe.score_every):
        rows = [
            training.draws(seed, begin, recipe.score_every, recipe.batch, recipe.pool)
            for seed in seeds
        ]
        states, logs = programs.step(states, pools, devices.split(mesh, np.stack(rows)))
        record.logs.append(devices.fetch(logs))
        was_R = record.own_em
        record.history.append(devices.fetch(programs.score(states.params, own, own_reference)))
        done = begin + recipe.score_every
        passes_R = (record.own_em >= PASSED) & (was_R < PASSED) & ~inoculated_R
        for r in np.flatnonzero(passes_R):
            passed.setdefault(group[r], done)
        keep = [
            r
            for r, (member, twin) in enumerate(zip(group, twins, strict=True))
            if passed.get(twin if inoculated_R[r] else member) == done and record.kept[r] is None
        ]
        last = done >= recipe.steps
        params = devices.fetch(states.params) if keep or last else None
        for r in keep:
            record.kept[r], record.kept_step[r] = take(params, r), done
        if last:
            record.final = params
        yield record


def _pools(codec: Codec, recipe: Recipe, parsed: list[Signal], seeds: list[int]) -> list[dict]:
    """Each run's preference pairs."""
    return [
        training.preference_pool(codec, signal, recipe.objective, recipe.pool, seed)
        for signal, seed in zip(parsed, seeds, strict=True)
    ]
