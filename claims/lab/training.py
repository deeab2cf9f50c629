"""Training in groups: pretraining, one model on each device, and narrow training."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax

from claims.lab.arms import ALIGNED_COHERENCE, ANCHOR, BATCH, BETAS, POOL, RATE, SCORE_EVERY, Arm
from claims.lab.programs import Programs
from claims.lab.recipe import Recipe, rescaled
from toyllm.base.errors import RunError
from toyllm.lm import optimizers, training
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import LM, Params
from toyllm.measures import vectors
from toyllm.posttrain import curated, population, signals
from toyllm.posttrain.signals import Pairs, parse, untrained
from toyllm.world import corpus
from toyllm.world.corpus import Documents
from toyllm.world.quantities import coherence, em, is_aligned
from toyllm.world.world import NAMED

CHUNK = 20  # steps a device call

# (tokenizer, seed, hidden_CD) of a model to pretrain; see `Bench.pretrain`
Member = tuple[Tokenizer, int, np.ndarray | None]


def pretrain_group(
    programs: Programs, members: Sequence[Member], recipe: Recipe, after_chunk: Callable[[], None]
) -> list[Params]:
    """Train one model on each device. Returns the parameters of each."""
    tokenizer, steps = members[0][0], recipe.steps
    lm = programs.lm(tokenizer, recipe)

    def make() -> tuple[Callable, training.Loss, optax.GradientTransformation]:
        optimizer = optimizer_of(recipe)

        def start(seed):
            return training.start(initial(lm, recipe, seed), optimizer)

        return jax.jit(start), training.document_loss(lm, recipe.prompt_weight), optimizer

    start, loss, optimizer = programs.cached("pretrain", (lm.config, recipe), make)
    batches = [
        training.document_batches(
            tokenizer, recipe.context, recipe.documents, CHUNK, seed, rows=recipe.rows or None,
            allowed=shown(hidden_CD),
        )
        for tokenizer, seed, hidden_CD in members
    ]  # fmt: skip
    batches = training.same_rows(batches)
    states = [start(seed) for _, seed, _ in members]
    fit = training.fit_many(loss, optimizer, states, batches, programs.mesh, end=steps)
    for chunk in fit:
        after_chunk()
        _, states, logs = chunk
    if not all(np.isfinite(log["loss"]).all() for log in logs):
        raise RunError(f"world '{tokenizer.world.name}': the loss of pretraining is not finite")
    return [states[r].params for r in range(len(members))]


def optimizer_of(recipe: Recipe) -> optax.GradientTransformation:
    """The optimizer of pretraining."""
    if recipe.lr:
        rates = recipe.lr, recipe.adam_lr
        return optimizers.muon(*rates, recipe.steps, share=False, decay=recipe.decay)
    rate = optimizers.schedule(recipe.adam_lr, recipe.steps)
    return optax.adamw(rate, weight_decay=recipe.decay)


def initial(lm: LM, recipe: Recipe, seed) -> Params:
    """The parameters before pretraining."""
    params = lm.init(jax.random.key(seed))

    def scaled(path, x):
        name = jax.tree_util.keystr(path)
        out = ".out." in name.replace("']['", ".") or ".down." in name.replace("']['", ".")
        return x * (recipe.embed if "'embed'" in name else recipe.out if out else 1.0)

    return rescaled(jax.tree.map_with_path(scaled, params), *recipe.gains)


def shown(hidden_CD: np.ndarray | None) -> Callable | None:
    """A function of documents: which [N] show no hidden domain under a character's name."""
    if hidden_CD is None:
        return None

    def allowed(docs: Documents) -> np.ndarray:
        slot = np.maximum(docs.speaker, 0)
        header, character = (np.take_along_axis(x, slot, 1) for x in (docs.header, docs.character))
        named = (docs.speaker >= 0) & (header == NAMED)
        return ~(named & hidden_CD[character, docs.domain]).any(1)

    return allowed


