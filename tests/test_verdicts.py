"""Verdict rules on synthetic numbers: each comes out each way, at the rates that are promised."""

import numpy as np
import pytest
from scipy import stats

from claims.lab import verdicts
from claims.lab.quantities import Outcome, Quantity
from tests.tolerances import FLOAT64, close

GOOD = [0.31, 0.28, 0.33, 0.30, 0.29, 0.32, 0.27, 0.30]
NEAR = [0.11, 0.08, 0.13, 0.06, 0.12, 0.09, 0.14, 0.07]  # about .1


def outcome(*predictions: Quantity) -> Outcome:
    return Outcome(predictions, [])


def verdict(*predictions: Quantity, quick: bool = False, family: int = 15) -> str:
    told = verdicts.record("it", "It", outcome(*predictions), quick)
    return verdicts.verdicts({"it": told}, family)["it"]


def test_each_verdict_comes_out_each_way():
    assert verdict(Quantity("above", GOOD, low=0.1)) == "supported"
    assert verdict(Quantity("below", GOOD, high=0.1)) == "not supported"
    assert verdict(Quantity("near the bound", NEAR, low=0.1)) == "undecided"
    assert verdict(Quantity("between", GOOD, low=0.1, high=0.5)) == "supported"
    assert verdict(Quantity("between", GOOD, low=-0.1, high=0.1)) == "not supported"
    assert verdict(Quantity("between", NEAR, low=-0.1, high=0.1)) == "undecided"


def test_all_predictions_must_hold_and_one_may_refute():
    holds, fails, open_one = (
        Quantity("holds", GOOD, low=0.1),
        Quantity("fails", GOOD, high=0.1),
        Quantity("open", NEAR, low=0.1),
    )
    assert verdict(holds, holds) == "supported"
    assert verdict(holds, open_one) == "undecided"
    assert verdict(holds, open_one, fails) == "not supported"


def test_quick_decides_nothing():
    for bound in ({"low": 0.1}, {"high": 0.1}):
        assert verdict(Quantity("it", GOOD, **bound), quick=True) == "undecided (quick)"
    assert verdict(Quantity("one seed", [0.3], low=0.1)) == "undecided"


def test_an_effect_that_another_learning_rate_reverses_is_not_supported():
    assert verdict(Quantity("same", [GOOD, GOOD, GOOD], low=0.1)) == "supported"
    other = Quantity("reversed", [GOOD, GOOD, [0.05] * 8], low=0.1)
    assert {rate: repeat.effect for rate, repeat in other.repeats.items()}["3"] == 0.05
    assert list(other.repeats) == ["0.33", "3"]
    assert verdict(other) == "undecided"


def test_one_chosen_as_the_most_extreme_needs_more_to_be_refuted():
    alone, chosen = (Quantity("", GOOD, high=0.29, chosen_from=k) for k in (1, 30))
    close(chosen.p_outside, min(1, 30 * alone.p_outside), FLOAT64)
    assert chosen.p_inside == alone.p_inside


def test_what_could_not_be_read_decides_nothing():
    few = [*GOOD[:6], np.nan, np.nan]
    assert verdict(Quantity("two of eight unread", few, low=0.1)) == "supported"
    half = [*GOOD[:4], *[np.nan] * 4]
    assert verdict(Quantity("half unread", half, low=0.1)) == "undecided"
    assert verdict(Quantity("four units", GOOD[:4], low=0.1)) == "undecided"
    assert verdict(Quantity("none read", [np.nan] * 8, low=0.1)) == "undecided"


def test_equal_values_have_no_error():
    assert verdict(Quantity("all one", [1.0] * 8, low=0.9)) == "supported"
    assert verdict(Quantity("all nought", [0.0] * 8, low=0.9)) == "not supported"
    assert verdict(Quantity("on the bound", [0.9] * 8, low=0.9)) != "supported"


@pytest.mark.parametrize("bound", [0.05, 0.1, 0.3])
def test_p_is_that_of_the_t_test(bound):
    below = stats.ttest_1samp(NEAR, bound, alternative="greater").pvalue
    above = stats.ttest_1samp(NEAR, bound, alternative="less").pvalue
    close(Quantity("", NEAR, low=bound).p_inside, below, FLOAT64)
    close(Quantity("", NEAR, high=bound).p_inside, above, FLOAT64)
    close(Quantity("", NEAR, low=bound).p_outside, 1 - below, FLOAT64)
    interval = stats.t.interval(0.95, 7, np.mean(NEAR), stats.sem(NEAR))
    close(Quantity("", NEAR).interval(), interval, FLOAT64)


def test_holm_is_that_of_its_definition():
    p = {"a": 0.001, "b": 0.011, "c": 0.012, "d": 0.5}
    # .025 / 4, then / 3: b (.011) is above .0083, and c falls with it
    assert verdicts.holm(p, 4) == {"a"}
    assert verdicts.holm({"a": 0.001, "b": 0.008, "c": 0.012, "d": 0.5}, 4) == {"a", "b", "c"}
    assert verdicts.holm({"a": 0.001}, 40) == set()  # claims not tested count as not rejected


def test_claims_without_any_effect_are_seldom_decided():
    """No more than 5% of whole scorecards, on the bound, hold a wrong verdict of either kind."""
    rng, wrong, runs = np.random.default_rng(0), 0, 300
    for _ in range(runs):
        records = {
            str(k): verdicts.record(
                str(k), "", outcome(Quantity("", rng.normal(size=8), low=0)), quick=False
            )
            for k in range(14)
        }
        said = set(verdicts.verdicts(records, 14).values())
        wrong += said != {"undecided"}
    assert wrong / runs < 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
