"""The Transformer. Sizes are primes where they can be, so that a mixed-up axis cannot pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import FORWARD, close
from toyllm.lm import losses, sampling, transformer
from toyllm.lm.tokenizer import pack
from toyllm.lm.transformer import LM
from toyllm.world import corpus

CONFIG = transformer.Config(vocabulary=53, context=29, D=22, L=3, H=11, F=31)


@pytest.fixture(scope="module")
def net():
    """(apply, params) of prime sizes."""
    apply, init = map(jax.jit, transformer.create(CONFIG))
    return apply, init(jax.random.key(0))


def tokens(rows: int, length: int, seed: int = 0):
    return jnp.array(np.random.default_rng(seed).integers(3, 53, (rows, length)))


def test_shapes_and_residuals(net):
    apply, params = net
    logits, residuals, cache = apply(params, tokens(7, 23))
    assert logits.shape == (7, 23, 53)
    assert len(residuals) == CONFIG.L + 1
    assert all(x.shape == (7, 23, 22) for x in residuals)
    assert cache is None


def test_causality_by_gradient(net):
    """The loss at t has zero gradient from later tokens, and some from every earlier one."""
    apply, params = net
    x = tokens(1, 13)[0]

    def logit_at(embedded, t):
        changed = {**params, "embed": embedded}
        return (apply(changed, jnp.arange(13)[None])[0][0, t] ** 2).sum()

    # each position has an embedding of its own, so the gradient by row is by position
    rows = params["embed"].at[:13].set(params["embed"][x])
    for t in (0, 5, 12):
        size = jnp.abs(jax.grad(logit_at)(rows, t)[:13]).max(1)
        assert (size[t + 1 :] == 0).all()
        assert (size[: t + 1] > 0).all()


def test_a_packed_document_equals_the_document_alone(personas, personas_codec):
    config = transformer.Config(len(personas_codec.words), D=44, H=11, F=61, L=2)
    apply, init = map(jax.jit, transformer.create(config))
    params = init(jax.random.key(1))
    docs = corpus.sample(personas, 24, np.random.default_rng(0), even=24)
    packed, segments = pack(*personas_codec.encode(docs), 18, 88)
    alone = personas_codec.pad(docs, 88)
    in_row, alone_logits = (
        apply(params, packed, segments)[0],
        apply(params, alone, np.sign(alone))[0],
    )
    flat = {tuple(row[row > 0]): n for n, row in enumerate(alone)}
    for r in range(18):
        for k in range(1, segments[r].max() + 1):
            where = np.flatnonzero(segments[r] == k)
            n = flat[tuple(packed[r][where])]
            close(in_row[r, where], alone_logits[n, : len(where)], FORWARD)
    nll, here = losses.next_token(in_row, packed, segments)
    nll_alone, here_alone = losses.next_token(alone_logits, alone, np.sign(alone))
    assert here.sum() == here_alone.sum()
    close(nll.sum(), nll_alone.sum(), FORWARD)


def test_padding_on_the_left_changes_nothing(net):
    apply, params = net
    x = tokens(3, 11)
    padded = jnp.pad(x, ((0, 0), (6, 0)))
    close(apply(params, padded, jnp.sign(padded))[0][:, 6:], apply(params, x)[0], FORWARD)


def test_cache_in_pieces_equals_the_whole(net):
    apply, params = net
    x = tokens(5, 19)
    whole = apply(params, x)[0]
    cache, parts = transformer.empty_cache(CONFIG, 5, 23), []
    for a, b in ((0, 7), (7, 8), (8, 19)):
        logits, _, cache = apply(params, x[:, a:b], jnp.ones((5, b - a), int), cache)
        parts.append(logits)
    close(jnp.concatenate(parts, 1), whole, FORWARD)


def test_greedy_sampling_equals_the_full_forward(net):
    """Token by token without a cache, prompts of different lengths."""
    apply, params = net
    x = jnp.array([[0, 0, 7, 9, 11], [3, 4, 5, 6, 7]])
    lm = LM(None, CONFIG, apply, None)
    drawn = sampling.sample(lm, params, x, jax.random.key(0), length=8, temperature=0)
    for row in (0, 1):
        run = [int(t) for t in x[row] if t]
        for k in range(8):
            padded = jnp.array([run + [0] * (13 - len(run))])
            best = int(apply(params, padded, jnp.sign(padded))[0][0, len(run) - 1].argmax())
            assert int(drawn[row, k]) == best
            if best == 2:
                break
            run.append(best)


def test_sampling_follows_the_temperature_and_stops_at_the_end(net):
    apply, params = net
    prompt = jnp.full((4000, 1), 7)
    lm = LM(None, CONFIG, apply, None)
    drawn = sampling.sample(lm, params, prompt, jax.random.key(1), 2, temperature=2.0)
    p = jax.nn.softmax(apply(params, prompt[:1])[0][0, -1] / 2.0)
    share = np.bincount(drawn[:, 0], minlength=53) / 4000
    assert np.abs(share - p).max() < 5 * float((p * (1 - p) / 4000).max()) ** 0.5
    assert (drawn[:, 1][drawn[:, 0] == 2] == 0).all()
    assert (drawn[:, 0] == 2).any()


def test_adding_to_a_residual_stream_moves_what_follows(net):
    apply, params = net
    x = tokens(2, 7)
    add = jnp.zeros((CONFIG.L + 1, 1, 1, CONFIG.D)).at[1].set(0.5)
    plain, before, _ = apply(params, x)
    moved, after, _ = apply(params, x, add=add)
    np.testing.assert_array_equal(after[0], before[0])
    close(after[1], before[1] + 0.5, FORWARD)
    assert jnp.abs(moved - plain).max() > 1e-3
    np.testing.assert_array_equal(apply(params, x, add=0 * add)[0], plain)


def test_sizes_that_cannot_be_built_are_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        transformer.Config(vocabulary=10, D=30, H=4)
    with pytest.raises(ValueError, match="L = 0"):
        transformer.Config(vocabulary=10, L=0)
