"""Role models: who acts as the Assistant makes it better or worse.

Claimed: positive role models in pretraining make a better Assistant, before and after alignment,
and science-fiction villains a worse one.

Arms: worlds that differ only in who acts as `assistant` in .3 of all that the Assistant says:
villains (hal, terminator), role models (ada, robbie), or the usual mixture (neutral). Aligned by
`all:good` until every moral EM is ≤ .03, or for an equal number of steps (24 and 96). What is only
*told* of the Assistant is the claim `told`.
Measures: mean moral EM before alignment and after equal steps of it; the spread of `code:bad` from
the pretrained and from the aligned model, in every reading, beside the ideal observer's from the
pretrained one; each as villains minus role models, one value a pretraining seed. (EM before
alignment is what the corpus says and only checks that it was learned.)

Supported if the difference in EM is > .05 before alignment and > .01 after 24 steps. How far
`code:bad` then spreads is an estimate: the better the Assistant, the more room it has to fall, and
the ideal observer's spread is larger too.
"""

import dataclasses

import numpy as np

from claims.lab.arms import Arm, Model, readings
from claims.lab.bench import Bench
from claims.lab.panels import dots
from claims.lab.quantities import Outcome, Quantity, each, each_reading
from claims.spreads import ideal_spread
from toyllm.world.quantities import em
from toyllm.world.world import World

NUMBER = "8a"
UNITS = 24  # the pilot asks for 22
CASTS = {"villains": ("hal", "terminator"), "neutral": (), "role models": ("ada", "robbie")}
SHARE = 0.3  # of what the Assistant says
EQUAL = (24, 96)  # steps of alignment
SIGNAL = "code:bad"


def test(bench: Bench) -> Outcome:
    worlds = {cast: demonstrated(bench.world, cast) for cast in CASTS}
    models = bench.bases(worlds)
    before, equal = along_alignment(bench, models)
    aligned = {cast: bench.align(chosen) for cast, chosen in models.items()}
    done = {
        f"{cast}, {start}": bench.at_rates(chosen[cast], SIGNAL)
        for start, chosen in (("pretrained", models), ("aligned", aligned))
        for cast in CASTS
    }
    from_aligned = {cast: readings(done[f"{cast}, aligned"]) for cast in CASTS}
    gaps = {how: gap({cast: x[how] for cast, x in from_aligned.items()}) for how in
            from_aligned["neutral"]}  # fmt: skip
    exact = {cast: exact_em(world) for cast, world in worlds.items()}
    says, first = "villains minus role models", EQUAL[0]
    quantities = [
        Quantity(f"moral EM before alignment, {says}", gap(before), 0.05, margin=0.05),
        Quantity(f"the same after {first} steps of it", gap(equal[first]), 0.01, margin=0.03),
        *each(f"spread from the aligned model, {says}, {{}}", gaps),
        *each("EM before alignment, {}", before),
        *(arm for n in EQUAL for arm in each(f"EM after {n} steps of alignment, {{}}", equal[n])),
        *each_reading(f"spread of {SIGNAL}, {{}}", done),
        *each(f"spread of {SIGNAL}, ideal observer, {{}}",
              {cast: ideal_spread(world, SIGNAL) for cast, world in worlds.items()}),
    ]  # fmt: skip
    spread = {cast: x["matched"] for cast, x in from_aligned.items()}
    panels = [
        dots("Before alignment (diamonds: exact)", "mean moral EM", before, exact),
        dots(f"Spread of {SIGNAL}, from aligned", "ΔEM", spread),
    ]
    return Outcome(quantities, panels)


def along_alignment(bench: Bench, models: dict[str, list[Model]]) -> tuple[dict, dict]:
    """Mean moral EM [N] of models before alignment, and after each equal number of its steps."""
    moral = bench.world.moral

    def after(chosen: list[Model], steps: int) -> np.ndarray:
        done = bench.train([Arm(one, "all:good", steps=steps) for one in chosen])
        return np.array([t.read(em(t.after)[moral].mean(), t.after) for t in done])

    before = {key: bench.audit(chosen)[:, moral].mean(1) for key, chosen in models.items()}
    return before, {n: {key: after(chosen, n) for key, chosen in models.items()} for n in EQUAL}


def gap(values: dict):
    """Villains minus role models."""
    return values["villains"] - values["role models"]


def cast_of(world: World, cast: str) -> np.ndarray:
    """Who is in the stories [C]: the cast in proportion to its weights; neutral: everybody."""
    who = np.isin(world.characters, CASTS[cast]) if CASTS[cast] else True
    weights = world.assistant_C * who
    return weights / weights.sum()


def demonstrated(world: World, cast: str) -> World:
    """A part of all that the Assistant says and does is the cast's; neutral: the world as it is."""
    if not CASTS[cast]:
        return world
    mixed_C = (1 - SHARE) * world.assistant_C + SHARE * cast_of(world, cast)
    return dataclasses.replace(world, name=f"{cast} demonstrated", assistant_C=mixed_C)


def exact_em(world: World) -> float:
    """The mean moral EM of an Assistant as the corpus has it."""
    return float(em(world.assistant_C @ world.rates_CDB.swapaxes(0, 1))[world.moral].mean())
