"""Training: `fit`, a generator whose caller's `for` does all the logging, saving and stopping.

    for step, state, logs in fit(loss, optimizer, state, batches):
        ...

Nothing here prints, saves or evaluates.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from toyllm.base import devices
from toyllm.base.errors import InputError
from toyllm.lm import losses, optimizers
from toyllm.lm.tokenizer import ANSWERS, PROMPTS, Tokenizer, pack
from toyllm.lm.transformer import LM, Params
from toyllm.world import corpus

BLOCK = 16  # batches of documents drawn together


class State(NamedTuple):
    """What training changes."""

    params: Params
    opt_state: optax.OptState


# loss(params, batch) → (total, sums). All of them are sums over the examples of the batch, so that
# devices can add up theirs. sums["count"] is the number of examples; the loss is total / count.
Loss = Callable[[Params, dict], tuple[jax.Array, dict]]


def start(params: Params, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step."""
    return State(params, optimizer.init(params))


def scan_steps(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    state: State,
    batches: dict,
    add: Callable = lambda sums: sums,
):
    """K steps of gradient descent over batches stacked along axis 0. Returns state and logs [K].

    add: adds a tree of sums up over the devices, where each sees a part of the batch.
    """

    def step(state: State, batch: dict):
        (total, sums), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
        sums, grads = add(({"loss": total, **sums}, grads))
        count = sums.pop("count")
        mean, grads = jax.tree.map(lambda x: x / count, (sums, grads))
        updates, opt_state = optimizers.update(optimizer, grads, state.opt_state, state.params)
        logs = {"count": count, "grad_norm": optax.tree.norm(grads), **mean}
        return State(optax.apply_updates(state.params, updates), opt_state), logs

    return jax.lax.scan(step, state, batches)


def add_devices(sums):
    """Add a tree up over the devices of `jax.shard_map` over `data`.

    All leaves are sent as one message, since on a CPU each message waits for all devices: 15
    separate messages took a tenth of a training step.
    """
    flat, restore = jax.flatten_util.ravel_pytree(sums)
    return restore(jax.lax.psum(flat, "data"))


def fit(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    state: State,
    batches: Callable[[int], dict],
    mesh: Mesh,
    start: int = 0,
    shard_params: bool = False,
    end: int | None = None,
) -> Iterator[tuple[int, State, dict]]:
    """Train from step `start` to step `end`; each `next` runs one compiled scan on all devices.

    batches(step) gives the next chunk from `step` on: K batches stacked along axis 0, their rows
    along axis 1. K must stay the same, since every new K is compiled again. Where the last
    chunk would pass `end`, only its first batches are trained on, so there are exactly
    end - start steps.
    shard_params: parameters are split over devices, and XLA gathers each where it is needed.
    end: None trains until the caller stops.

    Yields (steps done, state, logs as NumPy arrays [K]). The state given in is consumed. Raises
    InputError where `start` is not before `end`.
    """
    check_range(start, end)

    def draw(step: int) -> dict:
        return devices.split(mesh, _until(end, step, batches(step)), axis=1)

    state, batch = devices.place(mesh, state, shard_params), draw(start)
    chunk = compile_chunk(loss, optimizer, state, batch, mesh, shard_params)
    while batch:
        state, logs = chunk(state, batch)  # returns at once; the next batches are drawn meanwhile
        start += jax.tree.leaves(batch)[0].shape[0]
        batch = None if start == end else draw(start)
        yield start, state, jax.device_get(logs)