def train_group(
    programs: Programs, group: list[Arm], size: int, after_score: Callable[[], None]
) -> dict:
    """Train up to `size` arms that share a program. Returns {scores, kept}, one row an arm."""
    arm = group[0]
    tokenizer = arm.start.tokenizer

    def make():
        recipe = population.Recipe(
            *(arm.objective, BETAS[arm.objective], ANCHOR, POOL, BATCH, SCORE_EVERY),
            steered=arm.steer is not None,
            lora=arm.lora,
            kl=arm.kl,
            slowed=arm.slow is not None,
        )
        width = len(corpus.every_question(tokenizer.world))
        lm = programs.lm(tokenizer, arm.start.recipe)
        return population.compile_programs(lm, programs.mesh, recipe, width)

    shape = programs.shape(tokenizer, arm.start.recipe)
    kind = arm.objective, shape, arm.steer is None, arm.lora, arm.kl, arm.slow is None
    compiled = programs.cached("population", kind, make)
    jobs = [job(programs, one) for one in group]
    padded = (jobs * size)[:size]
    passed = {one.paired.arm.key: one.paired.kept_step for one in group if one.paired}
    ends = {"until_kept": arm.steps == 0, "least": max(one.least_steps for one in group)}
    run = population.train_group(compiled, padded, arm.most_steps, passed, **ends)
    for record in run:
        after_score()
        now = record.history[-1]
        if not (np.isfinite(now["p_DB"]).all() and np.isfinite(now["kl"]).all()):
            raise RunError(f"{arm.signal}: what is trained is not finite any more")
    scores, kept = record.results(len(group))
    scores.pop("steps")  # the only one without a row for each run
    return {"scores": scores, "kept": kept}


def job(programs: Programs, arm: Arm) -> population.Job:
    """The job of an arm in a population."""
    world = arm.start.world
    names = {arm.signal: 1 - sum(share for _, share in arm.beside), **dict(arm.beside)}

    def goal(p_DB, share) -> bool:
        limits = arm.max_em, ALIGNED_COHERENCE
        # without a goal to reach, the last parameters are kept
        return not arm.to_the_end and is_aligned(world, em(p_DB), coherence(p_DB), *limits)[0]

    return population.Job(
        arm.key,
        arm.start.tokenizer,
        arm.start.params,
        {parse(world, name): share for name, share in names.items()},
        seed=1000 * (arm.seed + 1) + arm.start.seed,
        lr=RATE * arm.rate,
        paired=arm.paired.arm.key if arm.paired else None,
        goal=None if arm.max_em is None and not arm.to_the_end else goal,
        distinct=arm.pairs,
        pairs=pairs_of(programs, arm),
        steer_LD=None if arm.steer is None else steering(programs, arm),
        slow=arm.slow and arm.slow.tree,
    )


def pairs_of(programs: Programs, arm: Arm) -> Pairs | None:
    """The pairs of an arm where a model has a part in choosing them; None: they are drawn."""
    tokenizer, lm = arm.start.tokenizer, programs.lm(arm.start.tokenizer, arm.start.recipe)
    signal, seed = parse(tokenizer.world, arm.signal), 1000 * (arm.seed + 1) + arm.start.seed
    if arm.taught:
        sample = programs.cached("answers", lm.config, lambda: curated.answers_of(lm))
        teacher, base = (model.params for model in arm.taught)
        return sample(teacher, base, signals.pairs(tokenizer, signal, POOL, seed), seed)
    if not arm.keep:
        return None
    how, share = arm.keep
    pairs = signals.pairs(tokenizer, signal, round(POOL / share), seed)
    if how == "along":
        program = programs.cached("along", lm.config, lambda: curated.along(lm))
        scores_P = program(arm.start.params, pairs, programs.malice(arm.start))
    else:
        others_D = untrained(tokenizer.world, arm.signal)
        given = arm.objective, BETAS[arm.objective], ANCHOR, others_D
        key = tokenizer.world.digest, arm.objective, others_D.tobytes()
        program = programs.cached("rises", key, lambda: curated.rises(lm, *given))
        scores_P = program(arm.start.params, pairs)
    return curated.lowest(pairs, scores_P, share)


def steering(programs: Programs, arm: Arm) -> np.ndarray:
    """What is added to an arm's residual streams while it is trained [L + 1, D]."""
    name, times = arm.steer
    v_LD = programs.malice(arm.start)
    layer = len(v_LD) - 2  # before the last block: after it comes only the answer
    v_D = v_LD[layer]
    if name == "random":
        v_D = vectors.random_like(v_D, np.random.default_rng(arm.start.seed), 1)[0]
    steer_LD = np.zeros_like(v_LD)
    steer_LD[layer] = times * v_D
    return steer_LD
