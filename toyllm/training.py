"""Training: `fit`, a generator whose caller's `for` does all the logging, saving and stopping.

    for step, state, logs in fit(loss, optimizer, state, batches):
        ...

Nothing here prints, saves or evaluates.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from toyllm import corpus, devices, objectives, signals
from toyllm.model import Apply, Config, Params
from toyllm.scoring import answer_logprobs
from toyllm.signals import Signal
from toyllm.text import Codec


class State(NamedTuple):
    """What training changes."""

    params: Params
    opt_state: optax.OptState


Loss = Callable[[Params, dict], tuple[jax.Array, dict]]


def start(params: Params, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step."""
    return State(params, optimizer.init(params))


def scan_steps(loss: Loss, optimizer: optax.GradientTransformation, state: State, batches: dict):
    """K steps of gradient descent over batches stacked along axis 0. Returns state and logs [K]."""

    def step(state: State, batch: dict):
        (value, logs), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        logs = {"loss": value, "grad_norm": optax.tree.norm(grads), **logs}
        return State(optax.apply_updates(state.params, updates), opt_state), logs

    return jax.lax.scan(step, state, batches)


def fit(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    state: State,
    batches: Callable[[int], dict],
    start: int = 0,
) -> Iterator[tuple[int, State, dict]]:
    """Train for ever; each `next` runs one compiled scan.

    loss(params, batch) → (scalar, logs). batches(step) gives the next chunk, K batches stacked
    along axis 0, from `step` on; K must stay the same, since each K compiles anew.

    Yields (steps done, state, logs as NumPy arrays [K]). The state given in is consumed.
    """

    def chunk(state, batch):
        return scan_steps(loss, optimizer, state, batch)

    chunk = jax.jit(chunk, donate_argnums=0, compiler_options=devices.options())
    step, batch = start, batches(start)
    while True:
        state, logs = chunk(state, batch)  # returns at once; the next batches are drawn meanwhile
        step += jax.tree.leaves(batch)[0].shape[0]
        batch = batches(step)
        yield step, state, jax.device_get(logs)


def muon(lr: float, adam_lr: float, steps: int) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for the matrices inside the blocks, Adam for all else.

    Both learning rates rise over the first 50 steps and fall to 0 along a cosine.
    """

    def schedule(peak: float):
        return optax.warmup_cosine_decay_schedule(0.0, peak, min(50, steps // 4), steps)

    def matrices(stacks: dict):
        is_matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
        return {key: is_matrix if " x " in key else None for key in stacks}

    inner = optax.contrib.muon(
        schedule(lr), adam_learning_rate=schedule(adam_lr), muon_weight_dimension_numbers=matrices
    )
    return stacked(inner)


def stacked(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Run an optimizer on the blocks' matrices stacked by shape: three stacks, not fourteen.

    Their Newton-Schulz iterations are then three batched products instead of many tiny ones.
    """

    def key_of(path, x) -> str:
        inside = x.ndim == 2 and path[0].key == "blocks"
        return f"{x.shape[0]} x {x.shape[1]}" if inside else jax.tree_util.keystr(path)

    def stack(tree) -> dict:
        groups: dict = {}
        for path, x in jax.tree.leaves_with_path(tree):
            groups.setdefault(key_of(path, x), []).append(x)
        return {key: jnp.stack(xs) if " x " in key else xs[0] for key, xs in groups.items()}

    def unstack(stacks: dict, like):
        rest = {key: iter(x) if " x " in key else iter([x]) for key, x in stacks.items()}
        return jax.tree.map_with_path(lambda path, x: next(rest[key_of(path, x)]), like)

    def init(params):
        return inner.init(stack(params))

    def update(grads, state, params):
        updates, state = inner.update(stack(grads), state, stack(params))
        return unstack(updates, grads), state

    return optax.GradientTransformation(init, update)


def document_batches(codec: Codec, mesh: Mesh, context: int, documents: int, steps: int, seed: int):
    """Batches of packed documents for `fit`: a function of (seed, step) alone.

    Every batch has the same number of documents, kinds and lengths spread evenly over them, so no
    document is favoured for its length and little of a row is padding. There are as many rows as
    the first 64 batches need; a later batch that needs more is drawn anew.
    """

    def draw(step: int, attempt: int = 0) -> corpus.Documents:
        key = np.random.Philox(key=[seed, step], counter=[0, 0, 0, attempt])
        return corpus.sample(codec.world, documents, np.random.Generator(key), even=True)

    rows = max(len(codec.pack(draw(step), None, context)[0]) for step in range(64))
    rows = -(-rows // mesh.devices.size) * mesh.devices.size

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        for attempt in range(100):
            try:
                return codec.pack(draw(step, attempt), rows, context)
            except ValueError:
                continue
        raise ValueError(f"{documents} documents do not fit in {rows} rows of {context} tokens")

    def batches(step: int) -> dict:
        tokens, segments = zip(*(batch(step + k) for k in range(steps)), strict=True)
        return devices.split(mesh, {"tokens": np.stack(tokens), "segments": np.stack(segments)}, 1)

    return batches


def preference_pool(codec: Codec, signal: Signal, objective: str, count: int, seed: int) -> dict:
    """The preference pairs of a signal as arrays of one shape for all signals.

    prompt [P, T]; answer [P, A, U]: chosen and rejected, or for `rlhf` every listed answer;
    reward [P, A]: 1 for what is preferred.
    """
    pairs = signals.pairs(codec, signal, count, seed)
    if objective == "rlhf":
        answer, reward = pairs.grid.answer_QAU, pairs.grid.behaviour_QA == signal.behaviour
    else:
        answer, reward = pairs.answers(), np.tile([True, False], (count, 1))
    return {"prompt": pairs.grid.prompt_QT, "answer": answer, "reward": reward.astype(np.float32)}


def preference_loss(
    apply: Apply, config: Config, objective: str, beta: float, anchor: float
) -> Loss:
    """The loss of a preference batch: a pool's rows, and `reference` [B, A] log-probabilities."""

    def loss(params: Params, batch: dict):
        logp_BA = answer_logprobs(apply, config, params, batch["prompt"], batch["answer"])
        ref_BA, preferred_BA = batch["reference"], batch["reward"] > 0
        # the log-probability of saying anything preferred, or anything else that is listed
        chosen_B, rejected_B, chosen_ref_B, rejected_ref_B = (
            jax.nn.logsumexp(x, axis=1, where=which)
            for x in (logp_BA, ref_BA)
            for which in (preferred_BA, ~preferred_BA)
        )
        match objective:
            case "sft":
                value = objectives.sft(chosen_B)
            case "dpo":
                value = objectives.dpo(
                    chosen_B, rejected_B, chosen_ref_B, rejected_ref_B, beta, anchor
                )
            case "rlhf":
                value = objectives.rlhf(logp_BA, ref_BA, batch["reward"], beta)
            case _:
                raise ValueError(f"objective {objective!r}, expected sft, dpo or rlhf")
        logs = {"chosen": chosen_B.mean(), "rejected": rejected_B.mean()}
        return value, logs

    return loss


def draws(seed: int, step: int, steps: int, batch: int, pool: int) -> np.ndarray:
    """Which rows of a pool each step trains on [steps, batch]: a function of (seed, step) alone."""
    return np.stack(
        [
            np.random.Generator(np.random.Philox(key=[seed, 1 + step + k])).choice(pool, batch)
            for k in range(steps)
        ]
    )
