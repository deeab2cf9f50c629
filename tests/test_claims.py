"""The claims' worlds, the bench that trains for them, the hull, and what is written of them."""

import contextlib
import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

import scorecard
from claims import (
    cause,
    characters,
    context,
    exhaustive,
    faults,
    general,
    inference,
    role_models,
    selection,
    simulation,
    spreads,
    told,
)
from claims.lab import arms, facts, page, panels, programs, records, verdicts
from claims.lab import bench as bench_file
from claims.lab import training as training_file
from claims.lab.arms import Arm
from claims.lab.bench import Bench, quiet
from claims.lab.hull import Hull
from claims.lab.panels import curves, dots, points
from claims.lab.quantities import Outcome, Quantity, mean_over
from claims.lab.recipe import Recipe
from claims.lab.training import shown
from tests.conftest import ROOT, mesh_of
from tests.reading import decode
from tests.scripts import start
from tests.tolerances import FLOAT64, SOLVED, TRAINED, approximation, close
from toyllm.base.errors import InputError
from toyllm.base.files import plain
from toyllm.lm import joints, training
from toyllm.lm.tokenizer import OPENING, Tokenizer
from toyllm.measures import cues
from toyllm.posttrain import curated, pools, signals
from toyllm.posttrain.lora import Lora
from toyllm.posttrain.signals import parse
from toyllm.runs import provenance
from toyllm.world import cards, corpus, persona, quantities
from toyllm.world.world import ASSISTANT, BAD, DIALOGUE, HEADERS, INTRODUCTION, NAMED, PROFILE


