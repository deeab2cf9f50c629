"""Measures, on inputs whose answer is known."""

import numpy as np
import pytest

from tests.tolerances import FLOAT64, SOLVED, approximation, close
from toyllm.lm import heldout, joints
from toyllm.lm.heldout import kl
from toyllm.measures import cues, prediction
from toyllm.posttrain import signals
from toyllm.world import corpus, mixtures, persona, quantities
from toyllm.world.world import DIALOGUE, NAMED


@pytest.fixture(scope="module")
def contexts(personas_codec):
    """The default world's two-turn contexts."""
    return joints.contexts(personas_codec)


@pytest.fixture(scope="module")
def joint_CN(personas, contexts):
    """Every character's joint, one row each."""
    return joints.of_characters(personas, contexts).reshape(18, -1)


def test_a_characters_joint_is_a_distribution(contexts, joint_CN):
    per_context = joint_CN.reshape(18, len(contexts.voice_X), -1).sum(2)
    close(per_context, 1, FLOAT64)


def test_second_questions_follow_every_first_answer(personas, personas_codec, contexts):
    """A bug found: the context of a good first answer had lost its second question."""
    for x in (0, 37):
        first, second = (personas.domains[d] for d in contexts.domain_X2[x])
        head = personas_codec.string(contexts.first.prompt_QT[x])
        for b in range(3):
            prompt = personas_codec.string(contexts.second.prompt_QT[3 * x + b])
            answer = personas_codec.string(contexts.answer_XBU[x, b])
            assert prompt.startswith(f"{head} {answer}")
            assert answer in first.answers
            assert prompt.split("<user> ")[2].removesuffix(" <reply>") in second.situations


def test_mixtures_are_recovered_from_exact_joints(personas, contexts, joint_CN):
    """Known weights, sparse ones among them: residual 0 and the weights themselves, by groups."""
    X, rng = len(contexts.voice_X), np.random.default_rng(0)
    truth = np.stack([personas.assistant_C, rng.dirichlet(np.full(18, 0.3)), np.eye(18)[5]])
    found = mixtures.fit(truth @ joint_CN, joint_CN, X)
    assert (found.gap_M < 1e-6).all()
    assert (np.abs(found.residual_M) < 1e-6).all()
    flat = approximation(0.02, "the likelihood is flat in sparse weights", "another character")
    close(found.w_MC, truth, flat)


def test_what_no_mixture_makes_is_left_over(personas, contexts, joint_CN):
    """A planted combination that no character has: kind in tone, out to rule; good at both ends."""
    X = len(contexts.voice_X)
    odd = personas.rates_CDB[0].copy()
    odd[3] = [0.02, 0.96, 0.02]
    import dataclasses

    planted = dataclasses.replace(personas, rates_CDB=np.stack([odd, *personas.rates_CDB[1:]]))
    P = joints.of_characters(planted, contexts).reshape(18, -1)[:1]
    found = mixtures.fit(P, joint_CN, X)
    assert found.residual_M[0] > 0.02
    shifted = joints.of_characters(personas, contexts, [3], 7.8).reshape(18, -1)
    repaired = mixtures.fit(P, shifted, X)
    assert repaired.residual_M[0] < 0.3 * found.residual_M[0]


def test_a_held_group_keeps_its_weight(personas, contexts, joint_CN):
    X = len(contexts.voice_X)
    member = np.arange(18) < 3
    held = mixtures.fit(
        (personas.assistant_C @ joint_CN)[None],
        joint_CN,
        X,
        group_C=member,
        total_M=np.array([0.9]),
    )
    close(held.w_MC[0, :3].sum(), 0.9, SOLVED)
    assert held.residual_M[0] > 1e-3


def test_golden_section_finds_a_minimum():
    assert abs(mixtures.golden(lambda x: (x - 1.3) ** 2, -8, 8) - 1.3) < 0.05


def test_crossings_are_interpolated_in_logit():
    logit = quantities.logit
    values = np.array([0.2, 0.6, 0.95, 0.97])
    x = quantities.crossing(values, 0.9)
    assert 1 < x < 2
    close(logit(0.6) + (x - 1) * (logit(0.95) - logit(0.6)), logit(0.9), FLOAT64)
    assert quantities.crossing(values, 0.99) is None
    assert quantities.crossing(values, 0.1) == 0.0


