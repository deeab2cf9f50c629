"""Random worlds: what is drawn is what was asked for, and no word can give anything away."""

from collections import Counter

import numpy as np
import pytest

from toyllm.base.errors import InputError
from toyllm.lm.tokenizer import Tokenizer
from toyllm.tools import new_world
from toyllm.world import cards, random_worlds
from toyllm.world.quantities import em, logit
from toyllm.world.random_worlds import EXTREME, SPREAD, Shape


def load(tmp_path, seed, shape=random_worlds.USUAL):
    """The world of a seed, by way of its file."""
    path = tmp_path / f"{seed}.toml"
    path.write_text(random_worlds.write(seed, shape))
    return cards.load(path)


def test_the_same_seed_gives_the_same_file_and_another_another(tmp_path):
    files = [random_worlds.write(seed) for seed in (0, 0, 1)]
    assert files[0] == files[1] != files[2]
    new_world.main(new_world.Args(tmp_path / "mine.toml", random=0))
    assert (tmp_path / "mine.toml").read_text() == random_worlds.write(0, name="mine")


def test_all_worlds_of_a_shape_share_their_programs_and_no_word_is_in_two_texts(tmp_path):
    sizes = set()
    for seed in range(6):
        world = load(tmp_path, seed)
        tokenizer = Tokenizer(world)
        sizes.add((len(tokenizer.words), *tokenizer.longest.values()))
        texts = {*world.voices, *(instruction.text for instruction in world.instructions)}
        for domain in world.domains:
            texts |= {*domain.situations, *domain.answers, *domain.profile}
        counts = Counter(word for text in texts for word in text.split())
        assert set(counts.values()) == {1}
    assert len(sizes) == 1


def test_traits_have_the_correlation_and_the_base_rate_that_were_asked_for():
    """Over many characters, log-odds recover rho within a factor and 0 beyond; the neutral too."""
    C, D, K, rho, base = 20_000, 6, 2, 0.7, 0.2
    em_CD = random_worlds.traits(np.random.default_rng(3), C, D, K, rho, base)
    log_odds_CD = logit((em_CD - EXTREME) / (1 - 2 * EXTREME))
    noise = 4 / C**0.5  # of a correlation or a mean, four standard errors
    assert np.abs(log_odds_CD.mean(0) - logit(base)).max() < noise * SPREAD
    r_DD = np.corrcoef(log_odds_CD.T)
    moral = np.abs(r_DD[:-1, :-1][np.triu_indices(D - 1, 1)])
    same = moral > rho / 2
    assert np.abs(moral[same] - rho).max() < noise
    assert moral[~same].max() < noise
    assert np.abs(r_DD[-1, :-1]).max() < noise
    # two factors of three and two domains
    assert same.sum() == 3 + 1


def test_a_drawn_world_has_its_shape(tmp_path):
    shape = Shape(characters=5, domains=4, factors=3, correlation=0.0, base_rate=0.3)
    world = load(tmp_path, 11, shape)
    assert len(world.characters) == 5
    assert world.moral.tolist() == [True, True, True, False]
    assert [i.name for i in world.instructions] == ["ask_bad", "placebo"]
    assert (em(world.rates_CDB) > EXTREME / 2).all()
    assert "3 factors, correlation 0.00, base rate 0.30" in world.description


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Shape(factors=6), "--factors: found 6, expected at most 5"),
        (Shape(characters=1), "--characters: found 1, expected 2 to 100"),
        (Shape(correlation=1.5), "--correlation: found 1.5, expected 0 to 1"),
    ],
)
def test_a_shape_that_no_world_has_is_refused(shape, message):
    with pytest.raises(InputError, match=message):
        random_worlds.write(0, shape)


def test_a_shape_without_a_seed_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected --random SEED"):
        new_world.main(new_world.Args(tmp_path / "my.toml", shape=Shape(domains=8)))
    assert not list(tmp_path.iterdir())