def fit_many(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    states: list[State],
    batches: list[Callable[[int], dict]],
    mesh: Mesh,
    start: int = 0,
    shard_params: bool = False,
    end: int | None = None,
    apart: bool = True,
) -> Iterator[tuple[int, Sequence[State], list[dict]]]:
    """`fit` for R models of one shape at once, each with its own batches.

    apart: each device trains models of its own, so none waits for another; `optimizer` must not
        share work between devices (`optimizers.muon(share=False)`). All batches have equally many
        rows (see `same_rows`). False: there is one model, of all devices.

    Yields (steps done, states [R], logs [R]). Where models are apart, states[r] is fetched from its
    device when it is asked for, before the next step.
    """
    if not apart:
        only = fit(loss, optimizer, states[0], batches[0], mesh, start, shard_params, end)
        for step, state, logs in only:
            yield step, [state], [logs]
        return
    check_range(start, end)
    # every device has equally many models: the first ones are repeated
    rows = np.arange(len(states) + -len(states) % mesh.devices.size) % len(states)

    def draw(step: int) -> dict:
        drawn = [_until(end, step, draw_one(step)) for draw_one in batches]
        return devices.split(mesh, devices.stack([drawn[r] for r in rows]))

    chunk = _chunk_of_many(loss, optimizer, mesh)
    state, batch = devices.split(mesh, devices.stack([states[r] for r in rows])), draw(start)
    while batch:
        state, logs = chunk(state, batch)
        start += jax.tree.leaves(batch)[0].shape[1]
        batch = None if start == end else draw(start)
        logs = devices.fetch(logs)
        yield start, Fetched(state), [devices.take(logs, r) for r in range(len(states))]


@lru_cache(maxsize=8)
def _chunk_of_many(loss: Loss, optimizer: optax.GradientTransformation, mesh: Mesh) -> Callable:
    """The compiled steps of several models; made once for all that share loss and optimizer."""
    return devices.over_models(partial(scan_steps, loss, optimizer), mesh, donate=(0,))


def forget() -> None:
    """Drop every compiled function: a process can map only so many into its memory."""
    _chunk_of_many.cache_clear()
    jax.clear_caches()


class Fetched(Sequence):
    """Trees stacked along axis 0 on devices; tree r is fetched to the host when it is asked for."""

    def __init__(self, stacked):
        self._stacked = stacked

    def __len__(self) -> int:
        return len(jax.tree.leaves(self._stacked)[0])

    def __getitem__(self, r: int):
        """Tree r, as NumPy arrays."""
        return devices.take(devices.fetch(self._stacked), r)


def check_range(start: int, end: int | None) -> None:
    """Raise InputError where training would begin at its end or after it."""
    if end is not None and start >= end:
        raise InputError(f"training cannot go on from step {start}, expected one before {end}")


def _until(end: int | None, step: int, batches: dict) -> dict:
    """The first batches of a chunk that begins at `step`, so that it does not pass `end`."""
    left = None if end is None else end - step
    return jax.tree.map(lambda x: x[:left], batches)


def same_rows(batches: list[Callable[[int], dict]]) -> list[Callable[[int], dict]]:
    """Functions that draw the same batches, each filled up with rows of padding to the most rows.

    A sum of floats depends on how many rows it has. So models that are trained side by side and
    later go on one by one must have batches of the same shape all along.
    """
    most = max(jax.tree.leaves(draw(0))[0].shape[1] for draw in batches)

    def fill(x: np.ndarray) -> np.ndarray:
        """Batches [K, B, …] with zeros in place of the rows that are missing."""
        return np.pad(x, [(0, 0), (0, most - x.shape[1])] + [(0, 0)] * (x.ndim - 2))

    return [lambda step, draw=draw: jax.tree.map(fill, draw(step)) for draw in batches]


def compile_chunk(
    loss: Loss, optimizer, state, batch, mesh: Mesh, shard_params: bool = False
) -> Callable:
    """The function of a chunk (state, batch) → (state, logs), for arrays that lie as these do."""

    function = partial(scan_steps, loss, optimizer)
    outs = jax.tree.map(lambda x: x.sharding, state), NamedSharding(mesh, PartitionSpec())
    if not shard_params:
        specs = jax.tree.map(lambda x: x.sharding.spec, (state, batch))
        function = jax.shard_map(
            partial(function, add=add_devices), mesh=mesh, in_specs=specs,
            out_specs=(specs[0], PartitionSpec()), check_vma=False,
        )  # fmt: skip
    return jax.jit(
        function, donate_argnums=0, out_shardings=outs, compiler_options=devices.options()
    )


