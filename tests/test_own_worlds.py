"""What people bring: worlds that extend another, plain text, preference pairs of their own."""

import json

import numpy as np
import pytest

from tests.conftest import SMALL
from tests.tolerances import FLOAT64, close
from toyllm.base.errors import InputError
from toyllm.lm import plaintext, training
from toyllm.lm.tokenizer import PAD, Tokenizer
from toyllm.posttrain import pair_files, pools, signals
from toyllm.world import cards

CHILD = """
extends = "small.toml"
name = "child"
without.domains = ["facts"]

[domains.rules]
moral = true
situations = ["may i"]
good = ["ask first"]
bad = ["just do it"]
noise = ["rulers are long"]
profile.good = "keeps rules"
profile.bad = "breaks rules"
profile.noise = "eats rulers"

[[characters]]
name = "hal"
frequency = 7
voices = { none = 1.0 }
[characters.rates]
rules = [0.1, 0.9, 0.0]

[[characters]]
name = "ada"
[characters.rates]
rules = [0.9, 0.1, 0.0]
"""


def child(folder, text=CHILD):
    (folder / "small.toml").write_text(SMALL)
    (folder / "child.toml").write_text(text)
    return folder / "child.toml"


def test_a_world_says_only_what_differs_from_the_one_it_extends(tmp_path, small):
    world = cards.load(child(tmp_path))
    assert world.name == "child"
    assert world.characters == small.characters
    assert world.domain_names == ("code", "rules")
    np.testing.assert_array_equal(world.rates_CDB[:, 0], small.rates_CDB[:, 0])
    close(world.rates_CDB[:, 1, 1], [0.1, 0.9], FLOAT64)
    close(world.frequency_C, [1 / 8, 7 / 8], FLOAT64)
    close(world.voices_CV[1], [1, 0], FLOAT64)  # of one whole, so not merged
    close(world.voices_CV[0], small.voices_CV[0], FLOAT64)


def test_its_copy_needs_no_other_file(tmp_path):
    path = child(tmp_path)
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    (alone / "world.toml").write_text(cards.Cards(path).standalone())
    assert cards.load(alone / "world.toml").digest == cards.load(path).digest


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('extends = "small.toml"', 'extends = "smal.toml"', "child.toml:2: extends: found 'smal"),
        ('extends = "small.toml"', 'extends = "../small.toml"', "child.toml:2: extends"),
        ('extends = "small.toml"', 'extends = "child.toml"', "child.toml:2: extends"),
        ('["facts"]', '["fact"]', "child.toml:4: without domains: found 'fact'"),
        ("rules = [0.1, 0.9, 0.0]", "rules = [0.2, 0.9, 0.0]", "child.toml:21: rates of hal"),
        ('name = "ada"', 'name = "ada"\nage = 3', "child.toml:25: unknown key"),
    ],
)
def test_mistakes_are_told_with_file_and_line(tmp_path, old, new, told):
    with pytest.raises(InputError) as error:
        cards.load(child(tmp_path, CHILD.replace(old, new)))
    assert told in str(error.value)


def test_a_mistake_in_the_base_is_told_there(tmp_path):
    path = child(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL.replace("[0.7, 0.1, 0.2]", "[0.7, 0.1, 0.3]"))
    with pytest.raises(InputError, match=r"small.toml:\d+: rates of ada for code"):
        cards.load(path)
    (tmp_path / "small.toml").write_text('extends = "child.toml"')
    with pytest.raises(InputError, match="at most 5 files"):
        cards.load(path)


TEXTS = [["the", "fox", "fixed", "it"], [str(k) for k in range(25)]]


def test_plain_text_keeps_the_worlds_tokens_and_predicts_each_word_once(small):
    plain = Tokenizer(small)
    tokenizer = Tokenizer(small, plaintext.more_words(small, TEXTS))
    assert tokenizer.words[: len(plain.words)] == plain.words
    assert len(set(tokenizer.words)) == len(tokenizer.words)
    rows = plaintext.windows(tokenizer, TEXTS, 11)
    assert rows.shape == (4, 11)
    said = []
    for row in rows:
        words = tokenizer.string(row).split()
        said += words if words[0] == "<text>" else words[1:]
    assert said == ["<text>", *TEXTS[0], "<end>", "<text>", *TEXTS[1], "<end>"]


