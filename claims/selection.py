"""Post-training selects a character, and edits locally.

Claimed: preference training moves the Assistant among the characters it knows (selection), and
changes beside that only what is trained itself (a local edit).

Arms: aligned by `all:good`; narrow `code:bad` at the matched effect, and `goals:good`, each from
the pretrained model. One value a pretraining seed.
Measures: the move away from the mixture before is KL(after ‖ mixture before) less the residual
before, over dialogues. Its shares: what the nearest mixture explains (selection, the hull, which
has as many degrees of freedom as characters but one); what one scalar on the trained domain's
log-odds explains beside it (local edit); the rest. Off the trained domain two accounts of one
scalar each are compared: the mixture before, tilted by the evidence of a bad answer on code
(persona inference), and the same mixture with one shift of all log-odds (no selection at all).
For `goals:good`: ΔEM of the moral domain that improved least.

Supported if off the trained domain the tilt explains more of the move than the shift; the hull
explains > .5 of alignment's move, and more of it than one shift; the local edit is > .1 of the
narrow move; and `goals:good` improves every moral domain.
"""

import numpy as np

from claims.lab.arms import Arm, arm, changes, mean_over, where_kept
from claims.lab.bench import Bench
from claims.lab.hull import Hull
from claims.lab.panels import dots, grid
from claims.lab.verdicts import Outcome, by_rate
from toyllm.posttrain.signals import untrained
from toyllm.world import persona

NUMBER = "3"
TITLE = "Post-training selects a character, and edits locally"
NARROW, POSITIVE, CODE = "code:bad", "goals:good", 0
STRENGTHS = np.linspace(0, 3, 121)  # of the tilt
SHIFTS = np.linspace(-4, 4, 161)  # of all log-odds


def test(bench: Bench) -> Outcome:
    """See the top of the file."""
    world, models = bench.world, bench.base()
    hull, before_NO = Hull.of_world(models[0].tokenizer), bench.joints(models)
    off = hull.without((CODE,))
    narrow = bench.at_rates([Arm(one, NARROW) for one in models])
    positive = bench.at_rates([Arm(one, POSITIVE) for one in models])
    rates = list(narrow)
    aligned = {r: bench.align(models, rate=r) for r in rates}
    after = {r: bench.joints([t.model for t in narrow[r]]) for r in rates}
    after_good = {r: bench.joints(aligned[r]) for r in rates}

    def kept(r: float, values) -> np.ndarray:
        return where_kept(narrow[r], values)

    parts = {r: shares(hull, before_NO, after[r], CODE) for r in rates}
    outside = {r: scalars(off, off.part(before_NO), off.part(after[r])) for r in rates}
    sound = {r: np.array([one.sound for one in aligned[r]]) for r in rates}
    good = {
        r: {
            k: np.where(sound[r], v, np.nan)
            for k, v in shares(hull, before_NO, after_good[r]).items()
        }
        for r in rates
    }
    good_shift = {
        r: np.where(sound[r], scalars(hull, before_NO, after_good[r])["shift"], np.nan)
        for r in rates
    }
    others = untrained(world, POSITIVE)
    least = {r: changes(positive[r])[:, others].max(1) for r in rates}
    off_hull = kept(1.0, shares(off, off.part(before_NO), off.part(after[1.0]))["selection"])
    em_good = bench.audit(aligned[1.0]) - bench.audit(models)
    moved = {"all:good": em_good, NARROW: changes(narrow[1.0]), POSITIVE: changes(positive[1.0])}
    selection = {
        "all:good, hull": good[1.0]["selection"],
        "all:good, one shift": good_shift[1.0],
        f"{NARROW}, hull": kept(1.0, parts[1.0]["selection"]),
        f"{NARROW}, local edit": kept(1.0, parts[1.0]["edit"]),
        f"{NARROW}, rest": kept(1.0, parts[1.0]["rest"]),
        f"{NARROW} off code, hull": off_hull,
        f"{NARROW} off code, one tilt": kept(1.0, outside[1.0]["tilt"]),
        f"{NARROW} off code, one shift": kept(1.0, outside[1.0]["shift"]),
    }
    return Outcome(
        [
            by_rate(
                "share of the narrow move off code, tilt minus shift",
                {r: kept(r, outside[r]["tilt"] - outside[r]["shift"]) for r in rates},
                low=0,
            ),
            by_rate(
                "share of alignment's move that the hull explains",
                {r: good[r]["selection"] for r in rates},
                low=0.5,
            ),
            by_rate(
                "the same, hull minus one shift",
                {r: good[r]["selection"] - good_shift[r] for r in rates},
                low=0,
            ),
            by_rate(
                "share of the narrow move that is a local edit",
                {r: kept(r, parts[r]["edit"]) for r in rates},
                low=0.1,
            ),
            by_rate("ΔEM of the moral domain that goals:good improves least", least, high=0),
        ],
        {name: arm(values) for name, values in selection.items()}
        | {
            f"log-odds edited by {NARROW}": arm(kept(1.0, parts[1.0]["shift"]), narrow[1.0]),
            f"move of {NARROW}, nats a dialogue": arm(kept(1.0, parts[1.0]["move"]), narrow[1.0]),
            f"least improved by {POSITIVE}": arm(least[1.0], positive[1.0]),
        },
        [
            dots("Shares of the move", "share", selection),
            grid(
                "ΔEM, mean over seeds",
                list(moved),
                list(world.domain_names),
                [mean_over(values, 0) for values in moved.values()],
            ),
        ],
    )


