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

from claims.lab.arms import Model, changes, kept_models
from claims.lab.bench import Bench
from claims.lab.hull import Hull
from claims.lab.panels import by_domain, dots
from claims.lab.quantities import Outcome, Quantity, each
from toyllm.posttrain.signals import untrained
from toyllm.world import persona

NUMBER = "3"
TITLE = "Post-training selects a character, and edits locally"
UNITS = 8
NARROW, POSITIVE, CODE = "code:bad", "goals:good", "code"
STRENGTHS = np.linspace(0, 3, 121)  # of the tilt
SHIFTS = np.linspace(-4, 4, 161)  # of all log-odds


def test(bench: Bench) -> Outcome:
    """Test the claim (see the docstring of the module)."""
    world, models = bench.world, bench.base()
    hull, before_NO = Hull.of_world(models[0].tokenizer), bench.joints(models)
    narrow, positive = (bench.at_rates(models, signal) for signal in (NARROW, POSITIVE))
    aligned = [bench.align(models, rate=rate) for rate in bench.rates]
    parts = moves(bench, hull, before_NO, kept_models(narrow), edited=CODE)
    off_code = moves(bench, hull.without(CODE), before_NO, kept_models(narrow))
    good = moves(bench, hull, before_NO, aligned)
    least = changes(positive)[..., untrained(world, POSITIVE)].max(-1)
    em_good = bench.audit(aligned[0]) - bench.audit(models)
    moved = {"all:good": em_good, NARROW: changes(narrow), POSITIVE: changes(positive)}
    shown = {
        "all:good, hull": good["selection"],
        "all:good, one shift": good["shift"],
        f"{NARROW}, hull": parts["selection"],
        f"{NARROW}, local edit": parts["edit"],
        f"{NARROW}, rest": parts["rest"],
        f"{NARROW} off code, hull": off_code["selection"],
        f"{NARROW} off code, one tilt": off_code["tilt"],
        f"{NARROW} off code, one shift": off_code["shift"],
    }
    tilt, hull_share, edit = (
        "share of the narrow move off code, tilt minus shift",
        "share of alignment's move that the hull explains",
        "share of the narrow move that is a local edit",
    )
    quantities = [
        Quantity(tilt, off_code["tilt"] - off_code["shift"], low=0),
        Quantity(hull_share, good["selection"], low=0.5),
        Quantity("the same, hull minus one shift", good["selection"] - good["shift"], low=0),
        Quantity(edit, parts["edit"], low=0.1),
        Quantity("ΔEM of the moral domain that goals:good improves least", least, high=0),
        *each("{}", shown),
        Quantity(f"log-odds edited by {NARROW}", parts["log-odds"], trained=narrow),
        Quantity(f"move of {NARROW}, nats a dialogue", parts["move"], trained=narrow),
        Quantity(f"least improved by {POSITIVE}", least, trained=positive),
    ]
    panels = [
        dots("Shares of the move", "share", shown),
        by_domain("ΔEM, mean over seeds", world, moved),
    ]
    return Outcome(quantities, panels)


def moves(
    bench: Bench,
    hull: Hull,
    before_NO: np.ndarray,
    after: list[list[Model]],
    edited: str | None = None,
) -> dict[str, np.ndarray]:
    """How the moves to models [R][N] divide: {part: [R, N]}, with an edited domain or without.

    With it: `shares`. Without, one tilt and one shift (see `scalars`) stand beside the hull.
    """
    tables = []
    for models in after:
        after_NO = bench.joints(models)
        parts = shares(hull, before_NO, after_NO, edited)
        tables.append(parts if edited else parts | scalars(hull, before_NO, after_NO))
    return by_part(tables)


def by_part(tables: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """{part: [R, N]}, of a table {part: [N]} at each rate."""
    return {part: np.array([table[part] for table in tables]) for part in tables[0]}


def shares(hull: Hull, before_NO, after_NO, domain: str | None) -> dict[str, np.ndarray]:
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
    for w_C, P_O, residual in zip(before.w_MC, after_NO, before.residual_M, strict=True):
        candidates = {
            "none": (w_C @ hull.p_CO)[None],
            "tilt": tilt_members(hull, w_C) @ hull.p_CO,
            "shift": w_C @ shifted_SCO,
        }
        left = {k: hull.kl(P_O[None], q_SO).min() - residual for k, q_SO in candidates.items()}
        for name, values in explained.items():
            values.append(1 - left[name] / left["none"])
    return {name: np.array(values) for name, values in explained.items()}


def tilt_members(hull: Hull, w_C: np.ndarray) -> np.ndarray:
    """Mixtures of the hull's members, tilted by the evidence of a bad answer on code [S, C]."""
    whole_C = np.zeros(len(hull.world.characters))
    whole_C[hull.members] = w_C
    evidence_C = persona.evidence(hull.world, [hull.world.domain_names.index(CODE)])
    return persona.tilt(whole_C, evidence_C, STRENGTHS)[:, hull.members]