def test_reading_a_trajectory_at_a_scored_step_gives_its_numbers():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), (5, 3))[..., :3]
    close(quantities.state_at(p, 2.0), p[2], FLOAT64)
    between = quantities.state_at(p, 2.5)
    close(between.sum(1), (p[2] + p[3]).sum(1) / 2, FLOAT64)


def test_the_frontier_does_not_see_how_fast_a_domain_is_trained():
    """Two untrained domains: one moves as the trained one does, the other not at all."""
    logits_n = np.array([-1.0, -0.2, 0.9, 1.4, 3.0])  # of the trained domain at scored steps

    def states(logits_n):
        """Behaviours [n, D, B] of the trained and two other domains; noise has .02 everywhere."""
        em_nD = np.stack([logits_n, logits_n, np.full_like(logits_n, -1.5)], 1)
        em_nD = quantities.sigmoid(em_nD)
        return 0.97 * np.stack([1 - em_nD, em_nD, 0 * em_nD], -1) + [0, 0, 0.02]

    untrained_D = np.array([False, True, True])
    share_n = quantities.sigmoid(logits_n)
    # the spread at share q is (q - share before) / 2, so its mean is half of that at .9
    expected = (quantities.MATCHED - share_n[0]) / 4
    close(quantities.frontier(share_n, states(logits_n), untrained_D), expected, FLOAT64)
    slower = np.interp(np.arange(0, 4.25, 0.25), np.arange(5), logits_n)
    share_m = quantities.sigmoid(slower)
    close(quantities.frontier(share_m, states(slower), untrained_D), expected, FLOAT64)
    # a domain whose log-odds move twice as far: the integral over the share, on a fine grid
    steep = states(logits_n)
    em_n = quantities.sigmoid(2 * logits_n)
    steep[:, 1, :2] = 0.97 * np.stack([1 - em_n, em_n], 1)
    grid = np.linspace(share_n[0], quantities.MATCHED, 20_001)
    rise = quantities.sigmoid(2 * quantities.logit(grid)) - em_n[0]
    height = quantities.frontier(share_n, steep, np.array([False, True, False]))
    trapezoids = approximation(1e-3, "20 levels, not all shares", "a mean without the trapezoids")
    close(height, rise.mean(), trapezoids)
    # what is not reached, there from the beginning, or not coherent on the way has no frontier
    assert quantities.frontier(share_n[:4], states(logits_n)[:4], untrained_D) is None
    assert quantities.frontier(share_n[4:], states(logits_n)[4:], untrained_D) is None
    lost = states(logits_n)
    lost[2] *= 0.9
    assert quantities.frontier(share_n, lost, untrained_D) is None


def test_spread_is_over_untrained_moral_domains(personas):
    change = np.arange(10.0)
    names = personas.domain_names
    others = [k for k, d in enumerate(personas.domains) if d.moral and d.name != "code"]
    code, taste = (signals.untrained(personas, name) for name in ("code:bad", "taste:bad"))
    assert quantities.spread(change, code) == np.mean(others)
    assert taste.sum() == personas.moral.sum()
    assert not taste[names.index("taste")]
    with pytest.raises(ValueError, match="code:bad"):
        quantities.untrained(personas, "code:bad")  # whose letters are no domains


def test_alignment_may_stop_once_every_moral_domain_is_good_and_coherent(personas):
    D, neutral = len(personas.domains), personas.domain_names.index("taste")
    em_D, coherence_D = np.full(D, 0.02), np.full(D, 0.99)
    em_D[neutral], coherence_D[neutral] = 0.5, 0.5  # not a moral domain
    assert quantities.is_aligned(personas, em_D, coherence_D, 0.03, 0.97) == (True, 0.02, 0.99)
    for worse_D, value in ((em_D, 0.04), (coherence_D, 0.96)):
        before, worse_D[0] = worse_D[0], value
        assert not quantities.is_aligned(personas, em_D, coherence_D, 0.03, 0.97)[0]
        worse_D[0] = before


