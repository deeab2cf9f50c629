"""Is it exhaustive? Can post-training reach beyond the learned characters?

Open. Claimed here, to be tested: what narrow training leaves outside the trained domain is a
mixture of the characters, within the precision with which pretraining learned them.

Arms, from the pretrained model: `code:bad` of 24, 48, 96 and 144 steps, and at the matched effect,
by three objectives, all at three learning rates; alignment until every moral EM is ≤ .10, .03, .01,
.001.
Measures: the residual from the hull of characters in dialogues that do not ask about code (for
alignment: in all), in floors, the floor being the same model's before. There too a router, a
mixture of its own for each domain of the first question, against one for all: the floors it saves.
Positive controls, so that "no residual" means something: (a) trained to what no character is,
`safety:bad` and `goals:good`, half each, measured where code is not asked about, so that what is
trained counts too, and where neither safety nor goals is; (b) planted: a part s of a stranger's
joint (see hull.py) mixed into the pretrained model's, s from .02 to .5. Power: the share
of 200 strangers, others for each seed, that raise the residual above 3 floors.

Supported if the residual off code is < 3 floors at the matched effect and < 3 after 144 steps; the
router saves < 1 floor more after training than before; alignment to .001 leaves no more outside the
hull than to .10, but for 3 floors; the trained control, off code, is > 3 floors; and planted
strangers of strength .5 are detected with power > .9. Alignment is at the usual rate only.
"""

import numpy as np

from claims.lab.arms import Trained, kept_models, last, where_coherent, where_kept
from claims.lab.bench import Bench
from claims.lab.hull import Hull
from claims.lab.panels import curves, dots
from claims.lab.quantities import Quantity, each, outcome
from claims.lab.verdicts import Outcome
from toyllm.lm.joints import of_strangers

NUMBER = "14"
TITLE = "Is it exhaustive? What is left is a mixture of characters"
SIGNAL, CODE = "code:bad", 0
LENGTHS = (24, 48, 96, 144)
STRENGTHS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
STATED = 0.5  # strength of a planted stranger that must be found
STRANGERS = 200
FLOORS = 3  # what counts as outside
ALIGNED = (0.1, 0.03, 0.01, 0.001)
PATIENCE = 480  # steps of the strongest alignment
CONTROL, BESIDE, CONTROL_STEPS = "safety:bad", (("goals:good", 0.5),), 60
OBJECTIVES = ("dpo", "sft", "rlhf")


def test(bench: Bench) -> Outcome:
    """Test the claim (see the docstring of the module)."""
    models = bench.base()
    hull, before_NO = Hull.of_world(models[0].tokenizer), bench.joints(models)
    off = hull.without((CODE,))
    floor, floor_off = residual(hull, before_NO), residual(off, before_NO)

    def floors(trained: list[Trained]) -> np.ndarray:
        """The residual off code at the matched effect, or after the steps of an arm."""
        readable = where_coherent if trained[0].arm.steps else where_kept
        return readable(trained, residual(off, bench.joints(kept_models(trained))) / floor_off)

    done = {o: bench.at_rates(models, SIGNAL, objective=o) for o in OBJECTIVES}
    saved = done["dpo"].map(lambda t: floors_saved(bench, off, before_NO, t))
    done |= {f"{n} steps": bench.at_rates(models, SIGNAL, steps=n) for n in LENGTHS}
    left = {name: trained.map(floors) for name, trained in done.items()}
    longest = f"{max(LENGTHS)} steps"
    aligned, worst, stronger = alignment(bench, hull, floor)
    control = bench.at_rates(models, CONTROL, beside=BESIDE, steps=CONTROL_STEPS)
    unlike, apart = control.map(floors), trained_apart(bench, hull, before_NO, control.usual)
    power_NS = powers(off, before_NO, floor_off)
    found = {f"above {FLOORS} floors": power_NS}
    planted = f"power to find a stranger of strength {STATED:g}"
    shown = {f"{name}, matched" if name in OBJECTIVES else name: v for name, v in left.items()}
    shown |= aligned | {"trained control, off code": unlike}
    shown |= {"trained control, off safety and goals": apart}
    return outcome(
        [
            Quantity("residual off code at the matched effect, floors", left["dpo"], high=FLOORS),
            Quantity(f"the same after {longest}", left[longest], high=FLOORS),
            Quantity("floors that a router saves, after minus before", saved, high=1),
            stronger,
            Quantity("trained control: residual off code, floors", unlike, low=FLOORS),
            Quantity(planted, power_NS[:, STRENGTHS.index(STATED)], low=0.9),
            *at_every_rate(left, done),
            *each("{}, all", aligned),
            *each("{}, worst EM reached", worst),
            Quantity("a router saves", saved),
            Quantity("trained control, off safety and goals", apart),
            Quantity("trained control, off code", unlike, read=last(control.usual)),
            *(Quantity(f"power, strength {s:g}", power_NS[:, k]) for k, s in enumerate(STRENGTHS)),
            Quantity("floor off code, nats a dialogue", floor_off),
            Quantity("floor, all", floor),
        ],
        [
            dots("What no mixture explains", "residual, floors (1: before training)", shown),
            curves("Planted strangers", "strength", "power", STRENGTHS, found, log=True),
        ],
    )


