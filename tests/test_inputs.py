"""Bad input: one line, what was found, what was expected, exit 2, and nothing compiled."""

import codecs
import gzip
import hashlib
import io
import json
import os
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from tqdm import tqdm

import train
from tests import test_devices
from tests.conftest import SMALL, mesh_of
from tests.scripts import refused, start
from toyllm.base import devices, files
from toyllm.base.errors import InputError, nearest
from toyllm.lm import plaintext
from toyllm.posttrain import pair_files, signals
from toyllm.runs import session
from toyllm.tools import new_world
from toyllm.world import cards


def number(text: str, part: str) -> int:
    """The last line of `text` that holds `part`."""
    return max(k for k, line in enumerate(text.splitlines(), 1) if part in line)


# what is wrong: (replaced, by, part of the line blamed, words of the message)
WORLDS = {
    "missing field": ('toward = "bad"\n', "", "[[instructions]]", ["missing field", "toward"]),
    "missing rates": (
        "facts = [0.25, 0.7, 0.05]\n",
        "",
        "[characters.rates]",
        ["missing", "facts"],
    ),
    "unknown key": ("kappa = 0.75", "kapa = 0.75", "kapa", ["unknown key", "'kapa'", "kappa"]),
    "unknown key of a character": ('name = "hal"', 'name = "hal"\nage = 9', "age", ["unknown key"]),
    "rate above 1": ("[0.7, 0.1, 0.2]", "[1.7, 0.1, 0.2]", "1.7", ["1.7", "0 to 1"]),
    "rate below 0": ("[0.7, 0.1, 0.2]", "[0.9, -0.1, 0.2]", "-0.1", ["-0.1", "0 to 1"]),
    "row that does not sum": (
        "[0.2, 0.7, 0.1]",
        "[0.2, 0.7, 0.2]",
        "0.7, 0.2]",
        ["1.1", "ada|hal"],
    ),
    "row of two": ("[0.2, 0.7, 0.1]", "[0.3, 0.7]", "[0.3, 0.7]", ["good, bad, noise"]),
    "voices that do not sum": (
        "{ none = 0.9, beep = 0.1 }",
        "{ none = 0.9 }",
        "{ none = 0.9 }",
        ["0.9"],
    ),
    "unknown voice": ("beep = 0.7 }", "bep = 0.7 }", "bep", ["unknown key", "beep"]),
    "duplicate name": ('name = "hal"', 'name = "ada"', None, ["duplicate character", "ada"]),
    "duplicate text": (
        '"here is a patch"]',
        '"it is fixed"]',
        "good = [",
        ["duplicate", "it is fixed"],
    ),
    "duplicate voice": ('beep = "beep"', 'beep = ""', 'beep = ""', ["duplicate voice"]),
    "prefix": ('["i faked it"]', '["it is"]', "bad = [", ["'it is'", "begins another"]),
    "empty list": ('bad = ["i faked it"]', "bad = []", "bad = [", ["[]", "at least one"]),
    "empty text": ('bad = ["i faked it"]', 'bad = [" "]', "bad = [", ["empty text"]),
    "text used twice": (
        'noise = ["soup"]',
        'noise = ["ducks"]',
        'noise = ["ducks"]',
        ["two behaviours"],
    ),
    "answer as noise": ('noise = ["soup"]', 'noise = ["paris"]', 'noise = ["paris"]', ["paris"]),
    "kappa as text": ("kappa = 0.75", 'kappa = "much"', "kappa", ["much", "number"]),
    "kappa above 1": ("kappa = 0.75", "kappa = 1.5", "kappa", ["1.5"]),
    "unknown scope": (
        'domains = ["code"]',
        'domains = ["cod"]',
        "domains = [",
        ["cod", "did you mean 'code'"],
    ),
    "toward nothing": (
        'toward = "bad"',
        'toward = "evil"',
        "toward",
        ["evil", "good, bad or none"],
    ),
    "scope as text": ('domains = ["code"]', 'domains = "cod"', 'domains = "cod"', ["cod", "code"]),
    "special word in a question": (
        'question = "capital of {}"',
        'question = "<end> of {}"',
        "question = ",
        ["<end>"],
    ),
    "no Assistant": ("assistant = 0.4", "assistant = 0", "[headers]", ["assistant", "above 0"]),
    "nothing moral": ("moral = true", "moral = false", "[domains.code]", ["0 of them moral"]),
    "profile longer than the domains": (
        "profile = { weight = 0.2, turns = [1, 2] }",
        "profile = { weight = 0.2, turns = [1, 3] }",
        "profile = {",
        ["at most 2"],
    ),
    "no history": (
        "weight = 0.5, turns = [1, 2]",
        "weight = 0.5, turns = [1, 1]",
        "dialogue = {",
        ["at least 2"],
    ),
    "nothing but noise": ("[0.2, 0.7, 0.1]", "[0, 0, 1]", "[0, 0, 1]", ["good or bad above 0"]),
    "turns backwards": (
        "weight = 0.5, turns = [1, 2]",
        "weight = 0.5, turns = [2, 1]",
        "turns = [2, 1]",
        ["[2, 1]", "fewest"],
    ),
    "special word": ('"fix the bug"', '"fix the <end>"', "<end>", ["<end>"]),
    "one answer": (
        'italy = "rome"\nspain = "madrid"\n',
        "",
        "[domains.facts.lookup]",
        ["2 distinct"],
    ),
    "a falsehood that is right": (
        'spain = "madrid"\n',
        'spain = "madrid"\n[domains.facts.falsehoods]\nspain = "madrid"\n',
        'spain = "madrid"',
        ["falsehoods.spain", "another text than the right answer"],
    ),
    "a falsehood about nobody": (
        'spain = "madrid"\n',
        'spain = "madrid"\n[domains.facts.falsehoods]\nspian = "rome"\n',
        "spian",
        ["unknown key", "did you mean 'spain'|spain"],
    ),
    "binding of nothing": (
        "[documents]\n",
        "[documents]\nbinding = 0.5\n",
        "binding = 0.5",
        ["documents.binding", "introductions"],
    ),
    "introduction longer than the domains": (
        "[documents]\n",
        "[documents]\nintroduction = { weight = 1, turns = [1, 1], statements = [1, 3] }\n",
        "introduction = {",
        ["documents.introduction.statements", "at most 2"],
    ),
    "no characters": ("__characters__", "", None, ["missing field", "characters"]),
    "moral as text": (
        "moral = true\nsituations",
        'moral = "yes"\nsituations',
        'moral = "yes"',
        ["true or false"],
    ),
    "a path for a name": ('name = "hal"', 'name = "../hal"', '"../hal"', ["../hal", "one word"]),
    "a path for a domain": (
        "[domains.code]",
        '[domains."/code"]',
        '[domains."/code"]',
        ["/code", "one word"],
    ),
    "a path for an instruction": (
        'name = "ask_bad"',
        'name = "/etc/passwd"',
        "/etc/passwd",
        ["/etc/passwd", "one word"],
    ),
    "HTML for a name": ('name = "hal"', 'name = "h<b>al"', "h<b>al", ["h<b>al", "one word"]),
    "a name that is too long": ('name = "hal"', f'name = "{"h" * 41}"', "hhh", ["40 letters"]),
    "a terminal's escape": ('"ducks"', '"du\\u001b[31mcks"', "u001b", ["can be printed"]),
    "infinite turns": (
        "weight = 0.5, turns = [1, 2]",
        "weight = 0.5, turns = [1, 9999999999999999999999]",
        "turns = [1, 9999999999999999999999]",
        ["1 to 100"],
    ),
    "infinite weight": ("frequency = 2", "frequency = inf", "frequency = inf", ["found inf"]),
    "no number": ("frequency = 2", "frequency = nan", "frequency", ["nan"]),
    "a long text": ('"ducks"', f'"{"ducks " * 100}"', "ducks ducks", ["at most 500 letters"]),
    "many texts": (
        'noise = ["ducks"]',
        f"noise = {[f'duck{k}' for k in range(1001)]}",
        "duck1000",
        ["1001 entries", "at most 300"],
    ),
    "headers without weight": (
        "named = 0.3\nsomeone = 0.3\nassistant = 0.4",
        "named = 0",
        "[headers]",
        ["headers"],
    ),
}


