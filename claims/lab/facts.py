"""docs/facts.md: published results about real models beside what this scorecard finds.

The facts, with what was read of each and which value they are compared with, are in
claims/facts.toml. A fact with a side *agrees* if the interval of the mean lies on the published
side, corrected over all facts that have one (Bonferroni), *disagrees* if it lies on the other, and
is else *undecided*. A fact without a side is an estimate.
"""

import tomllib
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from claims.lab.page import number, span, table
from claims.lab.quantities import Quantity
from claims.lab.verdicts import undecided
from toyllm.base import files
from toyllm.base.errors import InputError, nearest

FILE = Path(__file__).resolve().parents[1] / "facts.toml"
HEADER = "| | published | where it was read | our test | effect | interval | verdict |"
INTRO = """\
# Published facts

Written by `uv run scorecard.py --publish` from [claims/facts.toml](../claims/facts.toml).

What was published about real models, and what the toy finds. *Agrees* means that the interval of
our mean lies on the published side, corrected over all facts that are tested for a side; numbers
are not compared, since the scales differ, and a test may cover a part of what was published. Of
nearly every paper the abstract alone was read."""


def read() -> list[dict]:
    """The facts, in their order."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))["fact"]


def compare(facts: list[dict], records: list[dict]) -> list[dict]:
    """Each fact with `verdict`, and if it is tested `effect` and `ci` (corrected for verdicts)."""
    by_claim = {record["claim"]: record for record in records}
    family = sum("above" in fact or "below" in fact for fact in facts)
    return [fact | judge(fact, by_claim, family) for fact in facts]


def judge(fact: dict, by_claim: dict[str, dict], family: int) -> dict:
    """The verdict on one fact."""
    if "claim" not in fact:
        return {"verdict": "not tested: " + fact.get("without", "no arm yet")}
    record = by_claim.get(fact["claim"])
    if record is None:
        return {"verdict": "not tested: no result yet"}
    values_N = values(record, fact["value"])
    if "minus" in fact:
        values_N = values_N - values(record, fact["minus"])
    quantity = Quantity(fact["value"], values_N)
    known, mean, half = quantity.known, quantity.effect, np.nan
    sided = "above" in fact or "below" in fact
    if len(known) > 1:
        quantile = stdtrit(len(known) - 1, 1 - 0.025 / (family if sided else 1))
        half = quantile * known.std(ddof=1) / len(known) ** 0.5
    low, high = mean - half, mean + half
    result = {"effect": mean, "ci": [float(low), float(high)] if len(known) > 1 else None}
    if sided and not quantity.enough and record["kind"] == "full":
        return result | {"verdict": "undecided: too few could be read"}
    if not sided:
        return result | {"verdict": "estimate"}
    sign, side = (1, fact["above"]) if "above" in fact else (-1, fact["below"])
    inner, outer = sorted((sign * (low - side), sign * (high - side)))
    verdict = "agrees" if inner > 0 else "disagrees" if outer < 0 else "undecided"
    return result | {"verdict": undecided(record["kind"]) or verdict}


def values(record: dict, name: str) -> np.ndarray:
    """The values of a prediction or an arm [N]. Raises InputError where there is none."""
    listed = {p["says"]: p["values"] for p in record["predictions"]}
    listed |= {arm: row["values"] for arm, row in record["arms"].items()}
    if name not in listed:
        raise InputError(
            f"claims/facts.toml: claim '{record['claim']}' has no value '{name}'"
            f"{nearest(name, listed)}"
        )
    return np.array(listed[name], float)


def publish(records: list[dict], file: Path) -> list[dict]:
    """Write the page; returns the compared facts."""
    compared = compare(read(), records)
    verdicts = [fact["verdict"] for fact in compared]
    tested = [v for v in verdicts if not v.startswith("not tested")]
    counts = ", ".join(
        f"{v} ({verdicts.count(v)})" for v in ("agrees", "disagrees", "undecided", "estimate")
    )
    rows = [
        (
            str(fact["number"]),
            fact["published"],
            fact["where"],
            fact.get("test", ""),
            number(fact.get("effect")) if "effect" in fact else "",
            span(fact.get("ci")),
            fact["verdict"] + (f". {fact['dial']}" if "dial" in fact else ""),
        )
        for fact in compared
    ]
    text = f"{INTRO}\n\n{len(tested)} of {len(compared)} are tested; verdicts: {counts}.\n\n"
    files.write_text(file, text + table(HEADER, rows) + "\n")
    return compared