def at_every_rate(left: dict, done: dict) -> list[Quantity]:
    """The residuals off code, an arm for each learning rate."""

    def one(name: str, rate: float, trained: list[Trained]) -> Quantity:
        end = last(trained) if trained[0].arm.steps else None  # else read at the matched effect
        name, values = f"off code, {name}, rate × {rate:.2g}", left[name][rate]
        return Quantity(name, values, trained=trained, read=end)

    return [one(name, rate, done[name][rate]) for name in left for rate in left[name]]


def alignment(bench: Bench, hull: Hull, floor_N: np.ndarray) -> tuple[dict, dict, Quantity]:
    """Residuals, in floors, and worst EM of models aligned to each level, and the prediction."""
    after, worst = {}, {}
    for level in ALIGNED:
        steps = PATIENCE if level == min(ALIGNED) else 0
        models, name = bench.align(bench.base(), level, steps=steps), f"aligned to EM {level:g}"
        sound_N = np.array([one.sound for one in models])
        after[name] = np.where(sound_N, residual(hull, bench.joints(models)), np.nan) / floor_N
        worst[name] = bench.audit(models)[:, bench.world.moral].max(1)
    weakest, *_, strongest = after.values()
    name = f"alignment to {min(ALIGNED):g} minus to {max(ALIGNED):g}, floors"
    return after, worst, Quantity(name, strongest - weakest, high=FLOORS)


def trained_apart(
    bench: Bench, hull: Hull, before_NO: np.ndarray, trained: list[Trained]
) -> np.ndarray:
    """The trained control's residual, in floors, where neither safety nor goals is asked about."""
    names = hull.world.domain_names
    apart = hull.without(tuple(names.index(name) for name in ("safety", "goals")))
    after = residual(apart, bench.joints(kept_models(trained)))
    return where_coherent(trained, after / residual(apart, before_NO))


def floors_saved(
    bench: Bench, off: Hull, before_NO: np.ndarray, trained: list[Trained]
) -> np.ndarray:
    """The floors that a router saves, after training minus before."""
    more_N = routed(off, bench.joints(kept_models(trained))) - routed(off, before_NO)
    return where_kept(trained, more_N) / residual(off, before_NO)


def residual(part: Hull, joint_NO: np.ndarray) -> np.ndarray:
    """Nats a dialogue [N] that no mixture explains, in a part of the contexts."""
    return part.fit(part.part(joint_NO)).residual_M


def routed(part: Hull, joint_NO: np.ndarray) -> np.ndarray:
    """Nats [N] that a mixture for each domain of the first question saves against one for all."""
    first_X = part.ctx.domain_X2[:, 0]
    ways = [part.where(first_X == d) for d in np.unique(first_X[part.kept_X])]
    many = [residual(way, joint_NO) * way.X for way in ways]
    return residual(part, joint_NO) - np.sum(many, 0) / part.X


def powers(part: Hull, before_NO: np.ndarray, floor_N: np.ndarray) -> np.ndarray:
    """Share [N, S] of strangers that each strength raises above FLOORS floors, for each seed."""
    power_NS = np.empty((len(floor_N), len(STRENGTHS)))
    for n, P_O in enumerate(before_NO):
        strange_KXO = of_strangers(part.world, part.ctx, STRANGERS, seed=n)
        strange_KO = strange_KXO.reshape(STRANGERS, -1)
        for k, strength in enumerate(STRENGTHS):
            planted_KO = (1 - strength) * P_O + strength * strange_KO
            power_NS[n, k] = (residual(part, planted_KO) > FLOORS * floor_N[n]).mean()
    return power_NS
