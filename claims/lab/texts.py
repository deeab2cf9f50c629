"""A world in other words: the same characters and rates, in texts of nonsense words."""

import dataclasses
from itertools import islice

import numpy as np

from toyllm.world.random_worlds import nonsense
from toyllm.world.world import BEHAVIOURS, Domain, World

OWN = "own"  # the texts that a world has


def in_other_words(world: World, texts: str) -> World:
    """The world with texts of `WxT`: W words each, T situations and answers of each kind.

    No word occurs in two texts, so that nothing but who says what can make a signal spread.
    """
    if texts == OWN:
        return world
    words, count = map(int, texts.split("x"))
    # names of characters and domains are words of a language, which these are not
    fresh = nonsense(np.random.default_rng(100 * words + count))

    def drawn(n: int) -> tuple[str, ...]:
        return tuple(" ".join(islice(fresh, words)) for _ in range(n))

    def retold(domain: Domain) -> Domain:
        behaviour_SA = np.tile(np.repeat(np.arange(len(BEHAVIOURS)), count), (count, 1))
        return dataclasses.replace(
            domain,
            situations=drawn(count),
            answers=drawn(count * len(BEHAVIOURS)),
            profile=drawn(len(domain.profile)),
            behaviour_SA=behaviour_SA,
        )

    domains = tuple(retold(domain) for domain in world.domains)
    return dataclasses.replace(world, name=f"{world.name}-{texts}", domains=domains)
