"""What the claims on forecast, cause and scale are made of."""

import csv
import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest

from claims import cause, forecast, scale
from claims.lab import records
from claims.lab.arms import Model
from claims.lab.quantities import pseudo_values
from claims.lab.recipe import USUAL, Recipe, rescaled
from claims.lab.texts import in_other_words
from tests.conftest import ROOT
from tests.tolerances import FLOAT64, FORWARD, close
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import LM
from toyllm.world import cards, corpus, observer


@pytest.fixture(scope="module")
def compact():
    """The scorecard's world."""
    return cards.load(ROOT / "corpora" / "compact.toml")


def rows() -> list[dict]:
    """The list of architectures."""
    with forecast.LIST.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_list_has_as_many_shapes_in_both_halves_and_none_in_both():
    shape = ("texts", "width", "layers", "heads", "mlp")
    halves = {half: {tuple(r[k] for k in shape) for r in rows() if r["half"] == half}
              for half in forecast.HALVES}  # fmt: skip
    fitted, held_out = halves.values()
    assert len(fitted) == len(held_out) == 16
    assert not fitted & held_out
    assert len(rows()) * forecast.SEEDS >= 120
    assert set(Counter(row["shape"] for row in rows()).values()) == {2}


def test_every_architecture_is_a_model_that_its_texts_fit(compact):
    class Full:
        quick = False

    for row in forecast.architectures(Full()):
        tokenizer = Tokenizer(in_other_words(compact, row["texts"]))
        assert max(tokenizer.longest.values()) <= row["recipe"].context
        assert int(row["layers"]) == row["recipe"].config(len(tokenizer.words)).L
        assert isinstance(row["recipe"].steps, int)
    assert row["recipe"].unusual.keys() >= {"rows", "context"}
    assert USUAL.unusual == {}


def test_a_world_in_other_words_has_the_same_characters_and_no_word_twice(compact):
    for texts in ("1x3", "4x4"):
        world = in_other_words(compact, texts)
        words, count = map(int, texts.split("x"))
        assert (world.rates_CDB == compact.rates_CDB).all()
        said = [text for domain in world.domains for text in (*domain.situations, *domain.answers)]
        assert {len(text.split()) for text in said} == {words}
        every = Counter(word for text in said for word in text.split())
        assert max(every.values()) == 1
        others = {*world.characters, *world.domain_names}
        others |= {word for i in world.instructions for word in i.text.split()}
        assert not others & every.keys()
        assert len(world.domains[0].situations) == count
        assert world.domains[0].behaviour_SA.shape == (count, 3 * count)
        docs = corpus.sample(world, 8, np.random.default_rng(0))
        assert np.isfinite(observer.observe(world, docs).log_prob_N).all()
    assert in_other_words(compact, "own") is compact


def test_pseudo_values_of_a_mean_are_the_values():
    x, groups = np.array([1.0, 4.0, 2.0, 9.0]), np.array(["a", "b", "", "c"])
    kept = groups != ""
    values = pseudo_values(lambda rows: x[rows & kept].mean(), groups)
    close(values, [1.0, 4.0, 9.0], FLOAT64)
    read = np.array([True, False, True, True])  # a group that has nothing to count is no unit
    values = pseudo_values(lambda rows: x[rows & kept & read].mean(), groups, read)
    close(values[[0, 2]], [1.0, 9.0], FLOAT64)
    assert np.isnan(values[1])


def test_forecasts_are_averaged_over_the_signals_that_were_read():
    x_NS, y_NS = np.array([[1.0, 2.0, 4.0]] * 3), np.array([[0.1, np.nan, 0.3]] * 3)
    y_NS[1], x_NS[2, 0] = np.nan, np.nan
    means = forecast.mean_of_read(x_NS, y_NS)
    close(means[0], 2.5, FLOAT64)
    assert np.isnan(means[1:]).all()


def test_texts_explain_nothing_of_what_is_left_without_them():
    table = {"texts": np.array(["a", "a", "b", "b"])}
    x, read = np.array([1.0, 3.0, 10.0, 50.0]), np.array([True, True, True, False])
    close(forecast.without_texts(table, x, read), [-1.0, 1.0, 0.0, 40.0], FLOAT64)


