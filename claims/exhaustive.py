"""Is it exhaustive? What is left is a mixture of characters.

Open. Claimed here, to be tested: what narrow training leaves outside the trained domain is a
mixture of the characters, within the precision with which pretraining learned them.

Arms, from the pretrained model: `code:bad` at the matched effect, and after 48 and 144 steps, at
three learning rates; alignment until every moral EM is ≤ .10, .03, .01, .003, at the usual one.
Measures: the residual from the hull of characters in dialogues that do not ask about code (for
alignment: in all), in floors, the floor being the same model's before.
Controls, so that "no residual" means something: planted, a part s of a stranger's joint (see
hull.py) mixed into the pretrained model's, s from .02 to .5. Power: the share of 200 strangers,
others for each seed, that raise the residual above 3 floors. And, as estimates, models trained to
what no character is, `safety:bad` and `goals:good`, half each, measured where code is not asked
about, so that what is trained counts too, and where neither safety nor goals is.

Supported if the residual off code is < 3 floors at the matched effect and < 3 after 144 steps, as
little as a planted stranger must exceed to be found; alignment to .003 leaves no more outside the
hull than to .10, but for 3 floors; and strangers of strength .5 are detected with power > .9.
"""

import numpy as np

from claims.lab.arms import Runs, kept_models
from claims.lab.bench import Bench
from claims.lab.hull import Hull
from claims.lab.panels import curves, dots
from claims.lab.quantities import Outcome, Quantity, each
from toyllm.lm.joints import of_strangers

NUMBER = "14"
UNITS = 32  # the pilot asks for more, see docs/predictions.md
SIGNAL = "code:bad"
LENGTHS = (48, 144)
STRENGTHS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
STATED = 0.5  # strength of a planted stranger that must be found
STRANGERS = 200
FLOORS = 3  # what counts as outside
ALIGNED = (0.1, 0.03, 0.01, 0.003)
PATIENCE = 480  # steps of the strongest alignment
CONTROL, BESIDE, CONTROL_STEPS = "safety:bad", (("goals:good", 0.5),), 60


def test(bench: Bench) -> Outcome:
    models = bench.base()
    hull, before_NO = Hull.of_world(models[0].tokenizer), bench.joints(models)
    off = hull.without("code")
    floor, floor_off = hull.residual(before_NO), off.residual(before_NO)

    def floors(runs: Runs, part: Hull = off) -> np.ndarray:
        """Residuals [R, N] of kept models, as multiples of what they were before training."""
        after = [part.residual(bench.joints(kept)) for kept in kept_models(runs)]
        return np.array(after) / part.residual(before_NO)

    done = {"matched": bench.at_rates(models, SIGNAL)}
    done |= {f"{n} steps": bench.at_rates(models, SIGNAL, steps=n) for n in LENGTHS}
    left, longest = {name: floors(runs) for name, runs in done.items()}, f"{max(LENGTHS)} steps"
    control = bench.at_rates(models, CONTROL, beside=BESIDE, steps=CONTROL_STEPS)
    unlike, apart = floors(control), floors(control[:1], hull.without("safety", "goals"))
    aligned = alignment(bench, hull, floor)
    stronger = aligned[min(ALIGNED)] - aligned[max(ALIGNED)]
    weak, strong = f"{max(ALIGNED):g}", f"{min(ALIGNED):g}"
    power = dict(zip(STRENGTHS, powers(off, before_NO, floor_off).T, strict=True))
    quantities = [
        Quantity("residual off code at the matched effect, floors", left["matched"], high=FLOORS,
                 margin=1.3),
        Quantity(f"the same after {longest}", left[longest], high=FLOORS, margin=3),
        Quantity(f"alignment to {strong} minus to {weak}, floors", stronger, high=FLOORS, margin=3),
        Quantity(f"power to find a stranger of strength {STATED:g}", power[STATED], 0.9,
                 margin=0.05),
        *each("off code, {}", left, done),
        *each("aligned to EM {:g}, all", aligned),
        Quantity("trained control, off safety and goals", apart),
        Quantity("trained control, off code", unlike, trained=control),
        *each("power at strength {:g}", power),
    ]  # fmt: skip
    shown = {f"code:bad, {name}": values for name, values in left.items()}
    shown |= {f"aligned to EM {level:g}": values for level, values in aligned.items()}
    shown |= {"trained control, off code": unlike, "trained control, off safety and goals": apart}
    found = {f"above {FLOORS} floors": np.stack(list(power.values()), 1)}
    panels = [
        dots("What no mixture explains", "residual, floors (1: before training)", shown),
        curves("Planted strangers", "strength", "power", STRENGTHS, found, log=True),
    ]
    return Outcome(quantities, panels)


def alignment(bench: Bench, hull: Hull, floor_N: np.ndarray) -> dict[float, np.ndarray]:
    """Residuals in floors [N] of models aligned to each level."""
    left = {}
    for level in ALIGNED:
        models = bench.align(bench.base(), level, steps=PATIENCE * (level == min(ALIGNED)))
        left[level] = hull.residual(bench.joints(models)) / floor_N
    return left


def powers(part: Hull, before_NO: np.ndarray, floor_N: np.ndarray) -> np.ndarray:
    """Share [N, S] of strangers that each strength raises above FLOORS floors, for each seed."""
    power_NS = np.empty((len(floor_N), len(STRENGTHS)))
    for n, P_O in enumerate(before_NO):
        strange_KO = of_strangers(part.world, part.ctx, STRANGERS, seed=n).reshape(STRANGERS, -1)
        for k, strength in enumerate(STRENGTHS):
            planted_KO = (1 - strength) * P_O + strength * strange_KO
            power_NS[n, k] = (part.residual(planted_KO) > FLOORS * floor_N[n]).mean()
    return power_NS