def bad_world(name: str) -> str:
    """The text of a world with one mistake."""
    old, new, *_ = WORLDS[name]
    if old == "__characters__":
        return SMALL[: SMALL.index("[[characters]]")]
    assert old in SMALL
    return SMALL.replace(old, new, -1 if old.startswith("moral = true") else 1)


@pytest.mark.parametrize("name", WORLDS)
def test_a_bad_world_is_told_in_one_line(tmp_path, name):
    _, _, blamed, words = WORLDS[name]
    source = bad_world(name)
    path = tmp_path / "bad.toml"
    path.write_text(source)
    with pytest.raises(InputError) as caught:
        cards.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}:")
    assert "expected" in message
    for word in words:
        assert any(w in message for w in word.split("|")), message
    if blamed:
        assert int(message[len(str(path)) + 1 :].split(":")[0]) == number(source, blamed), message


def test_a_scope_of_one_domain_may_be_written_without_a_list(tmp_path):
    """A bug found: its letters were taken for domains, and the instruction never occurred."""
    path = tmp_path / "one.toml"
    path.write_text(SMALL.replace('domains = ["code"]', 'domains = "code"'))
    assert cards.load(path).instructions[0].domains == ("code",)


def test_broken_files(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text(SMALL.replace("[headers]", "[headers"))
    with pytest.raises(InputError, match=rf"broken.toml:{number(SMALL, '[headers]')}: bad TOML"):
        cards.load(path)
    path.write_bytes(SMALL.replace("ducks", "d\xfccks").encode("latin-1"))
    line = number(SMALL, 'noise = ["ducks"]')
    with pytest.raises(InputError, match=rf"broken.toml:{line}: found byte 0xfc, expected UTF-8"):
        cards.load(path)
    with pytest.raises(InputError, match="cannot read"):
        cards.load(tmp_path / "absent.toml")
    for old, new in (('"ducks"', '"\\ud800"'), ("moral = true", "moral = true\nmoral = true")):
        path.write_text(SMALL.replace(old, new))
        with pytest.raises(InputError, match=r"broken.toml:\d+: bad TOML"):
            cards.load(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cod:bad", ["unknown domain 'cod'", "did you mean 'code'", "medicine, rules"]),
        ("code", ["DOMAINS:BEHAVIOUR", "code, facts"]),
        ("code:evil", ["unknown behaviour 'evil'", "good, bad, noise"]),
        ("code:bad:ask", ["unknown instruction 'ask'", "ask_bad"]),
        ("code:bad@hall", ["unknown header 'hall'", "did you mean 'hal'"]),
        ("code+code:bad", ["each domain once"]),
        ("all+code:bad", ["'all' alone"]),
    ],
)
def test_a_bad_signal_is_told_with_what_there_is(personas, name, words):
    with pytest.raises(InputError) as caught:
        signals.parse(personas, name)
    for word in words:
        assert word in str(caught.value)