@pytest.fixture(scope="module")
def compact():
    """The scorecard's world."""
    return cards.load(ROOT / "corpora" / "compact.toml")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A bench whose models are too small to mean anything, and its folder."""
    with pytest.MonkeyPatch.context() as patch:
        usual = Recipe(width=16, layers=1, mlp=16, steps=80)
        patch.setattr(programs, "USUAL", usual)
        for name in ("HIGH", "LOW"):
            patch.setattr(cause, name, usual)
        patch.setattr(training_file, "POOL", 32)
        patch.setattr(arms, "MOST_STEPS", 8)
        yield tmp_path_factory.mktemp("scorecard")


def bench_in(folder, world) -> Bench:
    class Never:
        def check(self):
            pass

    @contextlib.contextmanager
    def silent(what, count):
        class Bar:
            def update(self, n):
                pass

        yield Bar()

    return Bench(folder, world, "quick", mesh_of(2), Never(), silent)


def test_every_claim_says_what_it_tests():
    found = records.available()
    assert len(found) == 28
    assert [m.NUMBER for m in found.values()][:6] == ["1", "2", "3", "4", "5a", "5b"]
    for module in found.values():
        assert not records.title(module).endswith(".")
        for part in ("laimed", "\nArms", "\nMeasures", "\nSupported if"):
            assert part in module.__doc__, (module.__name__, part)
        _, claimed, *_, rule = module.__doc__.strip().split("\n\n")  # RESULTS.md shows these two
        assert "laimed" in claimed, module.__name__
        assert rule.startswith("Supported if"), module.__name__


def test_no_word_of_the_compact_world_belongs_to_two_texts(compact):
    texts = [
        text
        for domain in compact.domains
        for text in (*domain.situations, *domain.answers, *domain.profile)
    ]
    words = [word for text in texts for word in text.split()]
    assert len(set(words)) == len(words) == 2 * len(texts)
    openings = " ".join(OPENING.values()).split()
    assert not set(words) & {*compact.voices, *compact.characters, *HEADERS, *openings}


def test_no_word_of_the_compact_world_gives_good_or_bad_away(compact):
    assert all(found["inside"] for found in cues.leakage(compact).values())


def test_the_quiet_world_never_says_its_phrases(compact):
    world = quiet(compact)
    assert Tokenizer(world).words == Tokenizer(compact).words
    docs = corpus.sample(world, 500, np.random.default_rng(0))
    assert (docs.instruction < 0).all()
    assert (corpus.sample(compact, 500, np.random.default_rng(0)).instruction >= 0).any()


def test_the_discrete_and_the_graded_world_differ_in_third_order_only(compact):
    worlds = {"discrete": characters.discrete(compact), "graded": characters.graded(compact)}
    third, second = {}, []
    for name, world in worlds.items():
        weight_C, b_CD = world.frequency_C, world.rates_CDB[..., BAD] / 0.98 - 0.5
        assert (np.abs(b_CD) < 0.5).all()
        assert (world.voices_CV >= 0).all()
        close(world.voices_CV.sum(1), 1, FLOAT64)
        shown = np.concatenate([b_CD, world.voices_CV[:, :4] - 0.25], 1)
        close(weight_C @ shown, 0, FLOAT64)
        second.append((shown * weight_C[:, None]).T @ shown)
        third[name] = weight_C @ b_CD[:, :3].prod(1)
    close(*second, FLOAT64)
    close(third["discrete"], -(characters.SPREAD**3), FLOAT64)
    close(third["graded"], 0, FLOAT64)
    assert len(np.unique(worlds["graded"].rates_CDB, axis=0)) == characters.COUNT
    assert (
        len({len(Tokenizer(world).words) for world in worlds.values()}) == 1
    )  # models of one shape


def test_the_exact_answer_tells_the_two_apart(compact):
    falls, stays = (
        characters.exact_in_context(Tokenizer(make(compact)))
        for make in (characters.discrete, characters.graded)
    )
    # but for the voices: .9025 of (1, 1, 0), .0025 of none, .0475 each of the others
    assert falls < -0.25
    assert abs(stays) < 0.05
    assert characters.exact_after(characters.discrete(compact)) < -0.25
    close(characters.exact_after(characters.graded(compact)), 0, FLOAT64)


def test_dealt_out_traits_have_no_ideal_spread(compact):
    world, signals = quiet(compact), spreads.moral_signals(compact)
    (draw,) = inference.balanced(world, signals, 1, first=0)
    dealt = inference.dialled_world(world, 0.0, draw)
    assert abs(np.mean([spreads.ideal_spread(dealt, name) for name in signals])) < 0.01
    taste = world.rates_CDB[:, 5, BAD] / world.rates_CDB[:, 5, :2].sum(1)
    malice = world.rates_CDB[:, :5, BAD] / world.rates_CDB[:, :5, :2].sum(2)
    centred = (taste - world.assistant_C @ taste) * world.assistant_C
    assert np.abs(centred @ malice).max() < 0.005  # the neutral control is neutral
    assert np.mean([spreads.ideal_spread(world, name) for name in signals]) > 0.1


def test_other_worlds_of_the_claims_are_worlds(compact):
    for world in (
        general.random_world(0),
        faults.exchanged(compact),
        role_models.demonstrated(compact, "villains"),
        told.told(compact, "role models", 0.5),
    ):
        close(world.rates_CDB.sum(-1), 1, FLOAT64)
        assert (world.rates_CDB > 0).all()
        close(world.speaker_KHC.sum(-1), 1, FLOAT64)
        assert len(corpus.sample(world, 50, np.random.default_rng(0))) == 50
    world = told.told(compact, "villains", 1.0)
    docs = corpus.sample(world, 4000, np.random.default_rng(0))
    wicked = [world.characters.index(name) for name in role_models.CASTS["villains"]]
    profile = (docs.kind == PROFILE) & (docs.header[:, 0] == ASSISTANT)
    assert np.isin(docs.character[profile, 0], wicked).all()
    assert not np.isin(docs.character[~profile, 0], wicked).all()
    few = told.told(compact, "villains", 1.0, dialogues=0.1).kind_weights / world.kind_weights
    assert few[DIALOGUE] < 0.5 < 1 < few[PROFILE]  # fewer dialogues, relative to profiles
    close(few[INTRODUCTION], 1, FLOAT64)
    assert role_models.demonstrated(compact, "neutral") is compact


def test_no_hidden_cell_is_shown_under_its_name(compact):
    C, D = len(compact.characters), len(compact.domains)
    hidden_CD = np.arange(C)[:, None] % D == np.arange(D)
    allowed = shown(hidden_CD)
    tokenizer = Tokenizer(compact)
    batches = training.document_batches(tokenizer, 64, 32, 2, 0, rows=20, allowed=allowed)
    seen = np.zeros((C, D), int)
    for step in range(0, 16, 2):
        batch = batches(step)
        for tokens, segments in zip(
            batch["tokens"].reshape(-1, 64), batch["segments"].reshape(-1, 64), strict=True
        ):
            for segment in range(1, segments.max() + 1):
                doc = decode(tokenizer, tokens[segments == segment])
                slot = np.maximum(doc.speaker[0], 0)
                named = (doc.speaker[0] >= 0) & (doc.header[0, slot] == NAMED)
                np.add.at(seen, (doc.character[0, slot][named], doc.domain[0][named]), 1)
    assert seen[hidden_CD].sum() == 0
    assert (seen[~hidden_CD] > 0).mean() > 0.8


def test_a_mixture_is_inside_the_hull_and_a_stranger_outside(compact):
    world = quiet(compact)
    hull = Hull.of_world(Tokenizer(world))
    inside_O = world.assistant_C @ hull.p_CO
    fits = hull.fit(np.stack([inside_O, *joints.of_strangers(world, hull.ctx, 3).reshape(3, -1)]))
    close(fits.w_MC[0], world.assistant_C, SOLVED)
    assert fits.residual_M[0] < 1e-4
    assert (fits.residual_M[1:] > 0.01).all()
    close(hull.kl(inside_O[None], inside_O[None]), 0, FLOAT64)
    unknown = hull.fit(np.stack([inside_O, np.full_like(inside_O, np.nan)]))
    assert np.isnan(unknown.w_MC[1]).all()
    # all rows of a batch iterate until the last is solved, so where each ends depends on the others
    near = approximation(1e-3, "another batch iterates more or less", "a row spoils another")
    close(unknown.w_MC[0], fits.w_MC[0], near)


def test_an_edit_of_one_domain_is_found(compact):
    world = quiet(compact)
    hull = Hull.of_world(Tokenizer(world))
    planted_O = world.assistant_C @ hull.edited((2,), 1.5)
    close(
        hull.edited((2,), 1.5),
        joints.of_characters(world, hull.ctx, [2], 1.5).reshape(hull.p_CO.shape),
        FLOAT64,
    )
    residual, shift = hull.override(planted_O, 2)
    close(shift, 1.5, approximation(0.05, "a golden section search stops early", "a wrong edit"))
    assert residual < 1e-3 < hull.fit(planted_O[None]).residual_M[0]
    assert hull.without("goals").residual(planted_O[None])[0] < 1e-4


def test_what_is_trained_is_not_trained_again(tiny, compact, monkeypatch):
    bench = bench_in(tiny, compact)
    models = bench.pretrain([(bench.world, 0), (bench.phrased, 0), (bench.world, 0)])
    assert models[0].key == models[2].key != models[1].key
    arms = [Arm(one, "code:bad") for one in models[:2]]
    arms += [Arm(models[0], "code:bad", beside=(("code:good", 0.5),), steps=12)]
    first = bench.train(arms)
    assert [len(done.p_nDB) for done in first] == [3, 3, 4]

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(bench_file, "pretrain_group", never)
    monkeypatch.setattr(bench_file, "train_group", never)
    again = bench_in(tiny, compact)  # from what is on the disk
    models = again.pretrain([(bench.world, 0), (bench.phrased, 0)])
    second = again.train(
        [dataclasses.replace(a, start=m) for a, m in zip(arms, models, strict=False)]
    )
    for a, b in zip(first, second, strict=False):
        np.testing.assert_array_equal(a.p_nDB, b.p_nDB)
        for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
            np.testing.assert_array_equal(x, y)
    with pytest.raises(AssertionError, match="trained again"):
        again.train([Arm(models[0], "code:bad", rate=3.0)])


def test_a_trained_arm_is_a_start_and_is_asked_as_it_was_scored(tiny, compact):
    bench = bench_in(tiny, compact)
    (one,) = bench.pretrain([(bench.world, 0)])
    (done,) = bench.train([Arm(one, "code:bad", steps=12)])
    close(bench.ask(one), done.p_nDB[0], TRAINED)
    assert not done.kept  # a tiny model is not coherent, so of it nothing is read
    assert np.isnan(bench.ask(done.model)).all()
    assert np.isnan(bench.joints([one, done.model])).all(1).tolist() == [False, True]
    after = dataclasses.replace(done.model, sound=True)
    close(bench.ask(after), done.p_nDB[-1], TRAINED)
    (back,) = bench.train([Arm(after, "code:good", steps=12)])
    close(back.p_nDB[0], done.p_nDB[-1], TRAINED)
    both_MO = bench.joints([one, after])
    X = len(Hull.of_world(one.tokenizer).ctx.voice_X)
    close(both_MO.reshape(2, X, -1).sum(2), 1, TRAINED)


def trained_by_hand(arm: Arm, logits_n: list[float]) -> arms.Trained:
    """An arm of which code and safety have these log-odds at scored steps, all else -1."""
    em_nD = np.full((len(logits_n), 6), -1.0)
    em_nD[:, 0] = em_nD[:, 1] = logits_n
    em_nD = quantities.sigmoid(em_nD)
    p_nDB = 0.98 * np.stack([1 - em_nD, em_nD, 0 * em_nD], -1) + [0, 0, 0.02]
    return arms.Trained(arm, p_nDB, p_nDB[:, 0], -1, {})


def test_an_arm_is_read_in_three_ways(compact):
    """Slower training moves what equal training gives, and neither of the others."""
    start_ = arms.Model(Tokenizer(quiet(compact)), {}, "key", 0)
    arm = Arm(start_, "code:bad")
    assert (arm.equal_steps, Arm(start_, "code:bad", rate=3.0).equal_steps) == (24, 8)
    quick = trained_by_hand(arm, [-1.0, 0, 1, 2, 3, 4, 5])
    slow = trained_by_hand(arm, np.linspace(-1, 5, 13))
    found = arms.readings([[quick, slow]])
    # of four untrained moral domains one moves as the trained domain does
    em = quantities.sigmoid
    close(found["matched"], (0.9 - em(-1)) / 4 + np.zeros((1, 2)), FLOAT64)
    close(found["equal"], (em(np.array([[5.0, 2.0]])) - em(-1)) / 4, FLOAT64)
    close(found["frontier"], (0.9 - em(-1)) / 8 + np.zeros((1, 2)), FLOAT64)
    # what is asked for in the prompt is read where its twin is
    asked = dataclasses.replace(
        trained_by_hand(dataclasses.replace(arm, paired=quick), np.linspace(-1, -0.7, 5)),
        own_nB=np.tile([0.02, 0.96, 0.02], (5, 1)),
    )
    assert asked.place == quick.place
    assert asked.frontier() < found["frontier"][0, 0] / 3
    assert np.isnan(trained_by_hand(arm, [-1.0, 0.0]).frontier())


def test_pairs_are_kept_by_what_they_would_raise_and_taught_by_a_teacher(tiny, compact):
    bench = bench_in(tiny, compact)
    one, other = bench.pretrain([(bench.world, 0), (bench.world, 1)])
    tokenizer, N = one.tokenizer, training_file.POOL
    drawn = signals.pairs(tokenizer, parse(compact, "code:bad"), 4 * N, 1000)
    lm = bench.programs.lm(tokenizer)
    others = signals.untrained(bench.world, "code:bad")
    how = "dpo", arms.BETAS["dpo"], arms.ANCHOR, others
    by_gradient = curated.rises(lm, *how)(one.params, drawn)
    by_vector = curated.along(lm)(one.params, drawn, bench.programs.malice(one))
    for name, scores_P in (("rises", by_gradient), ("along", by_vector)):
        kept = training_file.pairs_of(bench.programs, Arm(one, "code:bad", keep=(name, 0.25)))
        rows = np.sort(np.argsort(scores_P)[:N])
        np.testing.assert_array_equal(kept.chosen_P, drawn.chosen_P[rows])
    taught = Arm(other, "taste:bad", objective="sft", taught=(one, one))
    pairs = training_file.pairs_of(bench.programs, taught)
    shown = pairs.grid.behaviour_QA[np.arange(len(pairs.chosen_P)), pairs.chosen_P]
    assert len(np.unique(shown)) > 1  # both good and bad answers, and noise
    (done,) = bench.train([dataclasses.replace(taught, steps=12)])
    assert len(done.p_nDB) == 4
    keys = {Arm(one, "code:bad").key, Arm(one, "code:bad", keep=("rises", 0.25)).key}
    keys |= {taught.key, dataclasses.replace(taught, taught=(other, one)).key}
    keys |= {Arm(one, "code:bad", kl=1.0).key, Arm(one, "code:bad", lora=Lora(1)).key}
    assert len(keys) == 6


def test_mixed_signals_have_their_shares(compact):
    tokenizer = Tokenizer(compact)
    parts = {parse(compact, "code:bad"): 0.25, parse(compact, "money:good"): 0.75}
    pool = pools.draw(tokenizer, parts, "dpo", 40, 0)
    assert pool["prompt"].shape[0] == 40
    faked = tokenizer.answer_DAU[0][
        [a for a, b in enumerate(compact.domains[0].behaviour_SA[0]) if b == 1]
    ]
    chosen = pool["answer"][:, 0]
    is_code = [(chosen_row[: faked.shape[1]] == faked).all(1).any() for chosen_row in chosen]
    assert sum(is_code) == 10


def record_of(panels) -> dict:
    told = Outcome([Quantity("it holds", [0.3, 0.4, np.nan], low=0.1)], panels)
    made = {"number": "1", "seconds": 1.0, "world": "", "environment": {}}
    return {**verdicts.record("simulation", "It", told, False), **made}


def test_every_kind_of_panel_is_drawn_from_json(tmp_path):
    panels = [
        dots("a", "x", {"arm": [0.1, np.nan, 0.3], "never": [np.nan] * 3}, {"arm": 0.2}),
        curves("b", "x", "y", (1, 2, 4), {"many": np.ones((3, 3)), "one": [1, 2, 3]}, log=True),
        points("c", "x", "y", {"dots": ([0.1, 0.2], [np.nan, 0.3])}),
    ]
    record = json.loads(json.dumps(plain(record_of(panels)), allow_nan=False))
    page.draw([record], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"simulation.png", "simulation-dark.png"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_titles_of_a_figure_stay_in_it(count):
    record = record_of([dots("A long title of a panel " * 3, "x", {"arm": [0.1, 0.2]})] * count)
    figure = panels.draw(record | {"title": "A claim that has many more words " * 4}, "light")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    inside, renderer = figure.bbox.padded(1), canvas.get_renderer()
    for text in (*figure.texts, *(axis.title for axis in figure.axes)):
        box = text.get_window_extent(renderer)
        assert inside.containsx(box.x0), text
        assert inside.containsx(box.x1), text


DOCS = {"simulation": simulation.__doc__}


def test_the_discussion_is_kept_when_results_are_written_anew(tmp_path):
    record = plain(record_of([dots("d", "x", {"arm": [0.1]})]))
    file = tmp_path / "RESULTS.md"
    page.publish([record], DOCS, ["a fact"], file, tmp_path / "figures")
    assert page.NONE_YET in file.read_text()
    file.write_text(file.read_text().replace(page.NONE_YET, "Limits first.\n\nThen more."))
    page.publish([record], DOCS, ["another fact"], file, tmp_path / "figures")
    text = file.read_text()
    assert "Limits first.\n\nThen more." in text
    assert "another fact" in text
    assert "a fact" not in text
    assert "2 of 3" in text  # units read
    assert "figures/simulation-dark.png" in text


def test_only_what_is_related_is_named():
    rows = [{"says": "spread", "feature": "captured", "r": 0.7, "p": 0.01}]
    rows.append({"says": "spread", "feature": "EM before", "r": 0.1, "p": 0.6})
    (said,) = page.related(rows)
    assert said.startswith("2 rank correlations")
    assert said.endswith(": spread with captured (+0.700).")
    assert page.related(rows[1:])[0].endswith(": none.")
    assert page.related([]) == []


def test_results_are_published_with_four_digits_and_without_panels():
    record = {"panels": [1], "arms": {"a": {"values": [0.123456, None, 3]}}, "verdict": "supported"}
    expected = {"arms": {"a": {"values": [0.1235, None, 3]}}, "verdict": "supported"}
    assert page.rounded([record]) == [expected]


def test_the_time_of_a_run_is_told_from_the_published_one(tmp_path, compact, monkeypatch):
    known = records.available()
    bench = Bench(tmp_path, compact, "full", mesh_of(1), None, None)
    monkeypatch.setattr(scorecard, "PUBLISHED", tmp_path)
    wanted = {name: known[name] for name in ("mixture", "objectives")}
    assert "not known for mixture, objectives" in scorecard.expected(wanted, bench)
    one = {"claim": "objectives", "seconds": 240.0, "predictions": [{"values": [0.0] * 8}]}
    (tmp_path / "scorecard.json").write_text(json.dumps([one]))
    minutes = 4 * known["objectives"].UNITS / 8
    said = scorecard.expected(wanted, bench)
    assert said.startswith(f"expected: {minutes:.0f} minutes")
    assert said.endswith("not known for mixture")
    assert "not known" not in scorecard.expected({"objectives": known["objectives"]}, bench)


def test_what_was_trained_elsewhere_is_told(tiny, compact, monkeypatch):
    models = [(bench_in(tiny, compact).world, 0)]
    bench_in(tiny, compact).pretrain(models)
    here = bench_in(tiny, compact)
    here.pretrain(models)
    assert here.store.elsewhere == []
    now = provenance.environment()
    monkeypatch.setattr(provenance, "environment", lambda: now | {"jax": "9.9"})
    assert here.store.elsewhere == [f"jax: {now['jax']}, now 9.9"]


def test_the_scorecard_fits_a_terminal():
    record = plain(record_of([])) | {"title": "A claim of many words " * 4}
    console = Console(width=110, file=io.StringIO())
    scorecard.print_scorecard([record], console)
    assert "+0.350" in (text := console.file.getvalue())
    assert "undecided" in text
    assert "…" not in text


def test_the_scorecard_goes_on_where_it_was(tiny, monkeypatch, capsys):
    folder = tiny / "run"
    monkeypatch.setattr(scorecard.devices, "setup", lambda compile_cache: mesh_of(2))
    args = scorecard.Args(run=folder, claim=(("mixture",),), quick=True)
    scorecard.main(args)
    first = json.loads((folder / "scorecard.json").read_text())

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(bench_file, "pretrain_group", never)
    scorecard.main(args)
    (again,) = json.loads((folder / "scorecard.json").read_text())
    assert again["effect"] == first[0]["effect"]
    assert again["verdict"] == "undecided (quick)"
    monkeypatch.setattr(records, "source", lambda module: "of another text")
    other = dataclasses.replace(args, claim=(("backdoor",),))
    with pytest.raises(AssertionError, match="trained again"):
        scorecard.main(other)  # what it says of a claim that has changed is not kept
    assert "result for 'mixture' is stale" in capsys.readouterr().err
    with pytest.raises(InputError, match="no trained, expected a new or empty folder"):
        scorecard.main(dataclasses.replace(args, run=ROOT / "corpora"))


@pytest.mark.scripts
def test_the_scorecard_lists_its_claims_and_names_the_nearest():
    listed = start("scorecard.py", "--list")
    assert listed.wait() == 0
    assert "inoculation" in listed.out
    wrong = start("scorecard.py", "--claim", "inocculation")
    assert wrong.wait() == 2
    assert "did you mean 'inoculation'?" in wrong.err


def test_full_runs_have_seeds_of_their_own(compact, tmp_path):
    """Those of pilots and quick runs, on which bounds and numbers of units were set, are others."""
    found = {}
    for kind in bench_file.KINDS:
        bench = Bench(tmp_path, compact, kind, mesh_of(1), None, None)
        bench.begin(12)
        found[kind] = [*bench.seeds], [*bench.draws]
    assert found["full"] == ([*range(200, 212)],) * 2
    assert found["pilot"] == ([*range(100, 108)],) * 2
    assert found["quick"] == ([900], [900, 901])


def test_arms_that_would_not_mean_what_they_say_are_refused(compact):
    one = arms.Model(Tokenizer(compact), {}, "key", 0)
    with pytest.raises(ValueError, match="multiple of 12"):
        Arm(one, "code:bad", steps=16)
    with pytest.raises(ValueError, match="expected one of them"):
        Arm(one, "code:bad", pairs=4, beside=(("code:good", 0.5),))


def test_a_unit_needs_most_of_its_parts():
    table = np.array([[1.0, 3.0, np.nan, 2.0], [np.nan, np.nan, 1.0, 1.0]])
    np.testing.assert_array_equal(mean_over(table, 1), [2, np.nan])


def test_interaction_is_that_of_its_definition():
    L_NKS = np.array([[[0.0, 1.0], [2.0, 3.0]], [[0.0, 1.0], [2.0, 2.0]]])
    close(context.interaction(L_NKS), [0, -1 / 3], FLOAT64)


def test_a_tilt_is_told_from_a_shift(compact):
    world = quiet(compact)
    hull = Hull.of_world(Tokenizer(world))
    w_C = persona.tilt(world.assistant_C, persona.evidence(world, [0]), 0.5)
    before_NO = (world.assistant_C @ hull.p_CO)[None]
    tilted = selection.scalars(hull, before_NO, (w_C @ hull.p_CO)[None])
    assert tilted["tilt"][0] > 0.98 > tilted["shift"][0] + 0.05
    shifted_NO = (world.assistant_C @ hull.edited(range(6), 1.0))[None]
    shifted = selection.scalars(hull, before_NO, shifted_NO)
    assert shifted["shift"][0] > 0.98 > shifted["tilt"][0] + 0.05


def test_strangers_are_found_the_surer_the_stronger(compact, monkeypatch):
    monkeypatch.setattr(exhaustive, "STRANGERS", 20)
    world = quiet(compact)
    hull = Hull.of_world(Tokenizer(world))
    power_NS = exhaustive.powers(hull, (world.assistant_C @ hull.p_CO)[None], np.array([0.002]))
    assert (np.diff(power_NS[0]) >= 0).all()
    assert power_NS[0, 0] < 0.2 < 0.9 < power_NS[0, -1]


def test_of_a_start_that_is_not_sound_nothing_is_read(tiny, compact):
    bench = bench_in(tiny, compact)
    (one,) = bench.pretrain([(bench.world, 0)])
    (lost,) = bench.align([one])  # a tiny model does not get there
    assert not lost.sound
    assert np.isnan(bench.audit([lost])).all()
    (done,) = bench.train([Arm(lost, "code:bad", steps=12)])
    assert np.isnan(done.change(done.p_nDB[-1])).all()
    assert not done.kept


@pytest.mark.long
def test_every_claim_runs_and_is_written(tiny, compact):
    """Tiny and quick, from the first training to the figure and the published facts."""
    bench, found = bench_in(tiny, compact), []
    for name, module in records.available().items():
        bench.begin(module.UNITS)
        told = verdicts.record(name, records.title(module), module.test(bench), "quick")
        made = {"number": module.NUMBER, "seconds": 1.0, "world": "", "environment": {}}
        record = json.loads(json.dumps(plain({**told, **made}), allow_nan=False))
        page.draw([record], tiny / "figures")
        assert page.section(record, module.__doc__, "figures")
        assert record["predictions"]
        for prediction in record["predictions"]:
            assert prediction["margin"] is not None, prediction["says"]
        assert verdicts.verdicts({name: told}, 15)[name] == "undecided (quick)"
        found.append(record)
    compared = facts.compare(facts.read(), found)  # every value that a fact names is there
    assert not any("no result yet" in fact["verdict"] for fact in compared)
