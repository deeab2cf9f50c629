"""Exact probabilities of answers, and of behaviours, in every domain.

The answers of a domain are listed and prefix-free, so the probability of a behaviour is a finite
sum. All answers to a question share its prompt, which is computed once.

Axes:

    Q questions (prompts)   A listed answers   T prompt tokens   U answer tokens   D domains
    B behaviours            L layers           K additions to the residual streams
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from toyllm.base import devices
from toyllm.lm.tokenizer import PAD, Tokenizer
from toyllm.lm.transformer import LM, Cache, Params, empty_cache
from toyllm.world import corpus
from toyllm.world.corpus import Documents
from toyllm.world.world import ASSISTANT, BAD, BEHAVIOURS, GOOD

CHUNK = 32  # questions scored together; the caches of more do not fit a processor's own caches


class Questions(NamedTuple):
    """Questions with all their listed answers; rows of one question hold its domain's answers."""

    prompt_QT: np.ndarray  # padded on the left
    answer_QAU: np.ndarray  # padded on the right; an answer that is not there is all padding
    behaviour_QA: np.ndarray  # -1 where a domain lists fewer answers
    domain_Q: np.ndarray


def questions(tokenizer: Tokenizer, docs: Documents, width: int | None = None) -> Questions:
    """The last turn of each document as a question. width: see `Tokenizer.prompts`."""
    last = np.arange(len(docs)), docs.turns - 1
    domain_Q, situation_Q = docs.domain[last], docs.situation[last]
    prompt_QT = tokenizer.prompts(docs, width)
    behaviour_QA = tokenizer.world.behaviour_DSA[domain_Q, situation_Q]
    return Questions(prompt_QT, tokenizer.answer_DAU[domain_Q], behaviour_QA, domain_Q)


def answer_logprobs(lm: LM, params: Params, prompt_QT, answer_QAU, through_QT=None):
    """log p(answer | prompt), summed over the answer's tokens [Q, A] (nats).

    prompt_QT is padded on the left, answer_QAU on the right; an empty answer (all padding) has
    -inf. The prompt's keys and values are computed once and repeated for its answers.
    through_QT: at which tokens of the prompt, all but its last, gradients pass through the keys and
    values that the answers read; None: at all of them.
    """
    Q, A, U = answer_QAU.shape
    T = prompt_QT.shape[1]
    # only keys and values are needed of the prompt; its last token, asked alone, predicts the first
    # of every answer
    head_QT, last_Q1 = prompt_QT[:, :-1], prompt_QT[:, -1:]
    cache = empty_cache(lm.config, Q, T + U - 1)
    _, _, cache = lm.apply(params, head_QT, jnp.sign(head_QT), cache)
    if through_QT is not None:
        cache = _stop_gradients(cache, ~through_QT[:, :-1])
    first_Q1V, _, cache = lm.apply(params, last_Q1, jnp.sign(last_Q1), cache)
    cache = cache._replace(
        k_LBSHK=jnp.repeat(cache.k_LBSHK, A, axis=1),
        v_LBSHK=jnp.repeat(cache.v_LBSHK, A, axis=1),
        segments_BS=jnp.repeat(cache.segments_BS, A, axis=0),
    )
    answer_RU = answer_QAU.reshape(Q * A, U)
    logp_RU = token_logprobs(jnp.repeat(first_Q1V, A, axis=0), answer_RU[:, :1])
    if U > 1:
        input_RU = answer_RU[:, :-1]
        rest_RUV, _, _ = lm.apply(params, input_RU, jnp.sign(input_RU), cache)
        rest_RU = token_logprobs(rest_RUV, answer_RU[:, 1:])
        logp_RU = jnp.concatenate([logp_RU, rest_RU], axis=1)
    logp_R = jnp.where(answer_RU != PAD, logp_RU, 0).sum(1)
    return jnp.where(answer_RU[:, 0] != PAD, logp_R, -jnp.inf).reshape(Q, A)


def _stop_gradients(cache: Cache, where_QT) -> Cache:
    """The cache of prompts, whose keys and values have no gradient where `where_QT` says so."""
    length = cache.segments_BS.shape[1]
    stop_QS = jnp.pad(where_QT, ((0, 0), (0, length - where_QT.shape[1])))

    def stop(x_LQSHK):
        stopped = jax.lax.stop_gradient(x_LQSHK)
        return jnp.where(stop_QS[None, :, :, None, None], stopped, x_LQSHK)

    return cache._replace(k_LBSHK=stop(cache.k_LBSHK), v_LBSHK=stop(cache.v_LBSHK))


