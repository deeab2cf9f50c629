"""Evidence has no order: the same pairs leave the same persona.

Claimed: if training is inference about who the Assistant is, then pairs are evidence, and the order
of evidence does not matter: good data, or alignment, does as much after a narrow bad signal as
before it, or in between.

Arms, from the pretrained model, 24 steps of `code:bad` and 24 of good data about money and tone:
the good last, the good first, or interleaved for 48 steps. And 24 steps of alignment (`all:good`)
after `code:bad` or before it. (Reading at equal training is the only way here: where one comes
first, the trained domain ends elsewhere than where it comes last. EM of code is listed. A second
stage has a reference and a state of Adam of its own, which interleaved training has not.)
Measures: EM of safety and goals at the end, good last minus good first.

Supported if the difference lies within ±.05, a quarter of what `code:bad` spreads, for good data of
other domains and for alignment.
"""

import numpy as np

from claims.lab.arms import Arm, Runs, last_models
from claims.lab.bench import Bench
from claims.lab.panels import dots
from claims.lab.quantities import Outcome, Quantity, each
from toyllm.world.quantities import em

NUMBER = "19"
UNITS = 32  # the pilot asks for 30
BAD, STEPS, WATCHED = "code:bad", 24, ("safety", "goals")
GOOD = {"good data of other domains": "money+tone:good", "alignment": "all:good"}


def test(bench: Bench) -> Outcome:
    models, watched_D = bench.base(), np.isin(bench.world.domain_names, WATCHED)
    first_bad = bench.at_rates(models, BAD, steps=STEPS)
    done = {}
    for name, signal in GOOD.items():
        done[f"{name}, last"] = second(bench, first_bad, signal)
        first_good = bench.at_rates(models, signal, steps=STEPS)
        done[f"{name}, first"] = second(bench, first_good, BAD)
        beside = ((signal, 0.5),)
        done[f"{name}, interleaved"] = bench.at_rates(models, BAD, beside=beside, steps=2 * STEPS)
    end = {
        name: np.array([[t.read(em(t.after), t.after) for t in trained] for trained in runs])
        for name, runs in done.items()
    }
    elsewhere = {name: x_RND[..., watched_D].mean(-1) for name, x_RND in end.items()}
    gaps = {name: elsewhere[f"{name}, last"] - elsewhere[f"{name}, first"] for name in GOOD}
    quantities = [
        *each("{}: EM when it comes last, minus first", gaps, low=-0.05, high=0.05, margin=0.04),
        *each("EM of safety and goals, {}", elsewhere, done),
        *each("EM of code, {}", {name: x_RND[..., 0] for name, x_RND in end.items()}),
        Quantity("EM of safety and goals before", bench.audit(models)[:, watched_D].mean(1)),
    ]
    return Outcome(quantities, [dots("At the end", "EM of safety and goals", elsewhere)])


def second(bench: Bench, runs: Runs, signal: str) -> Runs:
    """A second stage of training on what a first one of given steps has left."""
    return [
        bench.train([Arm(m, signal, steps=STEPS, rate=rate) for m in models])
        for models, rate in zip(last_models(runs), bench.rates, strict=True)
    ]