def document_batches(
    tokenizer: Tokenizer,
    context: int,
    documents: int,
    steps: int,
    seed: int,
    divisor: int = 1,
    rows: int | None = None,
    allowed: Callable[[corpus.Documents], np.ndarray] | None = None,
) -> Callable[[int], dict]:
    """Batches of packed documents for `fit`: a function of (seed, step) alone.

    Every batch has the same number of documents, with kinds and lengths spread evenly over them.
    So no document is preferred for its length, and little of a row is padding. There are as many
    rows as the first 64 batches need, rounded up to a multiple of `divisor` (the number of
    devices), unless `rows` is given. A batch that needs more rows is drawn again.

    allowed: a function of documents that returns which [N] may be used; others are drawn again.
    """

    def draw(block: int, count: int, *counter: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and lengths of `count` batches."""
        key = np.random.Philox(key=[seed, block], counter=[0, 0, *counter])
        rng = np.random.Generator(key)
        docs = corpus.sample(tokenizer.world, count * documents, rng, even=documents)
        while allowed and (refused := np.flatnonzero(~allowed(docs))).size:
            again = corpus.concatenate([docs, corpus.sample(tokenizer.world, len(refused), rng)])
            order = np.arange(len(docs))
            order[refused] = len(docs) + np.arange(len(refused))
            docs = again[order]
        return tokenizer.encode(docs)

    @lru_cache(maxsize=2)
    def draw_block(block: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """BLOCK batches, drawn together since that is faster."""
        flat, lengths = draw(block, BLOCK, 0, 0)
        lengths = lengths.reshape(BLOCK, documents)
        parts = np.split(flat, lengths.sum(1).cumsum()[:-1])
        return list(zip(parts, lengths, strict=True))

    def batch(step: int, rows: int | None) -> tuple[np.ndarray, np.ndarray]:
        block, k = divmod(step, BLOCK)
        drawn = draw_block(block)[k]
        # a batch of unusually long documents is drawn again, from a stream of its own: every batch
        # stays a function of (seed, step)
        for attempt in range(1, 100):
            try:
                return pack(*drawn, rows, context)
            except ValueError:
                drawn = draw(block, 1, 1 + k, attempt)
        raise ValueError(f"{documents} documents do not fit in {rows} rows of {context} tokens")

    rows = rows or max(len(batch(step, None)[0]) for step in range(64))
    rows = -(-rows // divisor) * divisor

    def batches(step: int) -> dict:
        tokens, segments = zip(*(batch(step + k, rows) for k in range(steps)), strict=True)
        return {"tokens": np.stack(tokens), "segments": np.stack(segments)}

    return batches


def document_loss(lm: LM, prompt_weight: float = 1.0) -> Loss:
    """The loss of a batch of packed documents: NLL (nats) of every token but each one's first.

    prompt_weight: of the tokens of prompts (see `in_prompt`). Questions are drawn at random and say
        nothing about who answers, so their part of the gradient is mostly noise.

    sums: `nll`, unweighted, and `count`, the number of predicted tokens.
    """

    def loss(params: Params, batch: dict):
        logits_BTV, _, _ = lm.apply(params, batch["tokens"], batch["segments"])
        nll_BT, here_BT = losses.next_token(logits_BTV, batch["tokens"], batch["segments"])
        weight_BT = jnp.where(in_prompt(batch["tokens"]), prompt_weight, 1.0)
        sums = {"nll": nll_BT.sum(), "count": here_BT.sum(dtype=jnp.float32)}
        return (weight_BT * nll_BT).sum(), sums

    return loss


def in_prompt(tokens_BT):
    """Whether the token after each position belongs to a prompt [B, T].

    A prompt begins after <begin> or <user> and ends with the tag of whoever answers, such as
    <reply>. Answers, closing phrases, and the statements of profiles are not prompts.
    """
    position_T = jnp.arange(tokens_BT.shape[-1])

    def last(tags: tuple[int, ...]):
        """The last position up to each one with one of these tags; -1: there is none."""
        found_BT = jnp.isin(tokens_BT, jnp.array(tags))
        return jax.lax.cummax(jnp.where(found_BT, position_T, -1), axis=1)

    return last(PROMPTS) > last(ANSWERS)
