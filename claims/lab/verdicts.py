"""From numbers to verdicts: paired Student t over pretraining seeds or worlds, corrected by Holm.

A claim makes one or more predictions, each that a mean lies between two bounds. The unit of every
number is a pretraining seed or a world: narrow seeds of one model only average its noise.

- supported: every prediction is inside its bounds, p ≤ .025. All must be, so the claim's p is the
  largest (an intersection-union test, which needs no correction within the claim); and all means
  are inside their bounds at the other learning rates too.
- not supported: some prediction is outside its bounds, p ≤ .025, the smallest p times their number
  (Bonferroni).
- undecided: neither.

Both families of p are corrected over all claims (Holm 1979). These rules stand here before any
result is shown, and a claim's bounds in its own file.
"""

from claims.lab.quantities import Outcome, Quantity, proportion

ALPHA = 0.025  # of each side
SAME = ("effect", "low", "high", "margin", "p_inside", "p_outside", "repeated")  # in its record


def holm(p_by_name: dict[str, float], family: int) -> set[str]:
    """The names that are rejected at ALPHA (Holm 1979) in a family of so many.

    Those of the family that are not here count as not rejected.
    """
    rejected = set()
    for rank, (name, p) in enumerate(sorted(p_by_name.items(), key=lambda item: item[1])):
        if p > ALPHA / (family - rank):
            break
        rejected.add(name)
    return rejected


def verdicts(records: dict[str, dict], family: int) -> dict[str, str]:
    """The verdict of each claim from its record (see `record`), of a family of so many claims."""
    supported = holm({name: r["p_for"] for name, r in records.items()}, family)
    refuted = holm({name: r["p_against"] for name, r in records.items()}, family)

    def decide(name: str) -> str:
        if why := undecided(records[name]["kind"]):
            return why
        if name in refuted:
            return "not supported"
        if name in supported and all(p["repeated"] for p in records[name]["predictions"]):
            return "supported"
        return "undecided"

    return {name: decide(name) for name in records}


def record(name: str, title: str, outcome: Outcome, kind: str) -> dict:
    """The record of a claim in plain numbers; `verdicts` decides its verdict, over all claims."""
    predictions = outcome.predictions
    against = len(predictions) * min(p.p_outside for p in predictions)
    return {
        "claim": name,
        "title": title,
        "effect": predictions[0].effect,
        "ci": predictions[0].interval(),
        "verdict": "undecided",
        "kind": kind,
        "p_for": max(p.p_inside for p in predictions),
        "p_against": min(1.0, against),
        "predictions": [
            {
                "says": p.name,
                "ci": p.interval(),
                "units": len(p.known),
                "unread": len(p.usual) - len(p.known),
                "holds": int(p.holds.sum()),
                "holds_ci": proportion(p.holds),
                "verdict": alone(p, kind),
                "repeats": {rate: other.effect for rate, other in p.repeats.items()},
                "values": p.usual.tolist(),
                **{key: getattr(p, key) for key in SAME},
            }
            for p in predictions
        ],
        "arms": outcome.arms,
        "panels": list(outcome.panels),
        "related": list(outcome.related),
    }


def undecided(kind: str) -> str:
    """The verdict of a run that decides nothing, quick ones and pilots; empty for a full run."""
    return "" if kind == "full" else f"undecided ({kind})"


def alone(p: Quantity, kind: str) -> str:
    """The verdict of one prediction, uncorrected."""
    if why := undecided(kind):
        return why
    if p.p_outside <= ALPHA:
        return "not supported"
    return "supported" if p.p_inside <= ALPHA and p.repeated else "undecided"
