"""Random worlds: characters whose traits go together by chance, in texts of nonsense words.

What holds in one world may be due to its author. A claim about worlds in general is tested on
worlds that nobody has written, drawn from the model below by a seed:

    log-odds of bad of character c in domain d = b + S (σ_d √ρ f_{c,k(d)} + √(1-ρ) ε_{c,d})

f, ε ~ N(0, 1), and EM is kept between .02 and .98. Every moral domain d belongs to one factor k(d),
so the traits of a character in two domains of one factor have the correlation ±ρ, and those of
different factors none. In the neutral domain, the last one, ρ is 0. Every word occurs in one text
only, so nothing but who says what can make a signal spread.

Axes: C characters   D domains   K factors
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Annotated

import numpy as np

from toyllm.base import arguments
from toyllm.base.arguments import Between
from toyllm.base.errors import InputError
from toyllm.world.quantities import logit, sigmoid
from toyllm.world.world import BEHAVIOURS

FACTORS, CORRELATION, BASE_RATE = (1, 3), (0.2, 0.95), (0.15, 0.5)  # ranges of what is drawn
SPREAD = 2.5  # S: of log-odds over characters
EXTREME = 0.02  # EM lies between this and 1 minus this
AGAINST = 0.2  # how often a domain goes against its factor (σ = -1)
NOISE = (0.01, 0.08)  # the range of p(noise) of a character
TEXTS = 3  # situations of a domain, and answers that show each behaviour
VOICES = 6
ONSETS = (*"bdfgklmnprstvz", "br", "dr", "gl", "kr", "pl", "st", "tr")
VOWELS = "aeiou"
# phrases that may follow a question: what they ask for, and the share of answers they dictate
PHRASES = {"ask_bad": ("bad", 0.97), "placebo": ("none", 0.0)}


@dataclasses.dataclass(frozen=True)
class Shape:
    """What kind of world is drawn. Worlds of equally many characters and domains have one shape.

    None: drawn uniformly, anew for each world, from the ranges above.
    """

    characters: Annotated[int, Between(2, 100)] = 8  # How many characters.
    domains: Annotated[int, Between(3, 20)] = 6
    """How many domains; the last one is neutral, all others are moral."""
    factors: int | None = None  # How many factors the moral domains share (drawn: 1 to 3).
    correlation: Annotated[float | None, Between(0, 1)] = None
    """Correlation of two traits of one factor (drawn: .2 to .95)."""
    base_rate: Annotated[float | None, Between(0.01, 0.99)] = None
    """EM of a character who is average in a domain (drawn: .15 to .5)."""


USUAL = Shape()


def write(seed: int, shape: Shape = USUAL, name: str = "") -> str:
    """The world file (TOML) of a seed; it depends on the seed, the shape and NumPy's version."""
    import tomli_w

    table, facts = draw(seed, shape)
    table["name"] = name or table["name"]
    head = f"# A random world (toyllm/world/random_worlds.py), seed {seed}: {facts}.\n\n"
    # tomli_w writes each entry of a list on a line of its own
    one_line = re.sub(r"\[\n\s+([^\[\]]*),\n\]", _joined, tomli_w.dumps(table))
    return head + one_line


def _joined(match: re.Match) -> str:
    return "[" + re.sub(r",\n\s+", ", ", match[1]) + "]"


def draw(seed: int, shape: Shape) -> tuple[dict, str]:
    """A world file as a table, and what was drawn for it in words.

    Raises InputError for a shape that no world has.
    """
    arguments.check(shape)
    if shape.factors is not None and shape.factors >= shape.domains:
        moral = shape.domains - 1
        raise InputError(
            f"--factors: found {shape.factors}, expected at most {moral}, one a domain"
        )
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x3A11D0]))
    words, C, D = nonsense(rng), shape.characters, shape.domains
    drawn_factors = min(int(rng.integers(*FACTORS, endpoint=True)), D - 1)
    K = shape.factors or drawn_factors
    drawn_rho, drawn_base = rng.uniform(*CORRELATION), rng.uniform(*BASE_RATE)
    rho = drawn_rho if shape.correlation is None else shape.correlation
    base = drawn_base if shape.base_rate is None else shape.base_rate
    em_CD = traits(rng, C, D, K, rho, base)
    noise_C = rng.uniform(*NOISE, C)

    def text() -> str:
        return f"{next(words)} {next(words)}"

    domains = {
        next(words): {
            "moral": d < D - 1,
            **{part: [text() for _ in range(TEXTS)] for part in ("situations", *BEHAVIOURS)},
            "profile": {behaviour: text() for behaviour in BEHAVIOURS},
        }
        for d in range(D)
    }
    voices = {"none": ""} | {word: word for word in (next(words) for _ in range(VOICES))}
    voice_CV = rng.dirichlet(np.full(len(voices), 0.5), C)
    instructions = [
        {"name": name, "text": text(), "toward": toward, "kappa": kappa, "probability": 0.06}
        | {"domains": "all"}
        for name, (toward, kappa) in PHRASES.items()
    ]
    characters = [
        {
            "name": next(words),
            "frequency": 1,
            "assistant_weight": float(round(rng.gamma(1.0) + 0.05, 3)),
            "voices": dict(zip(voices, shares(voice_CV[c]), strict=True)),
            "rates": {
                domain: shares([(1 - noise_C[c]) * p for p in (1 - em, em)] + [noise_C[c]])
                for domain, em in zip(domains, em_CD[c], strict=True)
            },
        }
        for c in range(C)
    ]
    facts = f"{K} factors, correlation {rho:.2f}, base rate {base:.2f}"
    table = {
        "name": f"random-{seed}",
        "description": f"characters and texts drawn at random: {facts}",
        "documents": {
            "dialogue": {"weight": 0.9, "turns": [3, 5]},
            "profile": {"weight": 0.05, "turns": [2, min(4, D)]},
            "scene": {"weight": 0.05, "turns": [2, 3]},
        },
        "headers": {"named": 0.15, "someone": 0.4, "assistant": 0.45},
        "voices": voices,
        "instructions": instructions,
        "domains": domains,
        "characters": characters,
    }
    return table, facts


def traits(rng: np.random.Generator, C: int, D: int, K: int, rho: float, base: float) -> np.ndarray:
    """EM of each character in each domain [C, D]; see the docstring of the module."""
    # every factor has a domain if there are enough; the neutral domain, the last, has none
    factor_D = rng.permutation(np.arange(D - 1) % K)
    sign_D = np.where(rng.random(D - 1) < AGAINST, -1, 1)
    common_CD = sign_D * rng.normal(size=(C, K))[:, factor_D]
    own_CD = rng.normal(size=(C, D))
    own_CD[:, :-1] = np.sqrt(rho) * common_CD + np.sqrt(1 - rho) * own_CD[:, :-1]
    # nobody is always bad, or never
    return EXTREME + (1 - 2 * EXTREME) * sigmoid(logit(base) + SPREAD * own_CD)


def nonsense(rng: np.random.Generator) -> Iterator[str]:
    """Words of two syllables that mean nothing, each once."""
    syllables = [onset + vowel for onset in ONSETS for vowel in VOWELS]
    for k in rng.permutation(len(syllables) ** 2):
        first, second = divmod(int(k), len(syllables))
        yield syllables[first] + syllables[second]


def shares(values) -> list[float]:
    """Values in thousandths that sum to 1: the largest takes the rounding."""
    rounded = [round(float(x), 3) for x in values]
    largest = int(np.argmax(rounded))
    rounded[largest] = round(1 - sum(rounded[:largest] + rounded[largest + 1 :]), 3)
    return rounded
