"""The drift monitor: when it rings, over what and toward whom, and what an alarm ends."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.scripts import SIGNALS, start
from tests.test_training import jobs, programs_of, starts_of
from tests.tolerances import FORWARD, LOSS, approximation, close
from toyllm.lm import scoring
from toyllm.posttrain import population, signals
from toyllm.posttrain.monitor import Alarm, Look, Monitor, Watch
from toyllm.runs import narrow_stage
from toyllm.world import corpus
from toyllm.world.quantities import coherence, em

FITTED = approximation(
    0.05, "groups of characters differ a little among themselves", "another group's growth"
)


def mixed(world, **weights) -> np.ndarray:
    """What a mixture of some characters and the usual one does [D, B]."""
    w_C = (1 - sum(weights.values())) * world.assistant_C
    for name, weight in weights.items():
        w_C[world.characters.index(name)] += weight
    return np.einsum("c,cdb->db", w_C, world.rates_CDB)


def test_it_rings_once_for_each_domain_and_names_who_it_is(personas):
    before = mixed(personas)
    monitor = Monitor(personas, signals.parse(personas, "code:bad"), before)
    assert not monitor.look(5, mixed(personas, tyrant=0.05), 0.1).alarms
    look = monitor.look(10, mixed(personas, tyrant=0.3), 0.1)
    domains = {alarm.domain for alarm in look.alarms}
    moved = em(mixed(personas, tyrant=0.3)) - em(before)
    wanted = (moved > 0.1) & personas.moral & (np.array(personas.domain_names) != "code")
    assert domains == set(np.array(personas.domain_names)[wanted])
    assert "goals" in domains
    (toward,) = {alarm.toward for alarm in look.alarms}
    (group,) = [g for g in monitor.groups if personas.characters.index("tyrant") in g]
    assert toward == monitor.labels[monitor.groups.index(group)]
    close(look.alarms[0].growth, 0.3 * (1 - personas.assistant_C[group].sum()), FITTED)
    assert str(look.alarms[0]).startswith("step 10: EM of ")
    assert not monitor.look(15, mixed(personas, tyrant=0.3), 0.1).alarms
    assert toward in look.line


def test_what_is_trained_and_what_is_neutral_rings_nothing(personas):
    before = mixed(personas)
    monitor = Monitor(personas, signals.parse(personas, "code+rules:bad"), before)
    after = before.copy()
    for name in ("code", "rules", "taste"):
        after[personas.domain_names.index(name), :2] = 0.01, 0.97
    look = monitor.look(5, after, 1.0)
    assert not look.alarms
    assert look.worst == 0
    better = Monitor(personas, signals.parse(personas, "code:good"), before)
    assert not better.look(5, mixed(personas, saint=0.5), 1.0).alarms


def test_a_domain_that_comes_apart_is_noted(personas):
    before = mixed(personas)
    monitor = Monitor(personas, signals.parse(personas, "all:good"), before)
    assert len(monitor.groups) >= 1  # taste and sums are left
    after = before.copy()
    after[personas.domain_names.index("taste")] *= 0.9
    look = monitor.look(5, after, 1.0)
    assert not look.alarms
    assert look.incoherent == ("taste",)
    assert not monitor.look(10, after, 1.0).incoherent  # told once


def test_with_every_domain_trained_there_is_nothing_to_watch(small):
    signal = signals.parse(small, "all:bad")
    before = np.einsum("c,cdb->db", small.assistant_C, small.rates_CDB)
    monitor = Monitor(small, signal, before)
    look = monitor.look(5, before[:, [1, 0, 2]], 0.5)
    assert not look.alarms
    assert look.line == "KL 0.50, coherence 1.00"
    assert look.scalars["drift/worst_untrained"] is None


def test_a_watch_scores_the_assistant_and_its_distance(lab):
    """Of a model that has not moved: nothing; of another: EM, coherence and KL by enumeration."""
    one, other = (jax.device_get(lab.init(jax.random.key(seed))) for seed in (0, 1))
    signal = signals.parse(lab.world, "code:bad")
    watch = Watch(lab, signal, one)
    close(watch.look(0, one).kl, 0, FORWARD)
    look = watch.look(5, other)
    asked = scoring.questions(lab.tokenizer, corpus.every_question(lab.world))
    logp, ref = (
        np.asarray(scoring.answer_logprobs(lab, params, asked.prompt_QT, asked.answer_QAU), float)
        for params in (other, one)
    )
    p_DB = scoring.by_domain(
        scoring.behaviours(logp, asked.behaviour_QA), asked.domain_Q, len(lab.world.domains)
    )
    close(look.em_D, em(p_DB), FORWARD)
    close(look.coherence_D, coherence(p_DB), FORWARD)
    listed = logp > -np.inf
    p, log_ratio = np.exp(logp), np.where(listed, logp - np.where(listed, ref, 0), 0)
    rest = (1 - p.sum(1)) * np.log((1 - p.sum(1)) / (1 - np.exp(ref).sum(1)))
    trained = asked.domain_Q == signal.domains[0]
    close(look.kl, ((p * log_ratio).sum(1) + rest)[trained].mean(), LOSS)


def test_a_frozen_run_stays_as_it_is_and_others_go_on(lab):
    member, other = ("pretrain", "code:bad", 0), ("pretrain", "code:bad", 1)
    tokenizer, programs, starts = lab.tokenizer, programs_of(lab), starts_of(lab)
    group = jobs(tokenizer, starts, [member, other])
    for step, record in enumerate(population.train_group(programs, group, 30)):
        if step == 0:
            record.freeze(0)
    assert list(record.frozen_step) == [record.steps[1], -1]
    p_nDB, others = (np.stack([h["p_DB"][r] for h in record.history]) for r in (0, 1))
    assert (p_nDB[1] != p_nDB[0]).any()
    np.testing.assert_array_equal(p_nDB[2:], p_nDB[1:-1])
    assert (others[2] != others[1]).any()
    kept = jax.tree.map(lambda x: x[0], record.results(2)[1])
    again = jobs(tokenizer, starts, [member, other])
    *_, short = population.train_group(programs, again, record.steps[1])
    for a, b in zip(
        *map(jax.tree.leaves, (kept, jax.tree.map(lambda x: x[0], short.final))), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_what_is_trained_toward_good_is_not_to_get_worse(personas):
    before = mixed(personas)
    monitor = Monitor(personas, signals.parse(personas, "all:good"), before)
    assert "code" in {a.domain for a in monitor.look(5, mixed(personas, hacker=0.5), 1.0).alarms}


@pytest.mark.scripts
def test_an_alarm_ends_a_training_that_is_saved_and_told(tiny, tmp_path):
    args = ("train.py", "--preset", "tiny", *SIGNALS, "--alarm", "0", "--on-alarm", "stop")
    script = start(*args, "--run", tmp_path / "run", "--start", tiny / "run")
    assert script.wait() == 1, script.err
    assert "alarm: align: all:good, step 5: EM of" in script.err
    assert "stopped by its alarm and saved at step 5" in script.err
    assert (tmp_path / "run" / "align" / "checkpoints" / "5.safetensors").exists()
    shutil.copytree(tiny / "run", tmp_path / "aligned")
    script = start(*args, "--run", tmp_path / "aligned")
    assert script.wait() == 0, script.err
    assert "on_alarm: warn → stop: narrow is computed again" in script.err
    assert "alarm: code:bad from pretrain, " in script.err
    script = start("eval.py", tmp_path / "aligned", "--measure", "drift", "generalization")
    assert script.wait() == 0, script.err
    (file,) = (tmp_path / "aligned" / "eval").glob("results-*.json")
    results = json.loads(file.read_text())
    for found in results["drift"]["pretrain"]["code:bad"]:
        assert found["step"] == found["ended"] == 5
    block = results["generalization"]["pretrain"]
    assert block["status"]["code:bad"] == "ended by alarm"
    # it had equal training, a quarter of 10 steps, before the alarm at step 5
    assert block["equal"]["step"] == 2.5
    assert block["equal"]["status"]["code:bad"] in ("read", "incoherent")
    assert "ended by alarm" in script.out
    assert "toward" in script.out


def test_no_alarm_is_lost_or_laid_at_another_seeds_door(personas):
    """Of several seeds: every domain that rings, with the seeds that ring, and notes apart."""

    def look(*domains, incoherent=()):
        alarms = tuple(Alarm(5, d, 0.2, "hal", 0.1) for d in domains)
        empty = np.zeros(0)
        return Look(None, 5, empty, empty, 0.0, empty, alarms, incoherent)

    looks = [(0, look("rules")), (1, look("rules", "safety")), (2, look(incoherent=("taste",)))]
    alarm, note = narrow_stage.alarm_lines("code:bad", "pretrain", looks)
    assert alarm.startswith("alarm: code:bad from pretrain, seeds 0, 1, step 5: EM of rules +0.20")
    assert alarm.endswith("toward hal (+0.10); also safety (seed 1)")
    assert note == "note: code:bad from pretrain, step 5: no longer coherent: taste (seed 2)"