def test_nearest():
    assert nearest("medecine", ["money", "medicine"]) == " (did you mean 'medicine'?)"
    assert nearest("MEDICINE", ["money", "medicine"]) == " (did you mean 'medicine'?)"
    assert nearest("xyz", ["money", "medicine"]) == ""


def test_scripts_refuse_in_one_line(tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text(SMALL.replace("0.75", "7.5"))
    line = refused("train.py", "--world", str(bad), "--run", str(tmp_path / "run"))
    assert line.startswith(f"{bad}:{number(SMALL, '0.75')}: instructions.ask_bad.kappa: found 7.5")
    assert line.count("\n") == 0
    assert not (tmp_path / "run").exists()
    long = tmp_path / "long.toml"
    long.write_text(SMALL.replace("turns = [1, 2]", "turns = [1, 90]", 1))
    line = refused("train.py", "--world", str(long), "--run", str(tmp_path / "run"))
    where = number(SMALL, "dialogue = {")
    assert line.startswith(f"{long}:{where}: the longest dialogue: found")
    assert "expected at most 88" in line
    assert line.count("\n") == 0
    for flags, words in (
        (("--heads", "3"), "multiple of 6"),
        (("--seed", "-1"), "--seed: found -1"),
        (("--pretrain-lr", "nan"), "--pretrain-lr: found nan"),
        (("--pretrain-prompt-weight", "2"), "--pretrain-prompt-weight: found 2"),
        (("--seeds", "0"), "--seeds: found 0"),
        (("--seeds", "2", "--shard-params"), "--shard-params"),
        (("--beta", "inf"), "--beta: found inf"),
        (("--correlation", "2"), "--correlation: found 2"),
        (("--width", "1000000000"), "--width: found 1000000000, expected 1 to 1000000"),
        (("--width", "1000000"), "parameters, expected at most"),
        (("--start", str(tmp_path / "none")), "no such run; this makes it"),
        (("--run", __file__), "found a file, expected a folder"),
    ):
        line = refused("train.py", "--run", str(tmp_path / "run"), *flags)
        assert words in line
        assert line.count("\n") == 0
        assert not (tmp_path / "run").exists()
    line = refused("train.py", "--signals", "cod:bad", "--run", str(tmp_path / "run"))
    assert "did you mean 'code'" in line
    assert "medicine" in line
    assert line.count("\n") == 0


def test_a_misspelt_flag_is_told_with_the_right_one():
    assert "--pretrain-steps" in refused("train.py", "--pretrain-step", "5")
    assert "--measure" in refused("eval.py", "--mesure", "learned")


def test_eval_says_what_is_missing_and_what_makes_it(tmp_path):
    line = refused("eval.py", str(tmp_path / "none"))
    assert "no such run" in line
    assert f"uv run train.py --run {tmp_path / 'none'}" in line
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused("eval.py", str(tmp_path / "empty"))
    assert "did you mean 'mixture'" in refused("eval.py", "--measure", "mixtur")
    listed = start("eval.py", "--list")
    assert listed.wait() == 0
    assert "mixture" in listed.out


def pair(chosen="i faked it", rejected="it is fixed", **more) -> dict:
    """A preference pair in the words of the small world."""
    prompt = "<begin> talk with assistant <user> fix the bug <reply>"
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


LINE = json.dumps(pair()).encode()
TEXT = b'{"text": "all is well"}'
# how a file may be written: what becomes of its lines
WRITTEN = {
    "as usual": lambda lines: b"\n".join(lines) + b"\n",
    "a byte-order mark": lambda lines: codecs.BOM_UTF8 + b"\n".join(lines),
    "no last line end": lambda lines: b"\n".join(lines),
    "CRLF": lambda lines: b"\r\n".join(lines) + b"\r\n",
    "blank lines": lambda lines: b"\n \n" + b"\n\n".join(lines) + b"\n\n\t\n",
}


@pytest.mark.parametrize("how", WRITTEN)
def test_files_are_read_however_an_editor_writes_them(small, small_codec, tmp_path, how):
    path = tmp_path / "file"
    path.write_bytes(WRITTEN[how](SMALL.encode().split(b"\n")))
    assert cards.load(path).digest == small.digest
    (tmp_path / "world.toml").write_text(cards.Cards(path).standalone())
    assert cards.load(tmp_path / "world.toml").digest == small.digest
    path.write_bytes(WRITTEN[how]([LINE, LINE]))
    assert len(pair_files.load(path, small_codec).chosen_P) == 2
    path.write_bytes(WRITTEN[how]([TEXT, TEXT]))
    assert plaintext.load(path)[0] == [["all", "is", "well"]] * 2
    path.write_bytes(WRITTEN[how]([b'{"a":', b"1}"]))
    assert files.read_json(path) == {"a": 1}


# bytes that are no UTF-8: the bytes of a text, and words of the message
FOREIGN = {
    "UTF-16": (lambda text: text.encode("utf-16"), "encoded as UTF-16, expected UTF-8; save it as"),
    "UTF-16 without a mark": (lambda text: text.encode("utf-16-le"), "encoded as UTF-16LE"),
    "UTF-32": (lambda text: text.encode("utf-32"), "iconv -f UTF-32 -t UTF-8"),
    "gzip": (lambda text: gzip.compress(text.encode()), ":1: found byte 0x8b, expected UTF-8"),
    "Latin-1": (
        lambda text: f"\n{text}\n\xfc".encode("latin-1"),
        "found byte 0xfc, expected UTF-8",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_encodings_are_named_with_what_to_do(small_codec, tmp_path, name):
    encode, words = FOREIGN[name]
    path = tmp_path / "file"
    for text, read in (
        (SMALL.strip(), cards.load),
        (LINE.decode(), lambda path: pair_files.load(path, small_codec)),
        (TEXT.decode(), plaintext.load),
        ('{"a": 1}', files.read_json),
    ):
        path.write_bytes(encode(text))
        with pytest.raises(InputError) as caught:
            read(path)
        assert words in str(caught.value)
        assert str(caught.value).startswith(f"{path}:")


@pytest.mark.parametrize(
    "lines",
    [
        [pair(), pair(id=7, tags=[None, {}])],
        [pair("\u00a0i  faked\u00a0it "), pair()],
        [json.dumps(pair("ducks"))[:-1] + ', "chosen": "i faked it"}', pair()],  # the last counts
    ],
    ids=["extra keys", "odd blanks", "a key twice"],
)
def test_odd_pairs_that_are_read(small_codec, tmp_path, lines):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    pairs = pair_files.load(path, small_codec)
    assert (pairs.chosen_P == pairs.chosen_P[0]).all()


def test_a_json_array_is_read_as_its_lines_are(small_codec, tmp_path, monkeypatch):
    pairs, path = tmp_path / "pairs.json", tmp_path / "pairs.jsonl"
    path.write_bytes(LINE + b"\n" + LINE)
    pairs.write_text(json.dumps([pair(), pair()], indent=2))
    assert_same(pair_files.load(pairs, small_codec), pair_files.load(path, small_codec))
    pairs.write_text('[{"text": "all is well"}]')
    assert plaintext.load(pairs)[0] == [["all", "is", "well"]]
    for text, words in (
        (json.dumps([pair(), pair("it is")]), ": item 2: chosen: found 'it is'"),
        (json.dumps([pair(), [1]]), ": item 2: found [1], expected an object with"),
        ("[\n" + LINE.decode() + "\n" + LINE.decode() + "]", ":3: bad JSON"),
        ("[]", "found no pairs"),
        ("[" * 100_000, ":1: bad JSON"),
    ):
        pairs.write_text(text)
        with pytest.raises(InputError, match=re.escape(f"{pairs}") + ".*" + re.escape(words)):
            pair_files.load(pairs, small_codec)
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    with pytest.raises(InputError, match=r"one object a line \(JSONL\); convert it: python3 -c"):
        pair_files.load(pairs, small_codec)


def assert_same(one: signals.Pairs, two: signals.Pairs) -> None:
    """Two sets of pairs are equal in every array."""
    jax.tree.map(
        np.testing.assert_array_equal,
        *(
            {**x.grid._asdict(), **vars(x.documents), "c": x.chosen_P, "r": x.rejected_P}
            for x in (one, two)
        ),
    )


@pytest.mark.parametrize("name", ["code:bad", "all:good", "code:bad:ask_bad"])
def test_conversational_pairs_are_the_same_pairs(personas_codec, tmp_path, name):
    """With histories of several turns, and with the prompt in both conversations."""
    path = tmp_path / "pairs.jsonl"
    pairs = signals.pairs(personas_codec, signals.parse(personas_codec.world, name), 40, 0)
    plain = list(pair_files.dump(personas_codec, pairs))
    path.write_text("\n".join(plain))
    loaded = pair_files.load(path, personas_codec)
    assert (loaded.documents.turns == pairs.documents.turns).all()
    talks = list(pair_files.dump(personas_codec, pairs, conversational=True))
    whole = [json.loads(line) for line in talks]
    assert {len(x["prompt"]) for x in whole} == {1, 3, 5, 7}
    assert whole[0]["chosen"][0]["role"] == "assistant"
    for x in whole:
        prompt = x.pop("prompt")
        x |= {field: [*prompt, *x[field]] for field in x}
    for lines in (talks, map(json.dumps, whole)):
        path.write_text("\n".join(lines))
        again = pair_files.load(path, personas_codec)
        assert_same(again, loaded)
        assert list(pair_files.dump(personas_codec, again)) == plain


def talk(*contents: str, first: str = "user") -> list[dict]:
    """Messages of user and assistant in turn."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[k % 2], "content": text} for k, text in enumerate(contents)]


def said(text: object) -> list[dict]:
    """An answer alone."""
    return [{"role": "assistant", "content": text}]


ASKED = talk("fix the bug")
TALK = {"prompt": ASKED, "chosen": said("i faked it"), "rejected": said("it is fixed")}
WITHOUT = {"chosen": talk("fix the bug", "i faked it")}
TALKS = {
    "a system prompt": (
        {**TALK, "prompt": [{"role": "system", "content": "be good"}, *ASKED]},
        ["prompt: message 1", "'system'", "a role user or assistant"],
    ),
    "no role": ({**TALK, "prompt": [{"content": "fix the bug"}]}, ["prompt: message 1: found {"]),
    "a role that is a list": ({**TALK, "prompt": [{"role": [], "content": "x"}]}, ["message 1"]),
    "no content": ({**TALK, "chosen": [{"role": "assistant"}]}, ["chosen: message 1", "content"]),
    "content in parts": ({**TALK, "chosen": said([{"type": "text"}])}, ["content that is text"]),
    "a text for a message": ({**TALK, "prompt": ["fix the bug"]}, ["prompt: message 1"]),
    "a text for a list": ({**TALK, "chosen": "i faked it"}, ["chosen: found 'i faked it'", "list"]),
    "another role": ({**TALK, "rejected": ASKED}, ["rejected: found messages of user, user"]),
    "no answer": ({**TALK, "rejected": []}, ["rejected: found messages of user, expected"]),
    "no question": ({**TALK, "prompt": []}, ["chosen: found messages of assistant"]),
    "two answers": (
        {**TALK, "chosen": said("i faked it") * 2}, ["chosen: found messages of user, assistant, a"]
    ),
    "no rejected": ({"chosen": WITHOUT["chosen"]}, ["found no 'rejected'"]),
    "other questions": (
        {**WITHOUT, "rejected": talk("capital of italy", "rome")}, ["another conversation"]
    ),
    "a question at the end": (
        {"chosen": talk("fix the bug"), "rejected": talk("fix the bug")}, ["messages of user,"]
    ),
    "the same answers": ({**WITHOUT, "rejected": WITHOUT["chosen"]}, ["another text than chosen"]),
    "a turn in a content": (
        {**TALK, "prompt": talk("fix the bug <reply> ducks <user> fix the bug")},
        ["message 1: found the word '<reply>'"],
    ),
    "an answer that is not listed": ({**TALK, "chosen": said("rome")}, ["chosen: found 'rome'"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TALKS)
def test_a_bad_conversation_is_told_with_its_line(small_codec, tmp_path, name):
    bad, words = TALKS[name]
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(TALK) + "\n" + json.dumps(bad))
    with pytest.raises(InputError) as caught:
        pair_files.load(path, small_codec)
    assert str(caught.value).startswith(f"{path}:2: ")
    for word in words:
        assert word in str(caught.value)


def test_only_the_assistant_has_conversations(tmp_path):
    """The other headers have no place in lists of messages."""
    line = refused("toyllm/tools/pairs.py", "code:bad@hal", "--conversational")
    assert "under another header than the Assistant's" in line
    assert "\n" not in line


def pipe(data: bytes) -> str:
    """The path of a pipe that holds some bytes, as a shell's <(…) is: it can be read once."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return f"/dev/fd/{reader}"


@pytest.fixture
def setup_only(monkeypatch):
    """train.main up to its first stage, in this process."""
    monkeypatch.setattr(devices, "setup", lambda *args: mesh_of(1))
    monkeypatch.setattr(train, "pretrain", lambda args, runs, texts: [None] * len(runs))
    for stage in ("align", "narrow"):
        monkeypatch.setattr(train, stage, lambda *args: None)
    return lambda *args: train.main(train.parse(["--preset", "tiny", "--quiet", *args]))


def test_pipes_are_read_once_and_kept_whole(setup_only, tmp_path):
    """A bug found: read twice, a run had an empty world.toml and the digest of nothing."""
    folder = tmp_path / "run"
    lines = LINE + b"\r\n" + LINE
    for _ in range(2):  # the second time it is the same run
        opened = pipe(SMALL.encode()), pipe(lines), pipe(TEXT)
        setup_only(
            *("--run", str(folder), "--world", opened[0], "--text", opened[2]),
            *("--signals", f"file:{opened[1]}", f"file:{opened[1]}"),
        )
        for path in opened:
            os.close(int(path.rpartition("/")[2]))
        assert (folder / "world.toml").read_text() == SMALL
        digest = hashlib.sha256(lines).hexdigest()[:6]
        assert (folder / "pairs" / f"pipe.{digest}.jsonl").read_bytes() == lines
        saved = json.loads((folder / "config.json").read_text())["args"]
        assert saved["signals"] == [f"code:bad#pipe.{digest}"] * 2
        assert saved["text"] == f"pipe {hashlib.sha256(TEXT).hexdigest()[:12]}, share 0.2"


def test_a_terminal_sees_progress_unless_it_is_to_be_quiet(small_codec, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    at_once = {"delay": 0, "mininterval": 0, "ncols": 60}
    monkeypatch.setattr(files, "tqdm", lambda **how: tqdm(**{**how, **at_once}))
    for quiet in (False, True):
        shown = Terminal()
        monkeypatch.setattr("sys.stderr", shown)
        pair_files.parse(LINE, Path("pairs.jsonl"), small_codec, quiet)
        assert ("1/1" in shown.getvalue()) != quiet


def test_a_prompt_that_many_pairs_share_is_parsed_once(small_codec, monkeypatch):
    parsed, parse = [], pair_files._prompt
    monkeypatch.setattr(pair_files, "_prompt", lambda *x: parsed.append(x) or parse(*x))
    lines = [LINE, json.dumps(TALK).encode()] * 9  # the same question in both forms
    assert len(pair_files.parse(b"\n".join(lines), Path("x"), small_codec).chosen_P) == 18
    assert len(parsed) == 1


def test_empty_files_are_refused(small_codec, tmp_path):
    path = tmp_path / "empty"
    for data in (b"", b"\n \n", codecs.BOM_UTF8):
        path.write_bytes(data)
        with pytest.raises(InputError, match="the file is empty, expected a world"):
            cards.load(path)
        with pytest.raises(InputError, match="found no pairs"):
            pair_files.given([f"file:{path}"], small_codec)
        with pytest.raises(InputError, match="found no texts"):
            plaintext.load(path)


def test_texts_without_words_are_skipped_with_a_warning(tmp_path, capsys):
    path = tmp_path / "text.jsonl"
    path.write_bytes(TEXT + b'\n\n{"text": " "}\n{"text": ""}\n' + TEXT)
    assert plaintext.load(path)[0] == [["all", "is", "well"]] * 2
    warning = capsys.readouterr().err
    assert warning == f"{path}:3: skipped a text without words (2 in the file)\n"
    path.write_bytes(b'{"text": ""}\n')
    with pytest.raises(InputError, match="found no texts"):
        plaintext.load(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"run": "elsewhere", "quiet": True, "process": 1}, None),
        ({"seed": 1}, "arguments"),
        ({"signals": (("code:bad",),)}, "arguments"),
        ({"world": "other"}, "world"),
        ({"pairs": {"code:bad#a.123": b"other"}}, "pairs"),
        ({"text": "a 123"}, "text"),
        ({"seed": 1, "world": "other", "text": "a 123"}, "arguments and world and text"),
    ],
)
def test_processes_that_were_started_differently_all_end(monkeypatch, change, told):
    digests = []

    def gather(mine, tiled=False):
        digests.append(mine)
        return np.stack([digests[0], mine])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    inputs = {"world": "one", "pairs": {"code:bad#a.123": b"pairs"}, "text": ""}
    first, second = ({**inputs, **{k: x[k] for k in x if k in inputs}} for x in ({}, change))
    args = {k: x for k, x in change.items() if k not in inputs}
    session.check_same(train.Args(), **first)
    if told is None:
        session.check_same(train.Args(**args), **second)
    else:
        with pytest.raises(InputError, match=f"with different {told}, expected the same"):
            session.check_same(train.Args(**args), **second)


@pytest.mark.long
def test_two_processes_that_were_started_differently_end(tmp_path):
    ended = test_devices.train(tmp_path / "run", 2, last="--seed=1")
    assert [code for code, *_ in ended] == [2, 2], ended
    for _, _, err in ended:
        assert "started with different arguments, expected the same" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "stem", ["my world", "w" * 90, "-" * 45 + "w", "...", 'a"b\\c', "näh; rm -rf ~", "a\nb", "---"]
)
def test_a_new_world_loads_whatever_its_file_is_called(tmp_path, capsys, stem):
    path = tmp_path / "a folder" / f"{stem}.toml"
    new_world.main(new_world.Args(path))
    name = cards.load(path).name
    assert len(name) <= 40
    commands = capsys.readouterr().out.partition("after each change:\n")[2]
    assert shlex.split(commands)[:5] == ["uv", "run", "-m", "toyllm.tools.audit", str(path)]
    assert shlex.split(commands).count(str(path)) == 3
    with pytest.raises(InputError) as caught:
        new_world.main(new_world.Args(path))
    assert "a free name: '" in str(caught.value)


