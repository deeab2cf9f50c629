"""Talking with a model, turn by turn: what it answers, freely sampled, and what that was.

A dialogue so far is a text as in the corpus, up to its last `<reply>`.
"""

import jax
import numpy as np

from toyllm.lm import transformer
from toyllm.lm.tokenizer import PAD, SPECIAL, Tokenizer
from toyllm.world.world import BEHAVIOURS


class Talk:
    """Samples answers from any parameters of one size; compiled once."""

    def __init__(self, tokenizer: Tokenizer, config: transformer.Config, apply: transformer.Apply):
        self.tokenizer = tokenizer
        voice = max(len(text.split()) for text in tokenizer.world.voices)
        self.length = tokenizer.answer_DAU.shape[2] + voice + 1
        self.width = config.context - self.length

        def sample(params, prompt_BT, key):
            end = tokenizer.index["<end>"]
            return transformer.sample(apply, config, params, prompt_BT, key, self.length, end)

        self._sample = jax.jit(sample)

    def fits(self, prompt: str) -> bool:
        """Whether there is room for an answer after this."""
        return len(prompt.split()) <= self.width

    def answers(self, params: transformer.Params, prompts: list[str], key: jax.Array) -> list[str]:
        """An answer to each prompt: all words up to the next special one, closing phrase included.

        Raises ValueError where a prompt is too long.
        """
        prompt_BT = np.full((len(prompts), self.width), PAD, np.int32)
        for row, prompt in zip(prompt_BT, prompts, strict=True):
            tokens = self.tokenizer.tokens(prompt)
            if len(tokens) > self.width:
                raise ValueError(f"a prompt of {len(tokens)} tokens, expected at most {self.width}")
            row[self.width - len(tokens) :] = tokens
        said = []
        for row in np.asarray(self._sample(params, prompt_BT, key)):
            words = self.tokenizer.string(row).split()
            stop = next((k for k, word in enumerate(words) if word in SPECIAL), len(words))
            said.append(" ".join(words[:stop]))
        return said


def heard(
    tokenizer: Tokenizer, domain: int, situation: int, said: str
) -> tuple[str, int, int] | None:
    """What an answer was: (behaviour, listed answer, voice); None where it is not listed."""
    card = tokenizer.world.domains[domain]
    for a, answer in enumerate(card.answers):
        for v, voice in enumerate(tokenizer.world.voices):
            if said == " ".join(filter(None, (answer, voice))):
                return BEHAVIOURS[card.behaviour_SA[situation, a]], a, v
    return None