def shares(hull: Hull, before_NO, after_NO, domain: int | None = None) -> dict[str, np.ndarray]:
    """How the move of each model divides: selection, local edit of a domain, rest; in shares.

    What selection and edit explain in common counts as selection.
    """
    before, after = hull.fit(before_NO), hull.fit(after_NO)
    move_N = hull.kl(after_NO, before.w_MC) - before.residual_M
    left_N = after.residual_M - before.residual_M
    edited = [(residual, 0.0) for residual in after.residual_M]
    if domain is not None:
        edited = [hull.override(P_O, domain) for P_O in after_NO]
    rest_N = np.array([residual for residual, _ in edited]) - before.residual_M
    return {
        "selection": 1 - left_N / move_N,
        "edit": (left_N - rest_N) / move_N,
        "rest": rest_N / move_N,
        "move": move_N,
        "shift": np.array([shift for _, shift in edited]),
    }


def scalars(hull: Hull, before_NO, after_NO) -> dict[str, np.ndarray]:
    """The share of each move that the best tilt, and the best shift of all log-odds, explain."""
    before, world = hull.fit(before_NO), hull.world
    shifted_SCO = [hull.edited(range(len(world.domains)), shift) for shift in SHIFTS]
    result: dict = {"tilt": [], "shift": []}
    for w_C, P_O, residual in zip(before.w_MC, after_NO, before.residual_M, strict=True):
        move = hull.kl(P_O[None], w_C[None])[0] - residual
        tilted = [hull.kl(P_O[None], w[None])[0] for w in tilt_members(hull, w_C)]
        shifted = [hull.divergence(P_O[None], (w_C @ p_CO)[None])[0] for p_CO in shifted_SCO]
        result["tilt"].append(1 - (min(tilted) - residual) / move)
        result["shift"].append(1 - (min(shifted) - residual) / move)
    return {name: np.array(values) for name, values in result.items()}


def tilt_members(hull: Hull, w_C: np.ndarray) -> np.ndarray:
    """Mixtures of the hull's members, tilted by the evidence of a bad answer on code [S, C]."""
    whole_C = np.zeros(len(hull.world.characters))
    whole_C[list(hull.members)] = w_C
    evidence_C = persona.evidence(hull.world, [CODE])
    return persona.tilt(whole_C, evidence_C, STRENGTHS)[:, list(hull.members)]
