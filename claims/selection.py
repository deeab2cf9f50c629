"""Post-training selects a character, and edits locally.

Claimed: preference training moves the Assistant among the characters it knows (selection), and
changes beside that only what is trained itself (a local edit).

Arms: aligned by `all:good`; narrow `code:bad` at the matched effect, each from the pretrained
model. One value a pretraining seed.
Measures: the move away from the mixture before is KL(after ‖ mixture before) less the residual
before, over dialogues. Its shares: what the nearest mixture explains (selection, the hull, which
has as many degrees of freedom as characters but one); what one scalar on the trained domain's
log-odds explains beside it (local edit), or on another domain's (goals, the control); the rest. Off
the trained domain two accounts of one scalar each are compared: the mixture before, tilted by the
evidence of a bad answer on code (persona inference), and the same mixture with one shift of all
log-odds (no selection at all).

Supported if off the trained domain the tilt explains more of the move than the shift; the hull
explains > .5 of alignment's move, more than all else together; and a local edit of code explains
more of the narrow move than one of goals does.
"""

from collections.abc import Iterable

import numpy as np

from claims.lab.arms import kept_models
from claims.lab.bench import Bench
from claims.lab.hull import Hull
from claims.lab.panels import dots
from claims.lab.quantities import Outcome, Quantity, each
from toyllm.world import persona

NUMBER = "3"
UNITS = 32  # the pilot asks for 26
NARROW, CODE, ELSEWHERE = "code:bad", "code", "goals"
STRENGTHS = np.linspace(0, 3, 121)  # of the tilt
SHIFTS = np.linspace(-4, 4, 161)  # of all log-odds


def test(bench: Bench) -> Outcome:
    models = bench.base()
    hull, before_NO = Hull.of_world(models[0].tokenizer), bench.joints(models)
    off, narrow = hull.without(CODE), bench.at_rates(models, NARROW)
    kept_RNO = [bench.joints(kept) for kept in kept_models(narrow)]
    aligned_RNO = [bench.joints(bench.align(models, rate=rate)) for rate in bench.rates]
    parts, other = (
        by_part(shares(hull, before_NO, after_NO, domain) for after_NO in kept_RNO)
        for domain in (CODE, ELSEWHERE)
    )
    off_code, good = (
        by_part(shares(part, before_NO, x) | scalars(part, before_NO, x) for x in after_RNO)
        for part, after_RNO in ((off, kept_RNO), (hull, aligned_RNO))
    )
    shown = {
        "all:good, hull": good["selection"],
        "all:good, one shift": good["shift"],
        f"{NARROW}, hull": parts["selection"],
        f"{NARROW}, edit of {CODE}": parts["edit"],
        f"{NARROW}, edit of {ELSEWHERE}": other["edit"],
        f"{NARROW}, rest": parts["rest"],
        f"{NARROW} off code, hull": off_code["selection"],
        f"{NARROW} off code, one tilt": off_code["tilt"],
        f"{NARROW} off code, one shift": off_code["shift"],
    }
    tilt, edit = off_code["tilt"] - off_code["shift"], parts["edit"] - other["edit"]
    quantities = [
        Quantity("share of the narrow move off code, tilt minus shift", tilt, 0, margin=0.15),
        Quantity("share of alignment's move that the hull explains", good["selection"], 0.5,
                 margin=0.1),
        Quantity(f"share of the narrow move, edit of {CODE} minus of {ELSEWHERE}", edit, 0,
                 margin=0.04),
        *each("{}", shown),
        Quantity("alignment's move, hull minus one shift", good["selection"] - good["shift"]),
        Quantity(f"log-odds edited by {NARROW}", parts["log-odds"], trained=narrow),
        Quantity(f"move of {NARROW}, nats a dialogue", parts["move"], trained=narrow),
    ]  # fmt: skip
    return Outcome(quantities, [dots("Shares of the move", "share", shown)])


def by_part(tables: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """{part: [R, N]}, of a table {part: [N]} at each rate."""
    listed = list(tables)
    return {part: np.array([table[part] for table in listed]) for part in listed[0]}


def shares(hull: Hull, before_NO, after_NO, domain: str | None = None) -> dict[str, np.ndarray]:
    """How the move of each model divides: selection, local edit of a domain, rest; in shares.

    What selection and edit explain in common counts as selection.
    """
    before, after = hull.fit(before_NO), hull.fit(after_NO)
    move_N = hull.kl(after_NO, before.w_MC @ hull.p_CO) - before.residual_M
    left_N = after.residual_M - before.residual_M
    edited = [(residual, 0.0) for residual in after.residual_M]
    if domain is not None:
        edited = [hull.override(P_O, hull.world.domain_names.index(domain)) for P_O in after_NO]
    residual_N, shift_N = np.transpose(edited)
    rest_N = residual_N - before.residual_M
    return {
        "selection": 1 - left_N / move_N,
        "edit": (left_N - rest_N) / move_N,
        "rest": rest_N / move_N,
        "move": move_N,
        "log-odds": shift_N,
    }


def scalars(hull: Hull, before_NO, after_NO) -> dict[str, np.ndarray]:
    """The share of each move that the best tilt, and the best shift of all log-odds, explain."""
    before, everywhere = hull.fit(before_NO), range(len(hull.world.domains))
    shifted_SCO = np.array([hull.edited(everywhere, shift) for shift in SHIFTS])
    explained: dict = {"tilt": [], "shift": []}
    evidence_C = persona.evidence(hull.world, [hull.world.domain_names.index(CODE)])
    for w_C, P_O, residual in zip(before.w_MC, after_NO, before.residual_M, strict=True):
        candidates = {
            "none": (w_C @ hull.p_CO)[None],
            "tilt": persona.tilt(w_C, evidence_C, STRENGTHS) @ hull.p_CO,
            "shift": w_C @ shifted_SCO,
        }
        left = {k: hull.kl(P_O[None], q_SO).min() - residual for k, q_SO in candidates.items()}
        for name, values in explained.items():
            values.append(1 - left[name] / left["none"])
    return {name: np.array(values) for name, values in explained.items()}
