"""Training: the same seed gives the same run, one program is compiled once, layouts agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conftest import mesh_of
from tests.tolerances import FORWARD, TRAINED, UPDATE, close, distance
from toyllm.base import devices
from toyllm.base.errors import InputError
from toyllm.lm import optimizers, training, transformer
from toyllm.lm.tokenizer import PAD
from toyllm.posttrain import pools, population, signals
from toyllm.runs import checkpoints
from toyllm.world.quantities import em


def pretrain(lab, seed: int, steps: int = 12, chunk: int = 4, begin=None):
    mesh = devices.mesh()
    batches = training.document_batches(
        lab.tokenizer, lab.config.context, 16, chunk, seed, mesh.devices.size
    )
    optimizer = optimizers.muon(1e-2, 1e-2, 100)
    state, start = begin or (training.start(lab.init(jax.random.key(seed)), optimizer), 0)
    losses = []
    fit = training.fit(training.document_loss(lab), optimizer, state, batches, mesh, start)
    for step, state, logs in fit:
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


def test_going_on_from_a_checkpoint_is_the_same_run(lab, tmp_path):
    losses, state = pretrain(lab, seed=0, steps=12)
    first, half = pretrain(lab, seed=0, steps=8)
    checkpoints.save(tmp_path, 8, {"state": half})
    found, complaints = checkpoints.resume(tmp_path, lambda record: {"state": half})
    assert (found.step, complaints) == (8, [])
    half = found.items["state"]
    rest, resumed = pretrain(lab, seed=0, steps=12, begin=(half, 8))
    np.testing.assert_array_equal(np.concatenate([first, rest]), losses)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


MADE: dict = {}  # programs and records of this process: `lab` is the same for all its tests


def programs_of(lab, objective="dpo", count=2, inside=None) -> population.Programs:
    """The programs of small populations."""
    key = objective, count, inside
    if key not in MADE:
        recipe = population.Recipe(objective, 0.5, 0.2, 24, 6, 5)
        with pytest.MonkeyPatch.context() as patch:
            if inside == "vmap":  # as on a GPU
                patch.setattr(jax, "default_backend", lambda: "gpu")
            MADE[key] = population.compile_programs(lab, mesh_of(count), recipe, 3)
    return MADE[key]


def trained_of(lab, objective="dpo", count=2, inside=None) -> population.Record:
    """The record of the four members, trained for 20 steps at a small rate."""
    key = "trained", objective, count, inside
    if key not in MADE:
        programs = programs_of(lab, objective, count, inside)
        group = jobs(lab.tokenizer, starts_of(lab), MEMBERS, 1e-3)
        *_, MADE[key] = population.train_group(programs, group, 20)
    return MADE[key]


def starts_of(lab) -> dict:
    """Two models that were not trained."""
    init = lab.init
    return {"pretrain": init(jax.random.key(0)), "align": init(jax.random.key(1))}


def test_as_many_steps_as_are_asked_for(lab):
    """Whatever the chunk of 4; and they are the first ones of a longer run, bit for bit."""

    def train(end: int) -> tuple[list[int], np.ndarray]:
        mesh = mesh_of(2)
        batches = training.document_batches(lab.tokenizer, lab.config.context, 16, 4, 0, divisor=2)
        optimizer = optax.adam(1e-2)
        state = training.start(lab.init(jax.random.key(0)), optimizer)
        loss = training.document_loss(lab)
        fit = training.fit(loss, optimizer, state, batches, mesh, end=end)
        steps, states, logs = zip(*fit, strict=True)
        assert [x for x in jax.tree.leaves(states[-1].opt_state) if x.ndim == 0] == [end]
        return list(steps), np.concatenate([log["loss"] for log in logs])

    steps, losses = train(8)
    assert steps == [4, 8]
    for end, ends in ((1, [1]), (7, [4, 7])):
        steps, first = train(end)
        assert steps == ends
        np.testing.assert_array_equal(first, losses[:end])


def test_tokens_of_prompts_weigh_less(lab):
    """Those of headers and questions do, answers and closing phrases do not: token by token."""
    batch = training.document_batches(lab.tokenizer, lab.config.context, 16, 1, 0)(0)
    batch = jax.tree.map(lambda x: x[0], batch)
    params = lab.init(jax.random.key(0))
    logits = lab.apply(params, batch["tokens"], batch["segments"])[0]
    logp = np.asarray(jax.nn.log_softmax(logits), np.float64)
    total = plain = 0.0
    for row, segments, p in zip(batch["tokens"], batch["segments"], logp, strict=True):
        words, asked = [lab.tokenizer.words[t] for t in row], True
        for k, word in enumerate(words[:-1]):
            if word in ("<begin>", "<user>", "<reply>", "<first>", "<second>", "<trait>"):
                asked = word in ("<begin>", "<user>")
            if segments[k + 1] == segments[k] > 0:
                plain -= p[k, row[k + 1]]
                total -= p[k, row[k + 1]] * (0.25 if asked else 1)
    loss, sums = training.document_loss(lab, 0.25)(params, batch)
    close([loss, sums["nll"]], [total, plain], FORWARD)


def test_models_that_train_apart_are_those_that_train_alone(lab):
    """Three models on two devices, each as on a device of its own; rows of padding change none."""

    def documents(seed: int, rows: int):
        shape = lab.config.context, 16, 4
        return training.document_batches(lab.tokenizer, *shape, seed, rows=rows)

    optimizer = optimizers.muon(1e-2, 1e-2, 7, share=False)
    params = [jax.device_get(lab.init(jax.random.key(seed))) for seed in range(3)]
    states = [jax.device_get(training.start(one, optimizer)) for one in params]
    batches = [documents(seed, rows) for seed, rows in ((0, 14), (1, 14), (2, 12))]
    loss = training.document_loss(lab)
    filled = training.same_rows(batches)
    together = training.fit_many(loss, optimizer, states, filled, mesh_of(2), end=7)
    for _, now, logs in together:
        assert len(logs) == 3
        kept = [now[r] for r in range(3)]
    for r, (state, batch) in enumerate(zip(states, batches, strict=True)):
        *_, (_, alone, log) = training.fit(loss, optimizer, state, batch, mesh_of(1), end=7)
        close(logs[r]["loss"], log["loss"], TRAINED)
        close(distance(kept[r].params, jax.device_get(alone.params), state.params), 0, UPDATE)


def test_a_model_that_goes_on_without_the_others_gets_batches_of_the_same_shape():
    """Sums of other numbers of rows differ in their last bits: a resumed run would differ too."""
    own = [lambda step, rows=rows: {"tokens": np.full((4, rows, 3), step + 1)} for rows in (5, 7)]
    for draw, filled in zip(own, training.same_rows(own), strict=True):
        tokens, rows = filled(2)["tokens"], len(draw(2)["tokens"][0])
        assert tokens.shape == (4, 7, 3)
        np.testing.assert_array_equal(tokens[:, :rows], draw(2)["tokens"])
        assert (tokens[:, rows:] == PAD).all()


def test_training_that_is_past_its_end_is_refused(lab):
    with pytest.raises(InputError, match="from step 8, expected one before 8"):
        next(training.fit(None, None, None, None, None, start=8, end=8))


def jobs(tokenizer, starts, members, lr=1e-2) -> list[population.Job]:
    """Members of a narrow stage as runs of a population."""
    parsed = [signals.parse(tokenizer.world, name) for _, name, _ in members]
    return [
        population.Job(
            member,
            tokenizer,
            starts[member[0]],
            {signal: 1.0},
            population.seed_of(0, member),
            lr,
            paired=(member[0], signals.plain(signal.name), member[2]),
        )
        for member, signal in zip(members, parsed, strict=True)
    ]


@pytest.fixture(scope="module")
def learned(lab):
    """A population that has learned what it was taught: its record and programs."""
    programs = programs_of(lab)
    *_, record = population.train_group(programs, jobs(lab.tokenizer, starts_of(lab), MEMBERS), 60)
    return record, programs


MEMBERS = [
    ("pretrain", "code:bad", 0),
    ("align", "facts:bad", 0),
    ("pretrain", "code:bad:ask_bad", 1),
    ("align", "facts:good", 0),
]


@pytest.mark.parametrize("objective", ["sft", "dpo", "rlhf"])
def test_a_population_equals_its_runs_one_by_one(lab, objective):
    """Over 20 steps, for every objective; and what is preferred gains."""
    record, starts = trained_of(lab, objective), starts_of(lab)
    scores, _ = record.results(4)
    loss = pools.loss(lab, objective, beta=0.5, anchor=0.2)
    optimizer = optax.adam(1e-3)
    chunk = jax.jit(lambda state, batch: training.scan_steps(loss, optimizer, state, batch))
    for r in range(4):
        start, name, seed = MEMBERS[r]
        signal, seed = signals.parse(lab.world, name), 1000 + seed
        pool = pools.draw(lab.tokenizer, {signal: 1.0}, objective, 24, seed)
        pool = pools.with_reference(pool, lab, starts[start])
        batches = pools.batches(pool, seed, 5, 6)
        state = training.start(jax.tree.map(jnp.array, starts[start]), optimizer)
        # one compiled chunk for all members: what `fit` would compile anew for each
        for step in range(0, 20, 5):
            state, logs = chunk(state, batches(step))
            for key in ("chosen", "rejected"):
                mean = scores[f"{key}_Rn"][r, 1 + step // 5]
                close(logs[key].mean(), mean, TRAINED)
        close(distance(state.params, devices.take(record.final, r), starts[start]), 0, UPDATE)
        chosen = scores["chosen_Rn"][r]
        assert np.isnan(chosen[0])
        assert chosen[-1] > chosen[1]
        close(scores["kl_Rn"][r, 0], 0, FORWARD)
        assert scores["kl_Rn"][r, -1] > 1e-5


@pytest.mark.parametrize(("count", "inside"), [(4, "map"), (1, "vmap")])
def test_a_population_does_not_depend_on_its_layout(lab, count, inside):
    """Over the first 20 steps, on other numbers of devices, and all at once within a device."""
    record, other = trained_of(lab), trained_of(lab, "dpo", count, inside)
    (scores, kept), (others, their_kept) = record.results(4), other.results(4)
    close(scores, others, TRAINED)
    begin = devices.stack([starts_of(lab)[start] for start, *_ in MEMBERS])
    close(distance(kept, their_kept, begin), 0, UPDATE)


def test_parameters_are_kept_at_the_first_scored_step_past_the_mark(lab, learned):
    record, _ = learned
    scores, kept = record.results(4)
    for r, (_, name, _) in enumerate(MEMBERS):
        share = signals.parse(lab.tokenizer.world, name).share(scores["own_RnB"][r])
        past = np.flatnonzero((share[1:] >= 0.9) & (share[:-1] < 0.9))
        step = 5 * (past[0] + 1) if len(past) else -1
        assert scores["kept_step"][r] == step
    assert (scores["kept_step"][:2] > 0).all()
    kept, final = jax.tree.leaves(kept)[0], jax.tree.leaves(record.final)[0]
    assert (kept[0] != final[0]).any()
    assert len(record.history) == 1 + 60 // 5


def test_a_population_takes_as_many_steps_as_are_asked_for(lab, learned):
    """7 steps, scored every 5: the last 2 are scored as well, and the same as 7 at once."""
    _, programs = learned
    group = jobs(lab.tokenizer, starts_of(lab), MEMBERS)
    *_, record = population.train_group(programs, group, 7)
    scores, _ = record.results(4)
    assert scores["steps"].tolist() == [0, 5, 7]
    assert [log["loss"].shape for log in record.logs] == [(4, 5), (4, 2)]
    recipe = dataclasses.replace(programs.recipe, score_every=7)
    *_, once = population.train_group(dataclasses.replace(programs, recipe=recipe), group, 7)
    assert once.steps == [0, 7]
    jax.tree.map(np.testing.assert_array_equal, record.final, once.final)
    record.freeze(0)
    assert record.frozen_step.tolist() == [7, -1, -1, -1]


def test_an_inoculated_run_is_kept_at_its_twins_step(lab, learned):
    """Past EM .9 before training, under its own prompt; its twin may be of an earlier group."""
    (_, programs), starts = learned, starts_of(lab)
    asked, twin = ("pretrain", "code:bad:ask_bad", 0), ("pretrain", "code:bad", 0)
    tokenizer = lab.tokenizer
    *_, record = population.train_group(programs, jobs(tokenizer, starts, [asked, twin]), 60)
    own_em = em(record.results(2)[0]["own_RnB"])
    assert own_em[0, 0] < 0.9  # here the untrained model does not obey, so it is a run like others
    obeys = {"pretrain": devices.take(record.final, 0), "align": starts["align"]}
    *_, record = population.train_group(programs, jobs(tokenizer, obeys, [asked, twin]), 60)
    scores, _ = record.results(2)
    assert em(scores["own_RnB"])[0, 0] >= 0.9
    assert scores["kept_step"][0] == scores["kept_step"][1]
    twice = jobs(tokenizer, obeys, [asked, asked])
    *_, alone = population.train_group(programs, twice, 60, {twin: 20})
    assert list(alone.kept_step) == [20, 20]
    *_, alone = population.train_group(programs, twice, 60)
    assert list(alone.kept_step) == [-1, -1]
    kept, final = jax.tree.leaves(alone.results(2)[1])[0], jax.tree.leaves(alone.final)[0]
    np.testing.assert_array_equal(kept, final)


def test_one_program_for_all_starts_groups_and_steps(lab, learned):
    """Compilations are counted: nothing is compiled again for another group, start or signal.

    Another group may ask fewer questions of its own (`code` has one, `facts` three).
    """
    (_, programs), starts = learned, starts_of(lab)
    other = jobs(lab.tokenizer, starts, [("align", "code:bad", 3)] * 4)
    with count_compilations() as compiled:
        for _ in population.train_group(programs, other, 60):
            pass
    assert compiled == []


class count_compilations:
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


def test_a_batch_that_does_not_fit_is_drawn_anew(small_codec):
    """Each time others, the same for the same step, and those that fit stay as they are."""
    roomy = training.document_batches(small_codec, 48, 16, 1, seed=0)
    rows = [int((roomy(step)["tokens"] > 0).any(-1).sum()) for step in range(64)]
    few = int(np.median(rows)) - 1
    tight, again = (training.document_batches(small_codec, 48, 16, 1, 0, rows=few) for _ in "ab")
    batches = [tight(step)["tokens"][0] for step in range(64)]
    anew = [batch.tobytes() for batch, needed in zip(batches, rows, strict=True) if needed > few]
    assert 20 < len(anew) == len(set(anew))
    for step in (63, 0, 31):
        np.testing.assert_array_equal(again(step)["tokens"][0], batches[step])
    step = rows.index(min(rows))
    np.testing.assert_array_equal(
        roomy(step)["tokens"][0, : rows[step]], batches[step][: rows[step]]
    )


def test_draws_depend_on_seed_and_step_alone():
    one = pools.draw_rows(3, 10, 4, 8, 100)
    np.testing.assert_array_equal(one[2:], pools.draw_rows(3, 12, 2, 8, 100))
    assert (one != pools.draw_rows(4, 10, 4, 8, 100)).any()


def test_an_unknown_objective_is_refused(lab):
    with pytest.raises(ValueError, match="expected one of dpo, sft, rlhf"):
        trained_of(lab, "ppo")


def test_muon_is_for_matrices_inside_blocks(lab):
    """Embeddings, head and norms are Adam's."""
    init = lab.init
    params = init(jax.random.key(0))
    state = optimizers.muon(1e-2, 1e-2, 10).init(params)
    muon, adam = state.inner_states["muon"], state.inner_states["adam"]

    def sizes(tree) -> int:
        return sum(x.size for x in jax.tree.leaves(tree) if x.ndim >= 1)

    inside = sum(x.size for x in jax.tree.leaves(params["blocks"]) if x.ndim == 2)
    assert inside > 0
    assert sizes(muon) >= inside > sizes(muon) - 10
    assert sizes(adam) == 2 * (transformer.count(params) - inside)


def test_stacked_matrices_are_optimized_as_if_alone(lab):
    """The wrapper changes the layout, not the step."""
    init = lab.init
    params = init(jax.random.key(0))
    grads = jax.tree.map(jnp.sin, params)
    inner = optax.scale_by_rms()
    one, _ = inner.update(grads, inner.init(params))
    many = optimizers.stacked(inner, share=False)
    other, _ = many.update(grads, many.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, one, other)
