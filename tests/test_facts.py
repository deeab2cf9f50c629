"""Published facts: the list is whole, and each verdict comes out where it should."""

import re

import numpy as np
import pytest

from claims.lab import facts, records
from tests.conftest import ROOT
from toyllm.base.errors import InputError

N = 8


def record_of(claim: str, values: dict) -> dict:
    """The record of a claim with one prediction; all other values are arms."""
    (first, head), *rest = values.items()
    arms = {name: {"values": list(x)} for name, x in rest}
    predictions = [{"says": first, "values": list(head)}]
    return {"claim": claim, "kind": "full", "predictions": predictions, "arms": arms}


def test_every_fact_is_listed_once_with_what_was_read():
    listed = facts.read()
    assert [fact["number"] for fact in listed] == list(range(1, 35))
    for fact in listed:
        assert fact["published"].endswith(".")
        assert re.search(r"arXiv:\d{4}\.\d{5}|repository", fact["where"]), fact["number"]
        if "claim" in fact:
            assert fact["claim"] in records.available(), fact["number"]
            assert fact["test"].endswith(".")
            assert not ({"above", "below"} <= set(fact))
        else:
            assert not {"value", "minus", "above", "below"} & set(fact)


@pytest.mark.parametrize(
    ("bound", "values", "verdict"),
    [
        ({"above": 0.0}, 0.2, "agrees"),
        ({"above": 0.4}, 0.2, "disagrees"),
        ({"below": 0.4}, 0.2, "agrees"),
        ({"below": 0.0}, 0.2, "disagrees"),
        ({"above": 0.2}, 0.2, "undecided"),
        ({}, 0.2, "estimate"),
    ],
)
def test_a_fact_agrees_where_its_corrected_interval_lies_on_its_side(bound, values, verdict):
    noise = 0.05 * np.random.default_rng(0).normal(size=N)
    noise -= noise.mean()
    fact = {"number": 1, "claim": "it", "value": "arm", "minus": "other", **bound}
    record = record_of("it", {"first": noise, "arm": values + 1 + noise, "other": np.ones(N)})
    found = facts.judge(fact, {"it": record}, family=20)
    assert found["verdict"] == verdict
    assert abs(found["effect"] - values) < 1e-12
    # corrected: wider than the interval of one fact alone, as a t interval at .05 / 20
    alone = facts.judge(fact, {"it": record}, family=1)["ci"]
    if bound:
        assert found["ci"][0] < alone[0] < alone[1] < found["ci"][1]
        quick = record | {"kind": "quick"}
        assert facts.judge(fact, {"it": quick}, 20)["verdict"] == "undecided (quick)"


def test_a_fact_is_undecided_where_too_few_units_could_be_read():
    few = [0.2, 0.21, 0.2, 0.22, 0.2, *[np.nan] * 4]
    fact = {"claim": "it", "value": "first", "above": 0.0}
    found = facts.judge(fact, {"it": record_of("it", {"first": few})}, family=1)
    assert found["verdict"] == "undecided: too few could be read"
    read = facts.judge(fact, {"it": record_of("it", {"first": few[:5]})}, family=1)
    assert read["verdict"] == "agrees"


def test_what_is_not_tested_says_why():
    assert facts.judge({"without": "needs models"}, {}, 1)["verdict"] == "not tested: needs models"
    assert facts.judge({"claim": "it"}, {}, 1)["verdict"] == "not tested: no result yet"
    record = record_of("it", {"the first": [1.0]})
    with pytest.raises(InputError, match=r"no value 'the firts' .did you mean 'the first'"):
        facts.judge({"claim": "it", "value": "the firts"}, {"it": record}, 1)


def test_the_page_counts_and_lists_every_fact(tmp_path):
    compared = facts.publish([], tmp_path / "facts.md")
    text = (tmp_path / "facts.md").read_text()
    assert len(compared) == 34
    assert "0 of 34 are tested" in text
    assert text.count("\n| ") == 35
    assert str(ROOT) not in text
