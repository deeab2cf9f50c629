"""Verdict rules on synthetic numbers: each comes out each way, at the rates that are promised."""

import numpy as np
import pytest
from scipy import stats

from claims.lab import power, quantities, verdicts
from claims.lab.quantities import Outcome, Quantity
from tests.tolerances import FLOAT64, SOLVED, close

GOOD = [0.31, 0.28, 0.33, 0.30, 0.29, 0.32, 0.27, 0.30]
NEAR = [0.11, 0.08, 0.13, 0.06, 0.12, 0.09, 0.14, 0.07]  # about .1


def outcome(*predictions: Quantity) -> Outcome:
    return Outcome(predictions, [])


def verdict(*predictions: Quantity, kind: str = "full", family: int = 15) -> str:
    told = verdicts.record("it", "It", outcome(*predictions), kind)
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


def test_quick_runs_and_pilots_decide_nothing():
    for bound in ({"low": 0.1}, {"high": 0.1}):
        for kind in ("quick", "pilot"):
            assert verdict(Quantity("it", GOOD, **bound), kind=kind) == f"undecided ({kind})"
    assert verdict(Quantity("one seed", [0.3], low=0.1)) == "undecided"


def test_an_effect_that_another_learning_rate_reverses_is_not_supported():
    assert verdict(Quantity("same", [GOOD, GOOD, GOOD], low=0.1)) == "supported"
    other = Quantity("reversed", [GOOD, GOOD, [0.05] * 8], low=0.1)
    assert {rate: repeat.effect for rate, repeat in other.repeats.items()}["3"] == 0.05
    assert list(other.repeats) == ["0.33", "3"]
    assert verdict(other) == "undecided"


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
                str(k), "", outcome(Quantity("", rng.normal(size=8), low=0)), "full"
            )
            for k in range(14)
        }
        said = set(verdicts.verdicts(records, 14).values())
        wrong += said != {"undecided"}
    assert wrong / runs < 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def prediction_of(values, margin: float | None, low=0.1, high=None) -> dict:
    """A prediction as a record of the scorecard has it."""
    return {"says": "it", "values": list(values), "low": low, "high": high, "margin": margin}


def test_power_is_the_rate_at_which_claims_come_out():
    """By simulation: normal values, the true mean inside its bound by the margin."""
    rng, family, n, margin, deviation = np.random.default_rng(0), 15, 9, 0.15, 0.1
    level = verdicts.ALPHA / family
    expected = power.power_of(n, margin, deviation, level)
    draws = [rng.normal(0.1 + margin, deviation, n) for _ in range(2000)]
    found = np.mean([Quantity("", x, low=0.1).p_inside <= level for x in draws])
    assert abs(found - expected) < 4 * 0.5 / 2000**0.5
    # as scipy's own noncentral t has it
    critical = stats.t.ppf(1 - level, n - 1)
    close(expected, stats.nct.sf(critical, n - 1, margin * n**0.5 / deviation), SOLVED)


def test_the_deviation_is_bounded_from_above_as_often_as_promised():
    rng = np.random.default_rng(1)
    bounds = [power.upper_deviation(rng.normal(0, 2, 8)) for _ in range(2000)]
    assert abs(np.mean(np.array(bounds) > 2) - power.SURE) < 4 * 0.5 / 2000**0.5


def test_a_claim_gets_the_units_that_its_weakest_prediction_needs():
    pilot = 0.3 + 0.1 * np.random.default_rng(2).normal(size=8)
    easy, hard, none = (prediction_of(pilot, margin) for margin in (0.25, 0.15, 0.01))
    for claim in ([easy], [easy, hard], [hard, none]):
        found = power.needs(claim, family=15)
        for need in found:
            goal = 1 - 0.2 / len(claim)
            if need.units is None:
                assert need.power < goal
                assert need.reached > need.margin
            else:
                assert need.power >= goal
    # two predictions need more than one, and a smaller margin more than a larger
    alone, (first, second) = power.needs([easy], 15)[0], power.needs([easy, hard], 15)
    assert alone.units <= first.units < second.units <= power.MOST
    assert power.needs([hard, none], 15)[1].units is None
    # without a stated margin there is no number of units, only what the most units can tell
    unstated = power.needs([prediction_of(pilot, None)], 15)[0]
    assert (unstated.units, unstated.power) == (None, 0.0)
    assert unstated.reached == power.needs([hard], 15)[0].reached
    # both sides of an interval, and units that cannot be read, cost more
    both = power.needs([prediction_of(pilot, 0.15, 0.2, 0.6)], 15)[0]
    missing = power.needs([prediction_of([*pilot, np.nan], 0.15)], 15)[0]
    single = power.needs([hard], 15)[0]
    assert both.inside == min(pilot.mean() - 0.2, 0.6 - pilot.mean())
    assert single.units < both.units
    assert single.units < missing.units
    assert power.needs([prediction_of([*pilot[:4], *[np.nan] * 4], 0.2)], 15)[0].units is None


def test_where_a_prediction_fails_is_related_to_features_of_its_units():
    rng = np.random.default_rng(3)
    x = rng.normal(size=30)
    fails = Quantity("fails", x + 1.5 * rng.normal(size=30), low=0)
    holds = Quantity("holds", np.abs(x) + 1, low=0)
    rows = quantities.related([fails, holds], {"x": x, "chance": rng.normal(size=30)})
    assert [(row["says"], row["feature"]) for row in rows] == [("fails", "x"), ("fails", "chance")]
    for row, other in zip(rows, (x, None), strict=True):
        if other is not None:
            expected = stats.spearmanr(other, fails.usual)
            close([row["r"], row["p"]], [expected[0], min(1, 2 * expected[1])], SOLVED)
    assert rows[0]["p"] < 0.05 < rows[1]["p"]


def test_a_share_of_units_has_the_interval_of_clopper_and_pearson():
    for k, n in ((0, 8), (5, 8), (8, 8), (30, 32)):
        holds = np.arange(n) < k
        expected = stats.binomtest(k, n).proportion_ci(method="exact")
        close(quantities.proportion(holds), [expected.low, expected.high], SOLVED)