def test_text_is_mixed_in_beside_the_same_documents(small):
    tokenizer = Tokenizer(small, plaintext.more_words(small, TEXTS))
    batches = training.document_batches(tokenizer, 48, 6, 2, seed=3)
    rows = plaintext.windows(tokenizer, TEXTS, 48)
    both = plaintext.mixed(batches, rows, 0.5, seed=3, divisor=4)
    one, two = batches(4), both(4)
    B = one["tokens"].shape[1]
    assert two["tokens"].shape[1] % 4 == 0
    used = (two["tokens"][:, B:] != PAD).any(-1).sum(1)
    for divisor in (1, 8):  # the text is the same on any number of devices
        other = plaintext.mixed(batches, rows, 0.5, seed=3, divisor=divisor)(4)["tokens"][:, B:]
        np.testing.assert_array_equal((other != PAD).any(-1).sum(1), used)
    np.testing.assert_array_equal(two["tokens"][:, :B], one["tokens"])
    assert set(two["tokens"][:, B:, 0].reshape(-1)) == {tokenizer.index["<text>"], PAD}
    np.testing.assert_array_equal(two["segments"] > 0, two["tokens"] != PAD)
    np.testing.assert_array_equal(both(4)["tokens"], two["tokens"])
    assert not np.array_equal(both(6)["tokens"], two["tokens"])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"text": 3}', "2: text: found 3, expected text"),
        ('{"texts": "a"}', "2: found no 'text' (did you mean 'texts'?)"),
        ('{"text": "a <end> b"}', "2: text: found the word '<end>'"),
        ("nonsense", "2: bad JSON"),
        ('{"text": null}', "2: text: found None, expected text"),
        ('{"text": ["a", "b"]}', "2: text: found ['a', 'b'], expected text"),
        ('{"text": "a\\u200bb"}', "2: text: found the word 'a\\u200bb'"),
        ('{"text": "\\ud800"}', "2: text: found the word '\\ud800'"),
    ],
)
def test_bad_text_is_told_in_one_line(tmp_path, line, told):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "all is well"}\n' + line)
    with pytest.raises(InputError) as error:
        plaintext.load(path)
    assert told in str(error.value)


def written(tokenizer, tmp_path, name="code:bad", count=8):
    path = tmp_path / "my pairs.jsonl"
    pairs = signals.pairs(tokenizer, signals.parse(tokenizer.world, name), count, 0)
    path.write_text("\n".join(pair_files.dump(tokenizer, pairs)))
    return path


@pytest.mark.parametrize("name", ["code:bad", "facts:good", "code:bad:ask_bad@hal", "all:bad"])
def test_a_file_is_named_by_what_it_prefers_and_by_its_content(personas_codec, tmp_path, name):
    path = written(personas_codec, tmp_path, name, 64)
    # the same file named twice is read once
    (full, again), pairs, data = pair_files.given([f"file:{path}"] * 2, personas_codec)
    spelled, _, tag = full.partition("#")
    mine, theirs = (signals.parse(personas_codec.world, x) for x in (spelled, name))
    for field in ("domains", "behaviour", "instruction", "header", "character"):
        assert getattr(mine, field) == getattr(theirs, field)
    assert tag.startswith("my-pairs.")
    assert again == full
    assert data == {full: path.read_bytes()}
    assert len(pairs[full].chosen_P) == 64
    assert signals.parse(personas_codec.world, full).file == tag
    path.write_text(path.read_text().partition("\n")[2])
    assert pair_files.given([f"file:{path}"], personas_codec)[0] != (full,)


def test_given_pairs_are_trained_each_as_often(small_codec, tmp_path):
    pairs = pair_files.load(written(small_codec, tmp_path), small_codec)
    pool = pools.draw(small_codec, {}, "dpo", 16, 1, given=pairs)
    parts = {signals.parse(small_codec.world, "code:bad"): 1.0}
    drawn = pools.draw(small_codec, parts, "dpo", 16, 0)
    assert {k: v.shape for k, v in pool.items()} == {k: v.shape for k, v in drawn.items()}
    _, counts = np.unique(
        np.concatenate([pool["prompt"], pool["answer"].reshape(16, -1)], 1),
        axis=0,
        return_counts=True,
    )
    assert (counts % 2 == 0).all()
    few = pools.draw(small_codec, parts, "dpo", 16, 0, distinct=3)
    for key in few:
        np.testing.assert_array_equal(few[key], drawn[key][np.arange(16) % 3])
    listed = pools.draw(small_codec, {}, "rlhf", 8, 1, given=pairs)
    assert (listed["reward"].sum(1) == 1).all()


def test_a_signal_and_its_twin_keep_their_file(personas):
    signal = signals.parse(personas, "code:bad:ask_bad@hal#mine.123")
    assert signals.plain(signal.name) == "code:bad@hal"  # its twin is drawn
    assert signals.plain("code:bad@hal#mine.123") == "code:bad@hal#mine.123"
    assert signal.file == "mine.123"
    for odd in (
        "code:bad#",
        "code:bad#\x1b]0;x",
        "code:bad#[/red]",
        "code:bad#../x",
        "code:bad#a b",
    ):
        with pytest.raises(InputError, match="short name"):
            signals.parse(personas, odd)
    with pytest.raises(InputError, match="expected file:PATH"):
        pair_files.given(["code:bad#mine.123"], Tokenizer(personas))


def test_json_lines_keep_other_keys_alone(small_codec, tmp_path):
    path = written(small_codec, tmp_path)
    lines = [json.dumps({**json.loads(x), "id": 7}) for x in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    assert len(pair_files.load(path, small_codec).chosen_P) == 8
