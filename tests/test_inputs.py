"""Bad input: one line, what was found, what was expected, exit 2, and nothing compiled."""

import pytest

from tests.conftest import SMALL
from tests.scripts import refused, start
from toyllm import cards, signals
from toyllm.errors import InputError, nearest


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
    assert line.startswith(f"{bad}:{number(SMALL, '0.75')}: kappa: found 7.5")
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
