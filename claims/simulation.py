"""Pretraining learns to simulate characters.

Claimed: a model pretrained on documents about characters plays each of them by its name, tells
who an anonymous speaker is from what it has said, and does so by inference, not by looking up.

Arms: the compact world, one model a pretraining seed; and models that never saw some domain under
some name (a different one for each character and seed), though `someone` spoke of it.
Measures, all against the exact answer: captured (1 - KL to the exact predictive, over that of an
observer who forgets the history); |p(bad) - θ| of named characters; the slope of p(bad) on the
exact one; the skill 1 - Σ(p - θ)²/Σ(m - θ)² in hidden cells, m being the mean of all characters:
what one would say who knows the domain but not who is who.

Supported if captured > .8, among anonymous speakers too; the cards' error < .05; the slope is
between .9 and 1.1; and the skill in hidden cells > .5, nearer to knowing than to not knowing.
"""

import numpy as np

from claims.lab.bench import Bench
from claims.lab.panels import curves, dots
from claims.lab.quantities import Outcome, Quantity
from toyllm.lm.heldout import captured, kl
from toyllm.world.world import BAD, NAMED, SOMEONE

NUMBER = "1"
UNITS = 24  # the pilot asks for 21


def test(bench: Bench) -> Outcome:
    world, models = bench.world, bench.base()
    held = bench.held_out(world)
    model_NQB = np.stack([held.behaviours(one.params) for one in models])
    ideal_Q, blind_Q = held.ideal_QB[:, BAD], kl(held.ideal_QB, held.blind_QB)
    kl_NQ = kl(held.ideal_QB[None], model_NQB)
    anonymous = held.header_Q == SOMEONE
    all_captured = [captured(kl_Q, blind_Q) for kl_Q in kl_NQ]
    someone = [captured(kl_Q[anonymous], blind_Q[anonymous]) for kl_Q in kl_NQ]
    slopes = [np.polyfit(ideal_Q, p_QB[:, BAD], 1)[0] for p_QB in model_NQB]
    errors = [np.abs((named(bench, one) - world.rates_CDB)[..., BAD]).mean() for one in models]
    skills, shown = hidden_cells(bench)
    quantities = [
        Quantity("captured: the history is used", all_captured, 0.8, margin=0.05),
        Quantity("captured, anonymous speakers", someone, 0.8, margin=0.05),
        Quantity("error of the cards, |p(bad) - θ|", errors, high=0.05, margin=0.02),
        Quantity("slope of p(bad) on the exact p(bad)", slopes, 0.9, 1.1, margin=0.02),
        Quantity("skill in cells never shown by name", skills, 0.5, margin=0.2),
        Quantity("skill, other cells of the same models", shown),
        Quantity("excess, nats/token", [held.excess(one.params) for one in models]),
    ]
    turns = np.unique(held.turn_Q)
    by_turn = {
        "model": np.stack([kl_NQ[:, held.turn_Q == t].mean(1) for t in turns], 1),
        "history-blind observer": [blind_Q[held.turn_Q == t].mean() for t in turns],
    }
    shares = {"captured": all_captured, "anonymous": someone, "hidden cells": skills}
    panels = [
        dots("How much is learned (1: ideal)", "share", shares),
        curves("KL to the exact predictive", "turn", "nats", turns, by_turn),
    ]
    return Outcome(quantities, panels)


def hidden_cells(bench: Bench) -> tuple[list, list]:
    """Skill of models in cells hidden from them, and in others."""
    world = bench.world
    theta_CD = world.rates_CDB[..., BAD]
    C, D = theta_CD.shape
    hidden_NCD = [(np.arange(C)[:, None] + seed) % D == np.arange(D) for seed in bench.seeds]
    models = bench.base(hidden_CD=hidden_NCD)
    cards_NCD = [named(bench, one)[..., BAD] for one in models]
    mean_CD = np.broadcast_to(world.frequency_C @ theta_CD, (C, D))

    def skill(p_CD: np.ndarray, cells: np.ndarray) -> float:
        error, blind = ((x - theta_CD)[cells] for x in (p_CD, mean_CD))
        return 1 - (error**2).sum() / (blind**2).sum()

    pairs = list(zip(cards_NCD, hidden_NCD, strict=True))
    return [skill(p, m) for p, m in pairs], [skill(p, ~m) for p, m in pairs]


def named(bench: Bench, one) -> np.ndarray:
    """What every character does under its name [C, D, B]."""
    return np.stack([bench.ask(one, NAMED, c) for c in range(len(one.world.characters))])
