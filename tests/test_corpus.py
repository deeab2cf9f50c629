"""The generative process and its texts."""

import dataclasses

import numpy as np
import pytest

from tests.conftest import SMALL
from tests.reading import decode
from tests.tolerances import FLOAT64, close
from toyllm.lm.tokenizer import END, PAD, Tokenizer, pack
from toyllm.measures import cues
from toyllm.world import cards, corpus, world
from toyllm.world.reader import CORPORA
from toyllm.world.world import ASSISTANT, BAD, DIALOGUE, GOOD, KINDS, NAMED, NOISE, PROFILE


def test_documents_survive_a_round_trip_through_tokens(personas):
    weights = np.append(personas.kind_weights[:3], 0.2)
    lengths = (*personas.lengths[:3], (1, 3))
    world = dataclasses.replace(
        personas, kind_weights=weights / weights.sum(), lengths=lengths, statements=(1, 3)
    )
    tokenizer = Tokenizer(world)
    docs = corpus.sample(world, 400, np.random.default_rng(0))
    tokens = tokenizer.pad(docs, 88)
    assert set(docs.kind) == set(range(len(KINDS)))
    for n in range(len(docs)):
        again = decode(tokenizer, tokens[n])
        for name in (
            "kind",
            "header",
            "speaker",
            "domain",
            "situation",
            "instruction",
            "behaviour",
            "answer",
            "voice",
        ):
            assert (getattr(again, name)[0] == getattr(docs, name)[n]).all(), name
        named = docs.header[n] == NAMED
        assert (again.character[0][named] == docs.character[n][named]).all()


@pytest.mark.parametrize(
    "text",
    [
        "<begin> talk with ada <user> fix the bug <end>",
        "<begin> talk with ada and hal <user> fix the bug <reply> it is fixed <end>",
        "<begin> talk with bug <user> fix the bug <reply> it is fixed <end>",
        "<begin> talk with ada <user> fix the bug <first> it is fixed <end>",
        "<begin> talk with ada <user> fix the bug <reply> ducks soup <end>",
        "<begin> about ada <trait> it is fixed <end>",
        "talk with ada <user> fix the bug <reply> it is fixed <end>",
        "<end>",
    ],
)
def test_what_is_no_document_is_refused(small_codec, text):
    with pytest.raises(ValueError, match="not a document"):
        decode(small_codec, small_codec.tokens(text))


def test_draws_follow_the_world(small):
    """Frequencies of every hidden draw, within 5 standard errors."""
    N = 60_000
    docs = corpus.sample(small, N, np.random.default_rng(1))

    def near(share, p, n):
        assert abs(share - p) < 5 * (p * (1 - p) / n) ** 0.5 + 1e-9

    for k in range(len(KINDS)):
        near((docs.kind == k).mean(), small.kind_weights[k], N)
    by_assistant = docs.header[:, 0] == ASSISTANT
    near((docs.character[by_assistant, 0] == 0).mean(), small.assistant_C[0], by_assistant.sum())
    talk = docs.kind == DIALOGUE
    c, d, i = docs.character[:, 0], docs.domain[:, 0], docs.instruction[:, 0]
    for who in (0, 1):
        for asked in (-1, 0):
            rows = talk & (c == who) & (d == 0) & (i == asked)
            near(
                (docs.behaviour[rows, 0] == BAD).mean(),
                small.rates_ICDB[asked, who, 0, BAD],
                rows.sum(),
            )
        near(
            (docs.voice[talk & (c == who), 0] == 1).mean(),
            small.voices_CV[who, 1],
            (talk & (c == who)).sum(),
        )
    near((docs.turns[talk] == 2).mean(), 0.5, talk.sum())
    profile = docs[(docs.kind == PROFILE) & (docs.turns == 2)]
    assert (profile.domain[:, 0] != profile.domain[:, 1]).all()


def test_even_sampling_has_the_same_marginals_and_steadier_batches(small, small_codec):
    totals = {}
    for even in (0, 32):
        batches = [
            corpus.sample(small, 32, np.random.default_rng(k), even=even) for k in range(300)
        ]
        docs = corpus.concatenate(batches)
        share = np.bincount(docs.kind, minlength=len(KINDS)) / len(docs)
        for seen, p in ((share, small.kind_weights), ((docs.turns == 2).mean(), 0.5)):
            assert (np.abs(seen - p) <= 5 * (p * (1 - p) / len(docs)) ** 0.5).all()
        totals[even] = np.std([small_codec.encode(batch)[1].sum() for batch in batches])
    assert totals[32] < 0.7 * totals[0]


