"""A language model of a world: its words, its sizes, and the function that applies parameters."""

import dataclasses
from collections.abc import Callable

import jax

from toyllm.lm import transformer
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import Apply, Config, Params
from toyllm.world.world import World


@dataclasses.dataclass(frozen=True, eq=False)
class LM:
    """Everything about a language model but its parameters, which are plain dicts of arrays.

    apply: (params, tokens, segments, cache, add) → logits, residual streams, cache (see
        `transformer.Transformer`).
    init: a random key → parameters.
    """

    tokenizer: Tokenizer
    config: Config
    apply: Apply
    init: Callable[[jax.Array], Params]

    @staticmethod
    def create(tokenizer: Tokenizer, config: Config) -> "LM":
        """A language model that speaks a world's words."""
        return LM(tokenizer, config, *transformer.create(config))

    @property
    def world(self) -> World:
        """The world whose documents it models."""
        return self.tokenizer.world

    @property
    def shapes(self) -> Params:
        """The shapes and dtypes of its parameters."""
        return transformer.shapes(self.config)

    def steered(self, add_LD) -> "LM":
        """The same model with vectors [L + 1, D] added to the residual stream at every token.

        Vector l is added to the stream that enters block l; vector L enters the last norm.
        """

        def apply(params, tokens_BT, segments_BT=None, cache=None):
            return self.apply(params, tokens_BT, segments_BT, cache, add_LD)

        return dataclasses.replace(self, apply=apply)
