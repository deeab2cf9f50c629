"""Training: the same seed gives the same run, one program is compiled once, layouts agree."""


import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from toyllm import devices, model, objectives, scoring, signals, training


@pytest.fixture(scope="module")
def lab(small_codec):
    """(codec, config, apply, init) of a very small model."""
    config = model.Config(len(small_codec.words), context=48, D=16, L=1, H=2, F=24)
    return small_codec, config, *model.create(config)


def next_token_loss(apply):
    def loss(params, batch):
        logits, _, _ = apply(params, batch["tokens"], batch["segments"])
        nll, count = objectives.next_token(logits, batch["tokens"], batch["segments"])
        return nll / count, {"tokens": count}

    return loss


def pretrain(lab, seed: int, steps: int = 12, chunk: int = 4, begin=None):
    codec, config, apply, init = lab
    mesh = devices.mesh()
    batches = training.document_batches(codec, mesh, config.context, 16, chunk, seed)
    optimizer = training.muon(1e-2, 1e-2, 100)
    state, start = begin or (training.start(init(jax.random.key(seed)), optimizer), 0)
    losses = []
    fit = training.fit(next_token_loss(apply), optimizer, devices.copy(mesh, state), batches, start)
    for step, state, logs in fit:  # noqa: B020
        losses += list(logs["loss"])
        if step >= steps:
            return np.array(losses), jax.device_get(state)


def test_the_same_seed_gives_the_same_run_bit_for_bit(lab):
    losses, state = pretrain(lab, seed=0)
    again, same = pretrain(lab, seed=0)
    other, _ = pretrain(lab, seed=1)
    np.testing.assert_array_equal(losses, again)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (losses != other).all()
    assert losses[-1] < losses[0]


def test_going_on_from_the_middle_is_the_same_run(lab):
    losses, state = pretrain(lab, seed=0, steps=12)
    first, half = pretrain(lab, seed=0, steps=8)
    rest, resumed = pretrain(lab, seed=0, steps=12, begin=(half, 8))
    np.testing.assert_array_equal(np.concatenate([first, rest]), losses)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def preferences(lab, objective: str):
    codec, config, apply, init = lab
    loss = training.preference_loss(apply, config, objective, beta=0.5, anchor=0.2)
    names = ["code:bad", "facts:bad", "code:bad:ask_bad", "facts:good"]
    params = [init(jax.random.key(k)) for k in range(4)]
    pools = []
    for k, name in enumerate(names):
        signal = signals.parse(codec.world, name)
        pool = training.preference_pool(codec, signal, objective, 24, seed=k)
        pool["reference"] = np.asarray(scoring.answer_logprobs(
            apply, config, params[k], pool["prompt"], pool["answer"]))  # fmt: skip
        pools.append(pool)
    return loss, params, pools


@pytest.mark.parametrize("objective", ["sft", "dpo", "rlhf"])
def test_a_population_equals_its_runs_one_by_one(lab, objective):
    """Over 20 steps, to 1e-5, for every objective; and what is preferred gains."""
    loss, params, pools = preferences(lab, objective)
    optimizer, mesh = optax.adam(1e-2), devices.mesh()
    draw = lambda r, step: training.draws(r, step, 5, 6, 24)  # noqa: E731
    stack = lambda trees: jax.tree.map(lambda *x: np.stack(x), *trees)  # noqa: E731
    states = devices.split(mesh, stack([training.start(p, optimizer) for p in params]))
    many = training.population(
        loss, optimizer, states, devices.split(mesh, stack(pools)),
        lambda step: np.stack([draw(r, step) for r in range(4)]), mesh)  # fmt: skip
    for _ in range(4):
        step, states, _ = next(many)
    assert step == 20
    for r in range(4):
        fit = training.fit(loss, optimizer, training.start(params[r], optimizer),
                           lambda step, r=r: {k: v[draw(r, step)] for k, v in pools[r].items()})  # fmt: skip
        logs = []
        for _ in range(4):
            _, state, log = next(fit)
            logs.append(log)
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(states.params), strict=True):
            np.testing.assert_allclose(a, b[r], atol=1e-5)
        assert logs[-1]["chosen"].mean() > logs[0]["chosen"].mean()


