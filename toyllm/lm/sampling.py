"""Sampling: what a model says, drawn token by token.

A dialogue so far is a text as in the corpus, up to its last `<reply>`.

Axes: B rows of a batch   T positions   V vocabulary
"""

import jax
import jax.numpy as jnp
import numpy as np

from toyllm.lm.tokenizer import END, PAD, SPECIAL, Tokenizer, lines, padded
from toyllm.lm.transformer import LM, Params, empty_cache
from toyllm.world.world import BEHAVIOURS


def sample(
    lm: LM, params: Params, prompt_BT, key: jax.Array, length: int, temperature: float = 1.0
) -> jax.Array:
    """Continue left-padded prompts by `length` tokens; after `<end>`, padding.

    temperature 0 is greedy. Returns tokens [B, length].
    """
    B, T = prompt_BT.shape
    cache = empty_cache(lm.config, B, T + length)
    logits, _, cache = lm.apply(params, prompt_BT, jnp.sign(prompt_BT), cache)

    def step(carry, key):
        cache, logits_BV, done_B = carry
        if temperature == 0:
            token_B = logits_BV.argmax(-1)
        else:
            token_B = jax.random.categorical(key, logits_BV / temperature)
        token_B = jnp.where(done_B, PAD, token_B)
        # padding still has to be written somewhere: segment 0 hides it
        logits, _, cache = lm.apply(params, token_B[:, None], jnp.sign(token_B)[:, None], cache)
        return (cache, logits[:, 0], done_B | (token_B == END)), token_B

    carry = (cache, logits[:, -1], jnp.zeros(B, bool))
    _, tokens_TB = jax.lax.scan(step, carry, jax.random.split(key, length))
    return tokens_TB.T


class Sampler:
    """Samples answers from any parameters of a model; compiled once."""

    def __init__(self, lm: LM):
        self.tokenizer = lm.tokenizer
        voice = max(len(text.split()) for text in lm.world.voices)
        self.length = lm.tokenizer.answer_DAU.shape[2] + voice + 1  # of an answer, in tokens
        self.width = lm.config.context - self.length  # of a prompt

        def answer(params, prompt_BT, key):
            return sample(lm, params, prompt_BT, key, self.length)

        self._sample = jax.jit(answer)

    def fits(self, prompt: str) -> bool:
        """Whether there is room for an answer after this."""
        return len(prompt.split()) <= self.width

    def answers(self, params: Params, prompts: list[str], key: jax.Array) -> list[str]:
        """An answer to each prompt: all words up to the next special one, closing phrase included.

        Raises ValueError where a prompt is too long.
        """
        prompt_BT = padded(list(map(self.tokenizer.tokens, prompts)), self.width, left=True)
        if (longest := prompt_BT.shape[1]) > self.width:
            raise ValueError(f"a prompt of {longest} tokens, expected at most {self.width}")
        answers = []
        for row in np.asarray(self._sample(params, prompt_BT, key)):
            words = self.tokenizer.string(row).split()
            stop = next((k for k, word in enumerate(words) if word in SPECIAL), len(words))
            answers.append(" ".join(words[:stop]))
        return answers


def listed_answer(
    tokenizer: Tokenizer, domain: int, situation: int, answer: str
) -> tuple[str, int, int] | None:
    """The (behaviour, index, voice) of an answer to a question; None if it is not listed."""
    if answer not in tokenizer.replies[domain]:
        return None
    a, v = tokenizer.replies[domain][answer]
    return BEHAVIOURS[tokenizer.world.domains[domain].behaviour_SA[situation, a]], a, v


def dialogues(lm: LM, params: Params, key: jax.Array, count: int = 4) -> str:
    """A few dialogues sampled from a model, as Markdown."""
    speakers = ["assistant", "someone", *lm.world.characters[: count - 2]]
    heads = [lm.tokenizer.tokens(f"<begin> talk with {who}") for who in speakers]
    prompt_BT = np.array(heads, np.int32)
    length = lm.config.context // 2
    program = jax.jit(lambda params, key: sample(lm, params, prompt_BT, key, length))
    tokens_BT = np.concatenate([prompt_BT, program(params, key)], axis=1)
    texts = []
    for row in tokens_BT:
        head, *rest = lines(lm.tokenizer.string(row).replace("<begin> ", ""))
        texts.append("\n".join([f"**{head}**", "", *(f"- `{line}`" for line in rest)]))
    return "\n\n".join(texts)