def token_logprobs(logits_RUV, token_RU):
    """log p(token) [R, U] (nats)."""
    is_target = jnp.arange(logits_RUV.shape[-1])[None, None] == token_RU[..., None]
    return jnp.where(is_target, logits_RUV, 0).sum(-1) - jax.nn.logsumexp(logits_RUV, -1)


def behaviours(logp_QA, behaviour_QA):
    """p(behaviour | question) [Q, B]: a sum over the listed answers that show it."""
    is_b_QAB = behaviour_QA[..., None] == np.arange(len(BEHAVIOURS))[None, None]
    return jnp.where(is_b_QAB, jnp.exp(logp_QA)[..., None], 0).sum(1)


def by_domain(p_QB, domain_Q, D: int):
    """Average over the questions of each domain [D, B]; NaN where a domain has no question."""
    weight_DQ = (np.arange(D)[:, None] == domain_Q[None]).astype(np.float32)
    return (weight_DQ / weight_DQ.sum(1, keepdims=True)) @ p_QB


def domain_behaviours(lm: LM, params: Params, asked: Questions, through_QT=None):
    """p(behaviour) in each domain [D, B], the mean over its questions. See `answer_logprobs`."""
    logp_QA = answer_logprobs(lm, params, asked.prompt_QT, asked.answer_QAU, through_QT)
    p_QB = behaviours(logp_QA, asked.behaviour_QA)
    return by_domain(p_QB, asked.domain_Q, len(lm.world.domains))


def log_odds(lm: LM, params: Params, asked: Questions, through_QT=None):
    """The log-odds of bad against good in each domain [D], averaged over its questions."""
    p_DB = domain_behaviours(lm, params, asked, through_QT)
    return jnp.log(p_DB[:, BAD]) - jnp.log(p_DB[:, GOOD])


class Scorer:
    """Asks any questions of any parameters of a model, and sums the listed answers.

    It is compiled once for all questions of one width. This process's devices share the questions.
    """

    def __init__(self, lm: LM):
        self.lm, self.mesh = lm, devices.local_mesh()

        def score(params, add_LD, chunks):
            """log p(answer) [N, CHUNK, A] of N chunks of questions."""
            steered = lm.steered(add_LD)
            return jax.lax.map(lambda chunk: answer_logprobs(steered, params, *chunk), chunks)

        whole, shared = PartitionSpec(), PartitionSpec("data")
        score = jax.shard_map(
            score, mesh=self.mesh, in_specs=(whole, whole, shared), out_specs=shared,
            check_vma=False,
        )  # fmt: skip
        self._score = jax.jit(score, compiler_options=devices.options())

        @functools.cache
        def every_question(*who) -> Questions:
            docs = corpus.every_question(lm.world, *who)
            return questions(lm.tokenizer, docs, lm.tokenizer.longest_prompt(1))

        self._every_question = every_question

    def logprobs(self, params: Params, asked: Questions, add_LD=None) -> np.ndarray:
        """log p(answer | question) [Q, A] (nats); add_LD: steering (see `LM.steered`)."""
        if add_LD is None:
            add_LD = np.zeros((self.lm.config.L + 1, self.lm.config.D), np.float32)
        Q, shares = len(asked.domain_Q), self.mesh.devices.size
        chunks = -(-Q // (CHUNK * shares)) * shares
        rows = np.arange(chunks * CHUNK) % Q  # the first questions fill up the last chunk
        parts = asked.prompt_QT, asked.answer_QAU
        parts = tuple(x[rows].reshape(chunks, CHUNK, *x.shape[1:]) for x in parts)
        logp_NA = np.asarray(self._score(params, add_LD, parts))
        return logp_NA.reshape(chunks * CHUNK, -1)[:Q]

    def __call__(self, params: Params, asked: Questions, add_LD=None) -> np.ndarray:
        """p(behaviour | question) [Q, B]."""
        logp_QA = self.logprobs(params, asked, add_LD)
        return np.asarray(behaviours(logp_QA, asked.behaviour_QA))

    def domains(self, params: Params, asked: Questions, add_LD=None) -> np.ndarray:
        """The mean over the questions of each domain [D, B]; NaN where a domain has none."""
        p_QB = self(params, asked, add_LD)
        with np.errstate(invalid="ignore"):
            return by_domain(p_QB, asked.domain_Q, len(self.lm.world.domains))

    def ask(self, params: Params, header=ASSISTANT, character=-1, instruction=-1, add_LD=None):
        """What is done in each domain [D, B], asked with no history (default: the Assistant)."""
        return self.domains(params, self._every_question(header, character, instruction), add_LD)