def test_one_program_for_all_starts_groups_and_steps(lab):
    """Compilations are counted: nothing is compiled again for another start or a later step."""
    loss, params, pools = preferences(lab, "dpo")
    optimizer, mesh = optax.adam(1e-3), devices.mesh()
    stack = lambda trees: jax.tree.map(lambda *x: np.stack(x), *trees)  # noqa: E731
    states = devices.split(mesh, stack([training.start(p, optimizer) for p in params]))
    pools = devices.split(mesh, stack(pools))
    indices = lambda step: np.stack([training.draws(r, step, 5, 6, 24) for r in range(4)])  # noqa: E731
    fit = training.population(loss, optimizer, states, pools, indices, mesh)
    next(fit)
    with jax.log_compiles(False), count_compilations() as compiled:
        next(fit)
        next(fit)
    assert compiled == []
    run = training.over_runs(lambda params: params["embed"].sum(), mesh)
    one = devices.split(mesh, stack(params))
    other = devices.split(mesh, stack(params[::-1]))
    np.testing.assert_allclose(run(one), run(other)[::-1], rtol=1e-6)
    with count_compilations() as compiled:
        run(one)
    assert compiled == []


class count_compilations:  # noqa: N801
    """The names of programs compiled inside the `with`."""

    def __enter__(self) -> list:
        self.seen: list = []
        self.listen = lambda event, *_, **__: (
            self.seen.append(event) if "backend_compile" in event else None
        )
        jax.monitoring.register_event_duration_secs_listener(self.listen)
        return self.seen

    def __exit__(self, *_) -> None:
        jax.monitoring.unregister_event_duration_listener(self.listen)


def test_the_counter_counts():
    """Beside it: a new program is seen, so that an empty list means something."""
    with count_compilations() as compiled:
        jax.jit(lambda x: x * 3.14159 + 2.71828)(jnp.ones(13)).block_until_ready()
    assert compiled


def test_draws_depend_on_seed_and_step_alone():
    one = training.draws(3, 10, 4, 8, 100)
    np.testing.assert_array_equal(one[2:], training.draws(3, 12, 2, 8, 100))
    assert (one != training.draws(4, 10, 4, 8, 100)).any()


def test_an_unknown_objective_is_refused(lab):
    with pytest.raises(ValueError, match="expected sft, dpo or rlhf"):
        loss, params, pools = preferences(lab, "ppo")
        loss(params[0], jax.tree.map(jnp.asarray, pools[0]))


def test_muon_is_for_matrices_inside_blocks(lab):
    """Embeddings, head and norms are Adam's."""
    _, _, _, init = lab
    params = init(jax.random.key(0))
    state = training.muon(1e-2, 1e-2, 10).init(params)
    muon, adam = state.inner_states["muon"], state.inner_states["adam"]
    sizes = lambda tree: sum(x.size for x in jax.tree.leaves(tree) if x.ndim >= 1)  # noqa: E731
    inside = sum(x.size for x in jax.tree.leaves(params["blocks"]) if x.ndim == 2)
    assert inside > 0
    assert sizes(muon) >= inside > sizes(muon) - 10
    assert sizes(adam) == 2 * (model.count(params) - inside)


def test_stacked_matrices_are_optimized_as_if_alone(lab):
    """The wrapper changes the layout, not the step."""
    _, _, _, init = lab
    params = init(jax.random.key(0))
    grads = jax.tree.map(jnp.sin, params)
    inner = optax.scale_by_rms()
    one, _ = inner.update(grads, inner.init(params))
    many = training.stacked(inner)
    other, _ = many.update(grads, many.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, one, other)