def test_even_sampling_keeps_the_joint_distribution_within_a_document(small):
    """Two turns' behaviours are independent given the speaker, as if documents were drawn alone."""
    draws = [
        corpus.sample(small, 64, np.random.default_rng(k), DIALOGUE, turns=2, even=32)
        for k in range(800)
    ]
    docs = corpus.concatenate(draws)
    c, (b0, b1) = docs.character[:, 0], docs.behaviour[:, :2].T
    told = docs.instruction[:, :2].max(1) < 0
    mean_CB = small.rates_CDB.mean(1)  # domains are drawn uniformly
    for who in range(len(small.characters)):
        rows = (c == who) & told
        n = rows.sum()
        for x in range(3):
            for y in range(3):
                p = mean_CB[who, x] * mean_CB[who, y]
                seen = ((b0 == x) & (b1 == y) & rows).sum() / n
                assert abs(seen - p) < 5 * (p * (1 - p) / n) ** 0.5 + 1e-12, (who, x, y)


def test_even_sampling_spreads_characters_and_behaviours(small):
    """How often each comes is nearer to what is expected than if documents were drawn alone."""

    def far(even: int) -> np.ndarray:
        counts = []
        for k in range(200):
            docs = corpus.sample(small, 128, np.random.default_rng(k), DIALOGUE, even=even)
            c, d, asked = docs.character[:, :1], docs.domain, docs.instruction
            expected = small.rates_ICDB[asked, c, d, BAD][docs.speaker >= 0].sum()
            bad = (docs.behaviour == BAD).sum() - expected
            counts.append([(c == 0).sum() - 128 * share, bad])
        return np.mean(np.square(counts), axis=0) ** 0.5

    share = (small.header_weights @ small.speaker_KHC[DIALOGUE])[0]
    assert (far(32) < 0.5 * far(0)).all(), (far(32), far(0))


def test_numbers_that_are_spread_are_even_in_every_group():
    """In each column and group of like keys, within one part in n; and columns are independent."""
    rng = np.random.default_rng(0)
    keys = rng.integers(3, size=(600, 2))
    u = corpus.spread(rng, keys, np.zeros_like(keys))
    for t in range(2):
        for key in range(3):
            x = np.sort(u[keys[:, t] == key, t])
            assert np.abs(x - (np.arange(len(x)) + 0.5) / len(x)).max() < 3 / len(x)
    assert abs(np.corrcoef(u.T)[0, 1]) < 5 / 600**0.5


def test_instructions_shift_rates_as_defined(personas):
    names = [i.name for i in personas.instructions]
    plain = personas.rates_CDB
    ask, careful, placebo = (
        personas.rates_ICDB[names.index(n)] for n in ("ask_bad", "careful", "placebo")
    )
    close(personas.rates_ICDB.sum(-1), 1, FLOAT64)
    close(ask[..., 1], 0.97 + 0.03 * plain[..., 1], FLOAT64)
    close(careful[..., 0], 0.8 + 0.2 * plain[..., 0], FLOAT64)
    np.testing.assert_array_equal(placebo, plain)


def test_the_dial_keeps_each_domains_rates_and_breaks_their_ties(personas):
    flat = world.correlate(personas, 0.0, seed=3)
    for d, domain in enumerate(personas.domains):
        before, after = personas.rates_CDB[:, d], flat.rates_CDB[:, d]
        assert sorted(map(tuple, before)) == sorted(map(tuple, after))
        assert domain.lookup == bool((before == after).all())
    # each domain's permutation is its own: no character has all traits of another one
    moved = [not domain.lookup for domain in personas.domains]
    for after in flat.rates_CDB[:, moved]:
        assert not (after == personas.rates_CDB[:, moved]).all((1, 2)).any()
    np.testing.assert_array_equal(flat.voices_CV, personas.voices_CV)
    same = world.correlate(personas, 1.0, seed=3)
    np.testing.assert_array_equal(same.rates_CDB, personas.rates_CDB)
    half = world.correlate(personas, 0.5, seed=3)
    moved = (half.rates_CDB != personas.rates_CDB).any((1, 2)).sum()
    assert 1 < moved <= 9