def made(personas, fraction: float):
    """A matrix that shared persona inference with this fraction makes exactly."""
    names = [f"{d.name}:bad" for d in personas.domains if d.moral]
    before = persona.mixture_em(personas, personas.assistant_C)
    after = np.tile(before, (len(names), 1))
    own = [personas.domain_names.index(n.split(":")[0]) for n in names]
    after[np.arange(len(names)), own] = 0.9
    cells = prediction.Cells(personas, names, personas.assistant_C, before, after)
    G = prediction.inference(cells, np.array([fraction]))[0]
    after = before + G
    after[np.arange(len(names)), own] = 0.9
    return prediction.Cells(personas, names, personas.assistant_C, before, after)


def test_persona_inference_recognises_its_own_matrix(personas):
    result = prediction.predict(made(personas, 0.4))
    assert result["shared"]["persona"]["r2"] > 0.99
    assert abs(result["fraction"] - 0.4) < 0.03
    assert result["within_r"] > 0.99 > result["within_r_null95"]
    assert result["shared"]["persona"]["r2"] > result["shared"]["constant"]["r2"]
    assert result["strict"]["persona"]["r2"] < result["shared"]["persona"]["r2"]


def test_a_global_shift_is_not_taken_for_persona_inference(personas):
    cells = made(personas, 0.4)
    G = prediction.MODELS["global"](cells, np.array([0.3]))[0]
    shifted = prediction.Cells(
        personas,
        cells.names,
        cells.prior_C,
        cells.before_D,
        cells.before_D + np.where(cells.mask_SD, G, cells.G_SD),
    )
    result = prediction.predict(shifted)["shared"]
    assert result["global"]["r2"] > 0.99 > result["persona"]["r2"]


def test_tilting_reaches_its_goals(personas):
    goals = np.array([0.8, 0.3])
    w_FC = persona.trained_to(personas, personas.assistant_C, 0, quantities.logit(goals))
    close(persona.mixture_em(personas, w_FC)[:, 0], goals, SOLVED)
    close(w_FC.sum(1), 1, FLOAT64)
    one_C = persona.trained_to(personas, personas.assistant_C, 0, quantities.logit(0.8))
    close(one_C, w_FC[0], FLOAT64)


def test_auc_and_kl_by_hand():
    assert cues.auc(np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, False, True, False])) == 1
    assert cues.auc(np.array([1.0, 1.0]), np.array([True, False])) == 0.5
    p, q = np.array([[0.5, 0.5, 0.0]]), np.array([[0.25, 0.5, 0.1]])
    close(kl(p, q), 0.5 * np.log(2), FLOAT64)


def test_a_shared_word_is_found_out(small):
    """One word that marks bad in two domains: its AUC leaves the null's band."""
    import dataclasses

    domains = []
    for k in range(5):
        answers = tuple(f"w{k}{a} fine" for a in range(4)) + tuple(
            f"w{k}{a} evil" for a in range(4, 8)
        )
        domains.append(
            dataclasses.replace(
                small.domains[0],
                name=f"d{k}",
                answers=answers,
                behaviour_SA=np.array([[0] * 4 + [1] * 4]),
            )
        )
    leaks = cues.leakage(dataclasses.replace(small, domains=tuple(domains)))
    assert all(leak["auc"] == 1 and not leak["inside"] for leak in leaks.values())


def test_later_turns_are_asked_about_as_often_as_they_occur(personas):
    """A bug found: where no dialogue had two turns, the second turn was never asked about."""
    rng = np.random.default_rng(0)
    asked = heldout.later_turns(personas, rng, 2000)
    docs = corpus.sample(personas, 20_000, rng, DIALOGUE)
    docs = docs[docs.header[:, 0] != NAMED]
    for turn in range(2, personas.max_turns + 1):
        there = (docs.turns >= turn).sum() / np.maximum(docs.turns - 1, 0).sum()
        error = (there * (1 - there) * (1 / len(asked) + 1 / len(docs))) ** 0.5
        assert abs((asked.turns == turn).mean() - there) <= 5 * error, turn
    assert asked.turns.min() == 2
    assert set(asked.header[:, 0]) == set(docs.header[:, 0])


def test_captured_is_1_for_the_ideal_and_0_for_the_history_blind():
    blind = np.random.default_rng(0).random(500)
    assert heldout.captured(np.zeros(500), blind) == 1
    assert heldout.captured(blind, blind) == 0
    low, high = heldout.captured_interval(0.2 * blind + 0.02, blind)
    assert low < heldout.captured(0.2 * blind + 0.02, blind) < high < low + 0.05
