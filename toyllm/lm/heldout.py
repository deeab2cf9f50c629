"""Held-out documents and questions: how far a model is from the ideal observer.

Axes: Q questions   B behaviours
"""

import jax
import jax.numpy as jnp
import numpy as np

from toyllm.lm import losses, scoring
from toyllm.lm.scoring import Scorer
from toyllm.lm.tokenizer import pack
from toyllm.lm.transformer import LM, Params
from toyllm.world import corpus, observer
from toyllm.world.world import ASSISTANT, DIALOGUE, SOMEONE, World

SEED = 0x4E1D  # a stream that no training seed but 19997 touches


class HeldOut:
    """Held-out documents and questions of a world, with the ideal observer's answers.

    About `documents` documents and `questions` questions at turns ≥ 2 of dialogues.

    floor: the least NLL that any model can have on the documents (nats/token);
    excess_history_blind, excess_name_blind: how far observers that do not look at the history, or
    at the names, are above it. ideal_QB: p*(behaviour | history); blind_QB: p*(behaviour | header).
    turn_Q, header_Q: the turn, from 1, that each question asks about, and under which header.
    """

    def __init__(self, lm: LM, documents: int, questions: int, scorer: Scorer | None = None):
        """scorer: one that is compiled for models of this shape; None: a new one."""
        world, self.lm = lm.world, lm
        rng = np.random.Generator(np.random.Philox(key=[SEED, 0]))
        docs = corpus.sample(world, documents, rng)
        flat, lengths = lm.tokenizer.encode(docs)
        predicted = int((lengths - 1).sum())
        self.tokens, self.segments = pack(flat, lengths, None, lm.config.context)

        def nats(**blind) -> float:
            """The NLL of an observer (nats/token)."""
            return float(-observer.observe(world, docs, **blind).log_prob_N.sum() / predicted)

        self.floor = nats()
        self.excess_history_blind = nats(history_blind=True) - self.floor
        self.excess_name_blind = nats(name_blind=True) - self.floor

        asked = later_turns(world, rng, questions)
        last = np.arange(len(asked)), asked.turns - 1
        self.questions = scoring.questions(lm.tokenizer, asked)
        self.ideal_QB, self.blind_QB = (
            observer.predictive(world, asked, observer.observe(world, asked, blind))[last]
            for blind in (False, True)  # to the history
        )
        self.turn_Q, self.header_Q = last[1] + 1, asked.header[:, 0]
        self._scorer, self._nll = scorer or Scorer(lm), jax.jit(self._mean_nll)

    def _mean_nll(self, params: Params):
        logits_BTV, _, _ = self.lm.apply(params, self.tokens, self.segments)
        nll_BT, here_BT = losses.next_token(logits_BTV, self.tokens, self.segments)
        return nll_BT.sum() / here_BT.sum(dtype=jnp.float32)

    def excess(self, params: Params) -> float:
        """The model's NLL less the floor (nats/token)."""
        return float(self._nll(params)) - self.floor

    def behaviours(self, params: Params) -> np.ndarray:
        """The model's p(behaviour | history) [Q, B]."""
        return self._scorer(params, self.questions).astype(np.float64)

    def kls(self, params: Params) -> tuple[np.ndarray, np.ndarray]:
        """KL(p* ‖ model) and KL(p* ‖ p*(· | header)) of each question [Q] (nats)."""
        return kl(self.ideal_QB, self.behaviours(params)), kl(self.ideal_QB, self.blind_QB)

    def captured(self, params: Params) -> float:
        """The share of what the history tells about the speaker that the model uses."""
        return captured(*self.kls(params))


def captured(model_Q: np.ndarray, blind_Q: np.ndarray) -> float:
    """1 - E KL(p* ‖ model) / E KL(p* ‖ history-blind): 1 is ideal, 0 is history-blind."""
    return 1 - float(model_Q.mean() / blind_Q.mean())


def captured_interval(model_Q: np.ndarray, blind_Q: np.ndarray, draws: int = 1000) -> list[float]:
    """Its 95% bootstrap interval over held-out questions; one model, so no claim about others."""
    rng = np.random.Generator(np.random.Philox(key=[SEED, 1]))
    rows = rng.integers(len(model_Q), size=(draws, len(model_Q)))
    ratios = 1 - model_Q[rows].mean(1) / blind_Q[rows].mean(1)
    return [float(x) for x in np.quantile(ratios, [0.025, 0.975])]


def kl(p_QB: np.ndarray, q_QB: np.ndarray) -> np.ndarray:
    """KL(p ‖ q) over behaviours [Q]; q may sum to less than 1, what is missing counts as loss."""
    return (p_QB * (np.log(np.maximum(p_QB, 1e-12)) - np.log(np.maximum(q_QB, 1e-12)))).sum(-1)


def later_turns(world: World, rng: np.random.Generator, count: int) -> corpus.Documents:
    """Dialogues of `someone` and the Assistant that end with a turn ≥ 2, as often as it occurs.

    Lengths are uniform between the lowest and the highest, so turn t occurs in every dialogue that
    is no shorter.
    """
    low, high = world.lengths[DIALOGUE]
    turns = np.arange(min(2, high), high + 1)
    often = np.array([(high + 1 - max(t, low)) for t in turns], float)
    headers = world.header_weights[[SOMEONE, ASSISTANT]]
    share = np.outer(headers, often) / (headers.sum() * often.sum())
    parts = [
        corpus.sample(world, int(np.ceil(count * share[h, k])), rng, DIALOGUE, header, turns=turn)
        for h, header in enumerate((SOMEONE, ASSISTANT))
        for k, turn in enumerate(turns)
        if share[h, k] > 0
    ]
    return corpus.concatenate(parts)
