"""The ideal observer: exact probabilities of Documents under their World, in float64.

It knows the world but not who speaks. For each speaker of a document it keeps a posterior over
characters; everything else (kind, headers, questions, lengths) is independent of the speaker.
Every function takes N documents at once. Axes as in `world` and `corpus`.
"""

import dataclasses

import numpy as np

from toyllm.world.corpus import SLOTS, Documents
from toyllm.world.world import NAMED, PROFILE, SCENE, World


@dataclasses.dataclass(frozen=True)
class Beliefs:
    """What the ideal observer knows along N documents (nats).

    log_prior_NLC: log p(c | header, name) before the first turn.
    log_turn_NTC: log p(answer, voice of turn t | c), the text's own share included; 0 if absent.
    log_before_NTC: log p(c | header and all turns before t of the same speaker), normalised.
    log_rest_N: everything that does not depend on who speaks.
    log_prob_N: log p(document).
    """

    log_prior_NLC: np.ndarray
    log_turn_NTC: np.ndarray
    log_before_NTC: np.ndarray
    log_rest_N: np.ndarray
    log_prob_N: np.ndarray


def observe(world: World, docs: Documents, history_blind=False, name_blind=False) -> Beliefs:
    """Follow documents turn by turn.

    The history-blind observer forgets all earlier turns before each one, the name-blind observer
    does not look at the name shown (it still pays for predicting it). Both are yardsticks.
    """
    log_prior_NLC = _prior(world, docs, name_blind)
    log_turn_NTC = _turn(world, docs)
    N, T, _ = log_turn_NTC.shape
    log_state = log_prior_NLC.copy()
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


def prior_predictive(world: World, docs: Documents) -> np.ndarray:
    """p(behaviour of turn t | its question and header alone) [N, T, B]; NaN past the end."""
    beliefs = observe(world, docs, history_blind=True)
    return predictive(world, docs, beliefs)


def posterior(world: World, docs: Documents) -> np.ndarray:
    """p(c | the whole document) [N, L, C] of each speaker; uniform where there is none."""
    log_NLC = _prior(world, docs, name_blind=False)
    turn_NTC = _turn(world, docs)
    for slot in range(SLOTS):
        mine = (docs.speaker == slot)[..., None]
        log_NLC[:, slot] += np.where(mine, turn_NTC, 0.0).sum(1)
    return np.exp(log_NLC - logsumexp(log_NLC)[..., None])


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
    if not name_blind:
        shown = np.arange(C) == docs.character[..., None]
        p = np.where((docs.header == NAMED)[..., None], shown, p)
    with np.errstate(divide="ignore"):
        return np.log(p)


def _turn(world: World, docs: Documents) -> np.ndarray:
    """log p(answer and voice of turn t | c) [N, T, C]; a profile states the behaviour itself."""
    profile = (docs.kind == PROFILE)[:, None, None]
    with np.errstate(divide="ignore"):
        log_rate = np.log(world.rates_ICDB[docs.instruction, :, docs.domain])
        log_voice = np.log(world.voices_CV[:, docs.voice].transpose(1, 2, 0))
    log_rate = np.take_along_axis(log_rate, docs.behaviour[..., None, None], -1)[..., 0]
    n_texts = world.count_DSB[docs.domain, docs.situation, docs.behaviour]
    log_text = -np.log(np.maximum(n_texts, 1))[..., None]
    log_turn = log_rate + np.where(profile, 0.0, log_voice + log_text)
    return np.where((docs.speaker >= 0)[..., None], log_turn, 0.0)


def _rest(world: World, docs: Documents) -> np.ndarray:
    """log-probability [N] of kind, headers, names shown, length, questions and who answers."""
    D = len(world.domains)
    here, turns = docs.speaker >= 0, docs.turns
    scene, profile = docs.kind == SCENE, docs.kind == PROFILE
    lows, highs = np.array(world.lengths).T
    with np.errstate(divide="ignore"):
        log = np.log(world.kind_weights[docs.kind]) - np.log((highs - lows + 1)[docs.kind])
        log_header = np.log(world.header_weights[docs.header])
        log_name = np.log(world.frequency_C[docs.character])
        log_instruction = np.log(world.instruction_DI[docs.domain, docs.instruction])
    log = log + np.where(docs.header >= 0, log_header, 0.0).sum(1)
    log = log + np.where(docs.header == NAMED, log_name, 0.0).sum(1)
    # each turn of a scene is answered by one of its two speakers, at random
    log = log - np.where(scene, turns * np.log(SLOTS), 0.0)
    log_question = log_instruction - np.log(D) - np.log(world.situations_D[docs.domain])
    # the statements of a profile: domains without replacement, D (D - 1) (D - 2) …
    log_topic = -np.log(np.maximum(D - np.arange(here.shape[1]), 1))
    log_turn = np.where(profile[:, None], log_topic, log_question)
    return log + np.where(here, log_turn, 0.0).sum(1)
