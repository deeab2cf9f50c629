"""The ideal observer: exact probabilities of Documents under their World, in float64.

It knows the world but not who speaks. For each speaker of a document it keeps a posterior over
characters, given the kind of document; everything else (kind, headers, questions, lengths) is
independent of the speaker. In an introduction, whom the statements are about and who then speaks
are one draw with probability b (`binding`), so the statements are evidence about the speaker too.
Every function takes N documents at once. Axes as in `world` and `corpus`.
"""

import dataclasses

import numpy as np

from toyllm.world.corpus import SLOTS, Documents
from toyllm.world.world import INTRODUCTION, NAMED, SCENE, World


@dataclasses.dataclass(frozen=True)
class Beliefs:
    """What the ideal observer knows along N documents (nats)."""

    log_prior_NLC: np.ndarray  # log p(c | header, name) before the first turn
    log_turn_NTC: np.ndarray  # log p(answer, voice of turn t | c), with the text's share; or 0
    log_before_NTC: np.ndarray  # log p(c | header and all turns before t of the same speaker)
    log_rest_N: np.ndarray  # everything that does not depend on who speaks
    log_prob_N: np.ndarray  # log p(document)


def observe(world: World, docs: Documents, history_blind=False, name_blind=False) -> Beliefs:
    """Follow documents turn by turn.

    The history-blind observer forgets all earlier turns before each one, the name-blind observer
    does not look at the name shown (it still pays for predicting it). Both are yardsticks.
    """
    log_prior_NLC = _prior(world, docs, name_blind)
    log_turn_NTC = _turn(world, docs)
    N, T, _ = log_turn_NTC.shape
    log_state = log_prior_NLC.copy()
    if not history_blind:
        log_state[:, 1] = _introduced(world, docs, log_prior_NLC[:, 1], log_turn_NTC)
    log_before = np.zeros_like(log_turn_NTC)
    log_prob_N = log_rest_N = _rest(world, docs)
    rows = np.arange(N)
    for t in range(T):
        # a document that has ended goes on with slot 0, and its terms are masked out
        slot, here = np.maximum(docs.speaker[:, t], 0), docs.speaker[:, t] >= 0
        log_before[:, t] = log_state[rows, slot]
        log_joint = log_before[:, t] + log_turn_NTC[:, t]
        log_turn = logsumexp(log_joint)
        log_prob_N = log_prob_N + np.where(here, log_turn, 0.0)
        if not history_blind:
            log_state[rows, slot] = np.where(
                here[:, None], log_joint - log_turn[:, None], log_before[:, t]
            )
    return Beliefs(log_prior_NLC, log_turn_NTC, log_before, log_rest_N, log_prob_N)


def log_prob(world: World, docs: Documents) -> np.ndarray:
    """log p(document) [N]: kind, headers, names, length, questions, answers, voices, end."""
    return observe(world, docs).log_prob_N


def predictive(world: World, docs: Documents, beliefs: Beliefs) -> np.ndarray:
    """p(behaviour of turn t | its question, header, history) [N, T, B]; NaN past the end."""
    theta_NTCB = world.rates_ICDB[docs.instruction, :, docs.domain]
    p = np.einsum("ntc,ntcb->ntb", np.exp(beliefs.log_before_NTC), theta_NTCB)
    return np.where((docs.speaker >= 0)[..., None], p, np.nan)


def posterior(world: World, docs: Documents) -> np.ndarray:
    """p(c | the whole document) [N, L, C] of each speaker; uniform where there is none."""
    log_NLC = _prior(world, docs, name_blind=False)
    mine_LNT = docs.speaker == np.arange(SLOTS)[:, None, None]
    evidence_LNC = np.where(mine_LNT[..., None], _turn(world, docs), 0.0).sum(2)
    log_NLC += evidence_LNC.swapaxes(0, 1)
    introduction = docs.kind == INTRODUCTION
    if introduction.any():
        log_NLC[introduction] = _joint(world, *evidence_LNC[:, introduction])
    return np.exp(log_NLC - logsumexp(log_NLC)[..., None])


def _introduced(world: World, docs: Documents, log_prior_NC, log_turn_NTC) -> np.ndarray:
    """log p(second speaker | the statements before its turns) [N, C]; else its prior.

    p(c | statements) ∝ π_c (b L_c + (1 - b) Σ_k τ_k L_k), where L_c is the likelihood of the
    statements if they are about c, π is `assistant_C` and τ is whom profiles of it describe.
    """
    log_state_NC, introduction = log_prior_NC.copy(), docs.kind == INTRODUCTION
    if introduction.any():
        stated = docs.stated[introduction, :, None]
        log_L_NC = np.where(stated, log_turn_NTC[introduction], 0.0).sum(1)
        with np.errstate(divide="ignore"):
            log_told_C, log_speaks_C = np.log(world.introduced_2C)
            log_bound, log_free = np.log([world.binding, 1 - world.binding])
        free_N = logsumexp(log_told_C + log_L_NC)
        log_w_NC = log_speaks_C + np.logaddexp(log_bound + log_L_NC, log_free + free_N[:, None])
        log_state_NC[introduction] = log_w_NC - logsumexp(log_w_NC)[:, None]
    return log_state_NC


