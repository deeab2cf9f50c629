"""The joint distribution of a model's answers over two-turn dialogues with the Assistant.

A context is two questions, a first answer for each behaviour, and a closing phrase, drawn once by a
fixed seed and the same for every model. Its outcomes: the behaviour of the first answer, and then
another closing phrase, or this one and the behaviour of the second answer. Behaviours are
renormalised to listed answers. The characters' joints are known exactly, and a mixture of
characters has the mixture of their joints (see `world.mixtures`).

Axes: X contexts   O = B * (B + 1) outcomes   R models   C characters   V voices   E closings
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from toyllm.base import devices
from toyllm.lm import scoring
from toyllm.lm.tokenizer import PAD, Tokenizer, padded
from toyllm.lm.transformer import LM, Params
from toyllm.world import corpus
from toyllm.world.quantities import shift_log_odds
from toyllm.world.world import ASSISTANT, BEHAVIOURS, DIALOGUE, World

SEED = 0xD1A
B = len(BEHAVIOURS)


@dataclasses.dataclass(frozen=True)
class Contexts:
    """X contexts, one for each ordered pair of domains, with their questions to the model."""

    domain_X2: np.ndarray
    voice_X: np.ndarray
    first: scoring.Questions  # [X] the first question
    answer_XBU: np.ndarray  # a first answer's tokens, for each behaviour
    second: scoring.Questions  # [X * B] the second question after each first answer


def contexts(tokenizer: Tokenizer, instruction: int = -1, header: int = ASSISTANT) -> Contexts:
    """Draw the contexts of a world; every question with an instruction, under a header."""
    world, rng = tokenizer.world, np.random.Generator(np.random.Philox(key=[SEED, 0]))
    D = len(world.domains)
    domain_X2 = np.array([(a, b) for a in range(D) for b in range(D) if a != b])
    X = len(domain_X2)
    situation_X2 = rng.integers(world.situations_D[domain_X2])
    voice_X = rng.choice(len(world.voices), X, p=world.frequency_C @ world.voices_CV)
    behaviour_XB = np.tile(np.arange(B), (X, 1))
    domain_XB, situation_XB = (np.repeat(x[:, :1], B, 1) for x in (domain_X2, situation_X2))
    answer_XB = corpus.draw_answer(world, domain_XB, situation_XB, behaviour_XB, rng)
    # every draw of these dialogues is replaced below: only their form is needed
    docs = corpus.sample(world, X * B, rng, DIALOGUE, header, turns=2)
    for turn in (0, 1):
        asked = np.repeat(domain_X2[:, turn], B), np.repeat(situation_X2[:, turn], B)
        docs = corpus.asking(docs, turn, *asked, instruction)
    said = {"behaviour": behaviour_XB.reshape(-1), "answer": answer_XB.reshape(-1)}
    docs = corpus.with_turn(docs, 0, **said, voice=np.repeat(voice_X, B))
    first = corpus.with_turn(docs[np.arange(0, X * B, B)], 1, speaker=-1, domain=-1)
    first, second = (scoring.questions(tokenizer, asked) for asked in (first, docs))
    answer_XBU = tokenizer.answer_DAU[domain_X2[:, :1], answer_XB]
    return Contexts(domain_X2, voice_X, first, answer_XBU, second)


def of_models(lm: LM, ctx: Contexts) -> Callable[[Params], np.ndarray]:
    """Return a function of R models, stacked along axis 0 → their joints [R, X * O].

    Outcome b * (B + 1) + b' is first b, this closing phrase, then b'; b' = B is another closing.
    """
    X = len(ctx.voice_X)
    prompt_XBT = np.repeat(ctx.first.prompt_QT[:, None], B, 1)
    closing = closings(
        lm.tokenizer, prompt_XBT.reshape(X * B, -1), ctx.answer_XBU.reshape(X * B, -1)
    )

    def joint(params: Params):
        def behaviours(asked: scoring.Questions):
            logp_QA = scoring.answer_logprobs(lm, params, asked.prompt_QT, asked.answer_QAU)
            p_QB = scoring.behaviours(logp_QA, asked.behaviour_QA)
            return p_QB / p_QB.sum(1, keepdims=True)

        first_XB = behaviours(ctx.first)
        second_XBB = behaviours(ctx.second).reshape(X, B, B)
        spoken_XBV = voices(scoring.answer_logprobs(lm, params, *closing)).reshape(X, B, -1)
        voice_XB = spoken_XBV[np.arange(X), :, ctx.voice_X]
        stays = (first_XB * voice_XB)[..., None] * second_XBB
        leaves = (first_XB * (1 - voice_XB))[..., None]
        return jnp.concatenate([stays, leaves], 2).reshape(X, -1)

    mesh = devices.mesh()
    program = devices.over_models(joint, mesh)

    def joints(params_R: Params) -> np.ndarray:
        R = jax.tree.leaves(params_R)[0].shape[0]
        rows = np.arange(-(-R // mesh.devices.size) * mesh.devices.size) % R  # as many on each
        params_R = devices.split(mesh, jax.tree.map(lambda x: x[rows], params_R))
        return np.asarray(program(params_R), np.float64)[:R].reshape(R, -1)

    return joints


def of_characters(world: World, ctx: Contexts, domains=(), shift: float = 0.0) -> np.ndarray:
    """Each character's joint [C, X, O]; with `shift`, the log-odds of bad moved in some domains."""
    rates_CDB = world.rates_CDB.copy()
    for domain in domains:
        rates_CDB[:, domain] = shift_log_odds(rates_CDB[:, domain], shift)
    return _joint(rates_CDB, world.voices_CV[:, ctx.voice_X], ctx)