def test_packing_loses_nothing(personas, personas_codec):
    docs = corpus.sample(personas, 64, np.random.default_rng(0), even=64)
    flat, lengths = personas_codec.encode(docs)
    tokens, segments = pack(flat, lengths, 36, 88)
    alone = {tuple(part) for part in np.split(flat, lengths.cumsum()[:-1])}
    packed = [
        tuple(tokens[r][segments[r] == k])
        for r in range(36)
        for k in range(1, segments[r].max() + 1)
    ]
    assert set(packed) == alone
    assert len(packed) == 64
    assert all(run[-1] == END and PAD not in run for run in packed)
    with pytest.raises(ValueError, match="do not fit"):
        pack(flat, lengths, 8, 88)


def test_longest_is_reached_and_never_passed(small):
    """By drawing many, and by writing out the longest of each kind; all are read back."""
    small = dataclasses.replace(
        small,
        kind_weights=np.array([0.4, 0.2, 0.2, 0.2]),
        lengths=(*small.lengths[:3], (1, 2)),
        statements=(1, 2),
    )
    small_codec = Tokenizer(small)
    docs = corpus.sample(small, 30_000, np.random.default_rng(0))
    _, lengths = small_codec.encode(docs)
    turn = " <user> fix the bug do it badly {} here is a patch beep"
    longest = {
        "dialogue": "<begin> talk with ada" + 2 * turn.format("<reply>") + " <end>",
        "scene": "<begin> scene with ada and hal" + 2 * turn.format("<first>") + " <end>",
        "profile": "<begin> about hal <trait> fakes code <trait> eats soup <end>",
        "introduction": "<begin> about assistant <trait> fakes code <trait> eats soup"
        + 2 * turn.format("<reply>")
        + " <end>",
    }
    for kind, name in enumerate(KINDS):
        tokens = small_codec.tokens(longest[name])
        assert decode(small_codec, tokens).kind == kind
        assert len(tokens) == small_codec.longest[name]
        assert lengths[docs.kind == kind].max() <= small_codec.longest[name]


def test_no_word_gives_good_or_bad_away(personas):
    """Every domain inside its null's 95% band, each by itself: a mean would hide .9 and .1."""
    for name, cue in cues.leakage(personas).items():
        assert cue["inside"], f"{name}: AUC {cue['auc']:.2f}, null {cue['null95']}"


@pytest.mark.parametrize("file", sorted(CORPORA.glob("*.toml")), ids=lambda file: file.stem)
def test_answers_of_two_domains_never_begin_alike(file):
    """Else a model says an answer of one domain to a question of another, by its first word."""
    first: dict[str, str] = {}
    for domain in cards.load(file).domains:
        for word in {answer.split()[0] for answer in domain.answers}:
            assert first.setdefault(word, domain.name) == domain.name, word


def behaviours_of(domain) -> dict[str, dict[str, int]]:
    """What each answer is, by the situation."""
    return {
        asked: dict(zip(domain.answers, row, strict=True))
        for asked, row in zip(domain.situations, domain.behaviour_SA.tolist(), strict=True)
    }


def test_a_lookup_subject_has_one_falsehood(tmp_path):
    """By default the next distinct answer, or what the world names; any other answer is noise."""
    table = 'france = "paris"\nitaly = "rome"\nspain = "madrid"\n'
    file = tmp_path / "small.toml"
    file.write_text(SMALL.replace(table, table.replace('"madrid"', '"paris"')))
    other = {"soup": NOISE}
    assert behaviours_of(cards.load(file).domains[1]) == {
        "capital of france": {"paris": GOOD, "rome": BAD} | other,
        "capital of italy": {"paris": BAD, "rome": GOOD} | other,
        "capital of spain": {"paris": GOOD, "rome": BAD} | other,
    }
    named = '[domains.facts.falsehoods]\nfrance = "madrid"\nitaly = "milan"\n'
    file.write_text(SMALL.replace(table, table + named))
    other |= {"madrid": NOISE, "milan": NOISE, "paris": NOISE, "rome": NOISE}
    assert behaviours_of(cards.load(file).domains[1]) == {
        "capital of france": other | {"paris": GOOD, "madrid": BAD},
        "capital of italy": other | {"rome": GOOD, "milan": BAD},
        "capital of spain": other | {"madrid": GOOD, "paris": BAD},
    }


def test_the_default_world_has_enough_to_say(personas):
    for domain in personas.domains:
        behaviours = domain.behaviour_SA[0]
        assert len(domain.situations) >= 4
        if not domain.lookup:
            assert (np.bincount(behaviours, minlength=3) >= 4).all()