def _joint(world: World, log_told_NC: np.ndarray, log_spoken_NC: np.ndarray) -> np.ndarray:
    """log of both marginals [N, L, C], not normalised, of the posterior of an introduction.

    p(c, k) ∝ (b π_c [c = k] + (1 - b) τ_c π_k) L_c M_k, where L_c is the likelihood of the
    statements if they are about c, and M_k that of the turns if k speaks.
    """
    with np.errstate(divide="ignore"):
        log_told_C, log_speaks_C = np.log(world.introduced_2C)
        log_bound, log_free = np.log([world.binding, 1 - world.binding])
    bound_NC = log_bound + log_speaks_C + log_told_NC + log_spoken_NC
    first_NC = log_free + log_told_C + log_told_NC
    second_NC = log_speaks_C + log_spoken_NC
    others = logsumexp(second_NC)[:, None], logsumexp(first_NC)[:, None]
    return np.stack(
        [
            np.logaddexp(bound_NC, mine_NC + other_N1)
            for mine_NC, other_N1 in zip((first_NC, second_NC), others, strict=True)
        ],
        1,
    )


def logsumexp(x: np.ndarray) -> np.ndarray:
    """log Σ exp over the last axis; -inf where all entries are -inf."""
    top = x.max(-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - top).sum(-1)) + top[..., 0]


def _prior(world: World, docs: Documents, name_blind: bool) -> np.ndarray:
    """log p(c | header, name) [N, L, C]; an absent speaker is uniform."""
    C = len(world.characters)
    speaker_NLC = world.speaker_KHC[docs.kind[:, None], docs.header]
    p = np.where((docs.header >= 0)[..., None], speaker_NLC, 1 / C)
    told_C, speaks_C = world.introduced_2C
    p[docs.kind == INTRODUCTION, 0] = world.binding * speaks_C + (1 - world.binding) * told_C
    if not name_blind:
        shown = np.arange(C) == docs.character[..., None]
        p = np.where((docs.header == NAMED)[..., None], shown, p)
    with np.errstate(divide="ignore"):
        return np.log(p)


def _turn(world: World, docs: Documents) -> np.ndarray:
    """log p(answer and voice of turn t | c) [N, T, C]; a statement is the behaviour itself."""
    with np.errstate(divide="ignore"):
        log_rate = np.log(world.rates_ICDB[docs.instruction, :, docs.domain])
        log_voice = np.log(world.voices_CV[:, docs.voice].transpose(1, 2, 0))
    log_rate = np.take_along_axis(log_rate, docs.behaviour[..., None, None], -1)[..., 0]
    n_texts = world.count_DSB[docs.domain, docs.situation, docs.behaviour]
    log_text = -np.log(np.maximum(n_texts, 1))[..., None]
    log_turn = log_rate + np.where(docs.stated[..., None], 0.0, log_voice + log_text)
    return np.where((docs.speaker >= 0)[..., None], log_turn, 0.0)


def _rest(world: World, docs: Documents) -> np.ndarray:
    """log-probability [N] of kind, headers, names shown, length, questions and who answers."""
    D = len(world.domains)
    here, turns = docs.speaker >= 0, docs.turns
    scene, introduction = docs.kind == SCENE, docs.kind == INTRODUCTION
    lows, highs = np.array(world.lengths).T
    with np.errstate(divide="ignore"):
        log = np.log(world.kind_weights[docs.kind]) - np.log((highs - lows + 1)[docs.kind])
        log_header = np.log(world.header_weights[docs.header])
        log_name = np.log(world.frequency_C[docs.character])
        log_instruction = np.log(world.instruction_DI[docs.domain, docs.instruction])
    # an introduction is always the Assistant's
    log = log + np.where((docs.header >= 0) & ~introduction[:, None], log_header, 0.0).sum(1)
    fewest, most = world.statements
    log = log - np.where(introduction, np.log(most - fewest + 1), 0.0)
    log = log + np.where(docs.header == NAMED, log_name, 0.0).sum(1)
    # each turn of a scene is answered by one of its two speakers, at random
    log = log - np.where(scene, turns * np.log(SLOTS), 0.0)
    log_question = log_instruction - np.log(D) - np.log(world.situations_D[docs.domain])
    # statements: domains without replacement, D (D - 1) (D - 2) …
    log_topic = -np.log(np.maximum(D - np.arange(here.shape[1]), 1))
    log_turn = np.where(docs.stated, log_topic, log_question)
    return log + np.where(here, log_turn, 0.0).sum(1)
