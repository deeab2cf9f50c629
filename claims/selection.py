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

from claims.lab.arms import Model, Trained, changes, kept_models, where_kept
from claims.lab.bench import Bench
from claims.lab.hull import Hull
from claims.lab.panels import by_domain, dots
from claims.lab.quantities import Quantity, each, outcome
from claims.lab.rates import ByRate
from claims.lab.verdicts import Outcome
from toyllm.posttrain.signals import untrained
from toyllm.world import persona

NUMBER = "3"
TITLE = "Post-training selects a character, and edits locally"
NARROW, POSITIVE, CODE = "code:bad", "goals:good", 0
STRENGTHS = np.linspace(0, 3, 121)  # of the tilt
SHIFTS = np.linspace(-4, 4, 161)  # of all log-odds


def test(bench: Bench) -> Outcome:
    """Test the claim (see the docstring of the module)."""
    world, models = bench.world, bench.base()
    hull, before_NO = Hull.of_world(models[0].tokenizer), bench.joints(models)
    narrow, positive = (bench.at_rates(models, signal) for signal in (NARROW, POSITIVE))
    aligned = ByRate({r: bench.align(models, rate=r) for r in bench.rates})
    parts, outside = narrow_moves(bench, hull, before_NO, narrow)
    good = alignment_moves(bench, hull, before_NO, aligned)
    others = untrained(world, POSITIVE)
    least = positive.map(lambda t: changes(t)[:, others].max(1))
    em_good = bench.audit(aligned.usual) - bench.audit(models)
    moved = {"all:good": em_good, NARROW: changes(narrow.usual), POSITIVE: changes(positive.usual)}
    shown = {
        "all:good, hull": good["selection"],
        "all:good, one shift": good["shift"],
        f"{NARROW}, hull": parts["selection"],
        f"{NARROW}, local edit": parts["edit"],
        f"{NARROW}, rest": parts["rest"],
        f"{NARROW} off code, hull": outside["selection"],
        f"{NARROW} off code, one tilt": outside["tilt"],
        f"{NARROW} off code, one shift": outside["shift"],
    }
    tilt, hull_share, edit = (
        "share of the narrow move off code, tilt minus shift",
        "share of alignment's move that the hull explains",
        "share of the narrow move that is a local edit",
    )
    return outcome(
        [
            Quantity(tilt, outside["tilt"] - outside["shift"], low=0),
            Quantity(hull_share, good["selection"], low=0.5),
            Quantity("the same, hull minus one shift", good["selection"] - good["shift"], low=0),
            Quantity(edit, parts["edit"], low=0.1),
            Quantity("ΔEM of the moral domain that goals:good improves least", least, high=0),
            *each("{}", shown),
            Quantity(f"log-odds edited by {NARROW}", parts["shift"], trained=narrow),
            Quantity(f"move of {NARROW}, nats a dialogue", parts["move"], trained=narrow),
            Quantity(f"least improved by {POSITIVE}", least, trained=positive),
        ],
        [
            dots("Shares of the move", "share", shown),
            by_domain("ΔEM, mean over seeds", world, moved),
        ],
    )


def narrow_moves(bench: Bench, hull: Hull, before_NO: np.ndarray, narrow: ByRate) -> tuple:
    """Shares of the narrow moves, {part: [N] at each rate}: of all contexts, and off code.

    Off code the local edit is none, and one tilt and one shift stand beside the hull.
    """
    off = hull.without((CODE,))
    start_NO = off.part(before_NO)

    def all_contexts(trained: list[Trained]) -> dict[str, np.ndarray]:
        return shares(hull, before_NO, bench.joints(kept_models(trained)), CODE)

    def off_code(trained: list[Trained]) -> dict[str, np.ndarray]:
        after_NO = off.part(bench.joints(kept_models(trained)))
        selection = shares(off, start_NO, after_NO)["selection"]
        return {"selection": selection, **scalars(off, start_NO, after_NO)}

    return tuple(
        by_part(narrow.map(lambda t, f=f: {k: where_kept(t, v) for k, v in f(t).items()}))
        for f in (all_contexts, off_code)
    )


def alignment_moves(bench: Bench, hull: Hull, before_NO: np.ndarray, aligned: ByRate) -> dict:
    """Shares of alignment's move, the hull's and one shift's, {part: [N] at each rate}."""

    def explain(models: list[Model]) -> dict[str, np.ndarray]:
        sound_N, after_NO = np.array([one.sound for one in models]), bench.joints(models)
        explained = {
            "selection": shares(hull, before_NO, after_NO)["selection"],
            "shift": scalars(hull, before_NO, after_NO)["shift"],
        }
        return {part: np.where(sound_N, values, np.nan) for part, values in explained.items()}

    return by_part(aligned.map(explain))


def by_part(tables: ByRate) -> dict[str, ByRate]:
    """{part: values at each rate}, of a table at each rate."""
    return {part: tables.map(lambda table, p=part: table[p]) for part in tables.usual}


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