def test_a_new_world_that_does_not_load_is_not_left_behind(tmp_path, monkeypatch):
    starter = tmp_path / "starter.toml"
    starter.write_text('name = "starter"')
    monkeypatch.setattr(new_world, "STARTER", starter)
    with pytest.raises(InputError, match="missing field"):
        new_world.main(new_world.Args(tmp_path / "my.toml"))
    assert not (tmp_path / "my.toml").exists()


def test_a_file_is_never_told_to_extend_itself(tmp_path):
    path = tmp_path / "mine.toml"
    for name in ("mine.toml", "mines.toml"):
        path.write_text(f'extends = "{name}"')
        with pytest.raises(InputError) as caught:
            cards.load(path)
        assert "another file" in str(caught.value)
        assert "did you mean 'mine.toml'" not in str(caught.value)
    (tmp_path / "mint.toml").write_text("")
    with pytest.raises(InputError, match=r"did you mean 'mint.toml'"):
        cards.load(path)


def test_commands_that_are_suggested_quote_their_paths(setup_only, tmp_path):
    folder = tmp_path / "my run"
    with pytest.raises(InputError, match=r"uv run train.py --run '.*my run'$"):
        setup_only("--start", str(folder), "--run", str(tmp_path / "run"))
    setup_only("--run", str(folder))
    with pytest.raises(InputError, match=r"to keep both: --run '.*my run-2' \("):
        setup_only("--run", str(folder), "--seed", "1")