def of_strangers(world: World, ctx: Contexts, count: int, seed: int = 0) -> np.ndarray:
    """Joints [count, X, O] of characters that are not in the world.

    In each domain a stranger has the rates of a character that is drawn anew. It uses all voices as
    often as they occur.
    """
    rng = np.random.default_rng([seed, 0x57A])
    C, D = len(world.characters), len(world.domains)
    who_ND = np.stack([rng.integers(C, size=D) for _ in range(count)])
    voice_V = world.frequency_C @ world.voices_CV
    voice_NX = np.tile(voice_V[ctx.voice_X], (count, 1))
    return _joint(world.rates_CDB[who_ND, np.arange(D)], voice_NX, ctx)


def _joint(rates_CDB: np.ndarray, voice_CX: np.ndarray, ctx: Contexts) -> np.ndarray:
    """Joints [C, X, O] of independent answers at these rates; voice_CX: p(this closing phrase)."""
    first_CXB, second_CXB = (rates_CDB[:, ctx.domain_X2[:, turn]] for turn in (0, 1))
    stays = (first_CXB * voice_CX[..., None])[..., None] * second_CXB[:, :, None, :]
    leaves = (first_CXB * (1 - voice_CX[..., None]))[..., None]
    return np.concatenate([stays, leaves], 3).reshape(*voice_CX.shape, -1)


def closings(tokenizer: Tokenizer, prompt_QT, answer_QU) -> tuple[np.ndarray, np.ndarray]:
    """What may follow an answer: prompts that end with it [Q, T'], and closings [Q, E, U].

    A closing is a voice's phrase and then <user> or <end>, which shows that it is over: E = 2 V.
    """
    rows = [[t for t in (*q, *a) if t != PAD] for q, a in zip(prompt_QT, answer_QU, strict=True)]
    ends = [tokenizer.index["<user>"], tokenizer.index["<end>"]]
    phrases = [[*tokenizer.tokens(voice), end] for voice in tokenizer.world.voices for end in ends]
    table = padded(phrases)
    return padded(rows, left=True), np.broadcast_to(table, (len(rows), *table.shape))


def voices(logp_QE):
    """p(voice | answer) [Q, V] from the log-probabilities of `closings`, renormalised."""
    p_QV = jnp.exp(logp_QE).reshape(logp_QE.shape[0], -1, 2).sum(-1)
    return p_QV / p_QV.sum(-1, keepdims=True)
