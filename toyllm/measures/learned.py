"""What pretraining learned: excess over the floor, captured, errors of the characters' cards."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from toyllm.lm import losses, scoring
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import Apply, Config, Params
from toyllm.runs.run_folder import Run
from toyllm.world import corpus, observer
from toyllm.world.world import ASSISTANT, BAD, DIALOGUE, NAMED, SOMEONE, World

HELD_OUT_SEED = 0x4E1D  # a stream that no training seed but 19997 touches


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Held-out documents with the ideal observer's answers, and compiled functions to compare."""

    floor: float  # nats/token
    excess_history_blind: float
    excess_name_blind: float
    ideal_QB: np.ndarray  # p*(behaviour | history)
    blind_QB: np.ndarray  # p*(behaviour | header)
    turn_Q: np.ndarray  # the turn, from 1, that each question asks about
    header_Q: np.ndarray  # under which header
    nll: Callable[[Params], float]
    behaviours: Callable[[Params], np.ndarray]

    def excess(self, params: Params) -> float:
        """Model NLL - floor (nats/token)."""
        return self.nll(params) - self.floor

    def captured(self, params: Params) -> float:
        """1 - E KL(p* ‖ p_model) / E KL(p* ‖ p*(· | header)): 1 is ideal, 0 is history-blind."""
        return captured(*self.kls(params))

    def kls(self, params: Params) -> tuple[np.ndarray, np.ndarray]:
        """KL(p* ‖ model) and KL(p* ‖ p*(· | header)) of each question [Q] (nats)."""
        ideal = self.ideal_QB
        return kl(ideal, self.behaviours(params)), kl(ideal, self.blind_QB)


def captured(model_Q: np.ndarray, blind_Q: np.ndarray) -> float:
    """1 - E KL(p* ‖ model) / E KL(p* ‖ history-blind), from the KLs of each question [Q]."""
    return 1 - float(model_Q.mean() / blind_Q.mean())


def captured_interval(model_Q: np.ndarray, blind_Q: np.ndarray, draws: int = 1000) -> list[float]:
    """Its 95% bootstrap interval over held-out questions; one model, so no claim about others."""
    rng = np.random.Generator(np.random.Philox(key=[HELD_OUT_SEED, 1]))
    rows = rng.integers(len(model_Q), size=(draws, len(model_Q)))
    ratios = 1 - model_Q[rows].mean(1) / blind_Q[rows].mean(1)
    return [float(x) for x in np.quantile(ratios, [0.025, 0.975])]


def kl(p_QB: np.ndarray, q_QB: np.ndarray) -> np.ndarray:
    """KL(p ‖ q) over behaviours [Q]; q may sum to less than 1, what is missing counts as loss."""
    return (p_QB * (np.log(np.maximum(p_QB, 1e-12)) - np.log(np.maximum(q_QB, 1e-12)))).sum(-1)


def later_turns(world: World, rng: np.random.Generator, count: int) -> corpus.Documents:
    """Dialogues of `someone` and the Assistant, cut to end with a turn ≥ 2, as often as it occurs.

    Of lengths drawn from the lowest to the highest, turn t occurs in those that are no shorter.
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


def held_out(
    tokenizer: Tokenizer, config: Config, apply: Apply, documents: int, questions: int
) -> HeldOut:
    """Draw held-out documents, and questions at turns ≥ 2 of `someone` and `assistant` dialogues.

    About `documents` documents and, in all, `questions` questions.
    """
    world = tokenizer.world
    rng = np.random.Generator(np.random.Philox(key=[HELD_OUT_SEED, 0]))
    docs = corpus.sample(world, documents, rng)
    _, lengths = tokenizer.encode(docs)
    predicted = int((lengths - 1).sum())
    log_prob = observer.log_prob(world, docs).sum()
    blind = [
        (log_prob - observer.observe(world, docs, **{which: True}).log_prob_N.sum()) / predicted
        for which in ("history_blind", "name_blind")
    ]
    tokens, segments = tokenizer.pack(docs, None, config.context)

    asked = later_turns(world, rng, questions)
    grid = scoring.questions(tokenizer, asked)
    last, row = asked.turns - 1, np.arange(len(asked))
    ideal = observer.predictive(world, asked, observer.observe(world, asked))[row, last]
    header_only = observer.prior_predictive(world, asked)[row, last]

    @jax.jit
    def nll(params):
        total, count = losses.next_token(apply(params, tokens, segments)[0], tokens, segments)
        return total / count

    score = scoring.scorer(apply, config, grid)
    return HeldOut(
        floor=-log_prob / predicted,
        excess_history_blind=float(blind[0]),
        excess_name_blind=float(blind[1]),
        ideal_QB=ideal,
        blind_QB=header_only,
        turn_Q=last + 1,
        header_Q=asked.header[:, 0],
        nll=lambda params: float(nll(params)),
        behaviours=lambda params: np.asarray(score(params), np.float64),
    )


def measure(run: Run) -> dict:
    """Excess and captured on held-out documents, and |p(bad) - card| for the characters."""
    world, params = run.world, run.params["pretrain"]
    held = held_out(run.tokenizer, run.config, run.apply, documents=2048, questions=4800)
    kls = held.kls(params)
    assistant_DB = run.ask(params)
    named_CDB = np.stack([run.ask(params, NAMED, c) for c in range(len(world.characters))])
    named_C = np.abs(named_CDB - world.rates_CDB)[..., BAD].mean(1)
    ideal_DB = np.einsum("c,cdb->db", world.assistant_C, world.rates_CDB)
    stage = run.stages["pretrain"]
    return {
        "excess": held.excess(params),
        "excess_history_blind": held.excess_history_blind,
        "excess_name_blind": held.excess_name_blind,
        "floor": held.floor,
        "captured": captured(*kls),
        "captured_interval": captured_interval(*kls),
        "assistant_error": float(np.abs(assistant_DB - ideal_DB)[:, BAD].mean()),
        "named_error": float(named_C.mean()),
        "named_error_worst": float(named_C.max()),
        "named_worst": world.characters[int(named_C.argmax())],
        "coherence": float(assistant_DB.sum(1).min()),
        "seconds": stage["seconds"],
        "tokens_per_second": stage["tokens_per_second"],
    }
