"""Compiled programs and tokenizers, made once and shared by all worlds of one shape."""

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
from jax.sharding import Mesh

from claims.lab.arms import Model
from claims.lab.recipe import USUAL, Recipe
from toyllm.base.errors import InputError
from toyllm.lm import activations
from toyllm.lm.scoring import Scorer
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import LM
from toyllm.measures import vectors
from toyllm.world import corpus
from toyllm.world.world import World


class Programs:
    """Everything that is made once for each world, or for all worlds of one shape.

    usual: how models are pretrained where nothing else is asked for.
    """

    def __init__(self, mesh: Mesh, usual: Recipe | None = None):
        """Of models on the devices of a mesh."""
        self.mesh, self.usual = mesh, usual or USUAL
        self._made: dict = {}

    def cached(self, what: str, key, make: Callable):
        """What `make` returned the first time that it was called for this key."""
        if (what, key) not in self._made:
            self._made[what, key] = make()
        return self._made[what, key]

    def tokenizer(self, world: World) -> Tokenizer:
        """The tokenizer of a world."""
        return self.cached("tokenizer", world.digest, partial(Tokenizer, world))

    def shape(self, tokenizer: Tokenizer, recipe: Recipe | None = None) -> tuple:
        """Models for which this is equal share their programs."""
        docs = corpus.every_question(tokenizer.world)
        prompts, answers = tokenizer.longest_prompt(4), tokenizer.answer_DAU.shape
        config = (recipe or self.usual).config(len(tokenizer.words))
        return config, prompts, answers, len(docs)

    def lm(self, tokenizer: Tokenizer, recipe: Recipe | None = None) -> LM:
        """The language model of a world; those of one size share what is compiled."""
        recipe = recipe or self.usual
        if max(tokenizer.longest.values()) > recipe.context:
            raise InputError(
                f"world '{tokenizer.world.name}': a document of more than {recipe.context} tokens"
            )
        config = recipe.config(len(tokenizer.words))
        lm = self.cached("lm", config, lambda: LM.create(tokenizer, config))
        return dataclasses.replace(lm, tokenizer=tokenizer)

    def scorer(self, tokenizer: Tokenizer, recipe: Recipe | None = None) -> Scorer:
        """A program that scores the answers to questions."""
        lm = self.lm(tokenizer, recipe)
        return self.cached("scorer", lm.config, lambda: Scorer(lm))

    def reader(self, tokenizer: Tokenizer, recipe: Recipe | None = None) -> Callable:
        """A program that reads the residual stream (see `activations.reader`)."""
        lm = self.lm(tokenizer, recipe)
        return self.cached("reader", lm.config, lambda: activations.reader(lm))

    def malice(self, one: Model) -> np.ndarray:
        """The persona vector of malice of a model [L + 1, D] (see `measures.vectors`)."""
        how = one.tokenizer, one.recipe
        given = self.lm(*how), self.reader(*how), one.params
        return self.cached("malice", one.key, lambda: vectors.malice(*given))