def test_centred_r2_is_that_of_its_definition():
    """By hand: line and mean come from the fitted half."""
    table = {"half": np.array(["fitted"] * 3 + ["held out"] * 2)}
    x, y = np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 5.0, 8.0, 9.0])
    whole = np.full(5, True)  # ŷ = 1 + 2x, ȳ = 3
    close(forecast.centred(table, x, y, whole), 1 - (1**2 + 0) / (5**2 + 6**2), FLOAT64)
    close(forecast.centred(table, x, 1 + 2 * x, whole), 1, FLOAT64)
    assert np.isnan(forecast.centred(table, x, y, table["half"] == "fitted"))
    close(forecast.raw(np.array([1.0, 2.0]), np.array([1.0, 3.0])), 1 - 1 / 2, FLOAT64)


def test_rescaled_parameters_are_the_same_function_in_other_coordinates(lab):
    params = lab.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 1, len(lab.tokenizer.words))
    other = rescaled(params, *cause.GAINS["up"])
    close(lab.apply(other, tokens)[0], lab.apply(params, tokens)[0], FORWARD)
    moved = jax.tree.map(lambda a, b: bool(np.abs(np.asarray(a) - b).max() > 1e-6), params, other)
    block = moved["blocks"][0]
    assert block["attention"]["query"]["kernel"]
    assert not block["attention"]["out"]["kernel"]
    assert moved["unembed"]["kernel"]
    assert not moved["embed"]


def test_frozen_parts_and_random_columns(lab):
    config = dataclasses.replace(lab.config, L=2)
    params = LM.create(lab.tokenizer, config).init(jax.random.key(0))
    one = Model(lab.tokenizer, params, "key", 0)
    slow = cause.frozen(one, ("MLP", "unembedding"), 0.0).tree
    for block in slow["blocks"].values():
        assert not any(leaf["kernel"].any() for leaf in block["mlp"].values())
        assert all(leaf["kernel"].all() for leaf in block["attention"].values())
    assert not slow["unembed"]["kernel"].any()
    assert (slow["embed"] == 1).all()
    third = cause.frozen(one, ("attention",), 1 / 3).tree["blocks"][0]["attention"]["out"]["kernel"]
    close(third, 1 / 3, FORWARD)
    columns = cause.columns(one, 0)
    left = np.concatenate([x.ravel() for x in jax.tree.leaves(columns.tree)])
    assert set(left) == {0, 1}
    assert abs(left.mean() - (1 - cause.SHARE)) < 0.15
    assert columns.digest == cause.columns(one, 0).digest != cause.columns(one, 1).digest


def test_a_slope_over_cells_is_the_lines():
    x, z = np.arange(5.0), np.array([0.0, 1, 0, 1, 0])
    table = {"size": x, "tokens": z}
    y = 2 + 3 * x - z
    close(scale.over_cells(table, y, ("size", "tokens"), 1), 3, FLOAT64)
    close(scale.over_cells(table, y, ("size", "tokens"), 2), -1, FLOAT64)


def test_scale_has_as_many_cells_as_it_says():
    assert len(scale.GRID) == scale.UNITS == 24
    assert len(set(scale.GRID)) == 24
    assert len(scale.LARGER) == len(scale.OTHER) == 6
    work = [r.steps * r.documents * r.layers * r.width**2 for r in (*scale.GRID, *scale.LARGER)]
    assert min(work[24:]) > np.median(work[:24])
    assert not set(scale.GRID) & set(scale.LARGER)
    assert Recipe().sized(width=64) == Recipe(width=64, mlp=64)


def test_what_is_published_has_the_keys_of_a_record():
    file = ROOT / "docs" / "scorecard" / "scorecard.json"
    known = records.available()
    kept = records.current(file, known, next(iter(published(file).values()))["world"], tuple(known))
    assert len(kept) > len(known) // 2


def published(file) -> dict[str, dict]:
    """The published records."""
    import json

    return {record["claim"]: record for record in json.loads(file.read_text())}
