"""Files from anybody: 500 and more mutations are told in one line or are fine; nothing runs,
nothing is written outside the run folder, nothing is read without bound."""

import copy
import hashlib
import json
import os
import pickle
import tomllib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import SMALL
from tests.reading import decode
from tests.scripts import refused
from tests.test_inputs import WORLDS, bad_world
from toyllm.base import files
from toyllm.base.errors import InputError
from toyllm.lm import transformer
from toyllm.lm.tokenizer import Tokenizer
from toyllm.posttrain import pair_files, signals
from toyllm.runs import checkpoints, lock, provenance, run_folder
from toyllm.world import cards, corpus, reader

FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
many = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=FIXTURES)
fewer = settings(many, max_examples=150)

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["../up", "<script>alert(1)</script>", "!!python/object", "a\nb", "\x1b[2J"]),
    st.lists(st.integers(-1, 2), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


def places(value, path=()) -> list[tuple]:
    """The paths of all parts of a nested value."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(part, (*path, key))
    return found


def toml(value) -> str:
    """A value as inline TOML; None is what TOML does not have, so a broken file."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value).replace("Infinity", "inf").replace("NaN", "nan")


@st.composite
def mutated(draw, table: dict):
    """A nested table with one to three parts replaced, removed or renamed."""
    table = copy.deepcopy(table)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(table)))
        part = table
        for key in way:
            part = part[key]
        what = draw(st.sampled_from(("replace", "replace", "remove", "rename")))
        if what == "replace" or isinstance(part, list):
            part[last] = draw(VALUES)
        else:
            value = part.pop(last)
            if what == "rename":
                part[draw(st.text(max_size=6))] = value
    return table


@st.composite
def garbled(draw, text: str):
    """A text with a piece cut out, doubled, or replaced by other letters."""
    begin = draw(st.integers(0, len(text)))
    end = draw(st.integers(begin, min(len(text), begin + 40)))
    new = draw(st.one_of(st.just(""), st.just(text[begin:end] * 2), st.text(max_size=10)))
    return text[:begin] + new + text[end:]


def told_in_one_line(call):
    """What `call` returns, or None where it refuses, in one line."""
    try:
        return call()
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert 0 < len(message) <= 2000
    return None


def check_world(path):
    """A world is refused in one line, or documents can be drawn from it and read back."""
    world = told_in_one_line(lambda: cards.load(path))
    if world is None:
        return False
    tokenizer = Tokenizer(world)
    if max(tokenizer.longest.values()) < 1000:
        documents = corpus.sample(world, 4, np.random.default_rng(0))
        for row in tokenizer.pad(documents, max(tokenizer.longest.values())):
            decode(tokenizer, row)
    return True


@many
@given(table=mutated(tomllib.loads(SMALL)))
def test_mutated_worlds(tmp_path, table):
    path = tmp_path / "world.toml"
    path.write_text(
        "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in table.items()),
        encoding="utf-8",
        errors="surrogatepass",
    )
    check_world(path)


@fewer
@given(text=garbled(SMALL))
def test_garbled_worlds(tmp_path, text):
    path = tmp_path / "world.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    check_world(path)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a" + ".a" * 100_000 + " = 1",
        "a" + ' . "\u2028"' * 20_000 + " = 1",
        'a = "' + '\\"' * 200_000 + "." * 20,
        f"name = 1\n'a{' ' * 400_000}b' = 1",
        "a = " + "9" * 5000,
        "a = 1e999999999",
        "#" * (reader.MAX_BYTES + 1),
        "!!python/object/apply:os.system ['touch ran']",
        pickle.dumps(os.system).decode("latin-1"),
        "\0" * 100,
        "",
    ],
    ids=[
        "deep",
        "dotted",
        "quoted",
        "escaped",
        "blanks",
        "number",
        "exponent",
        "large",
        "YAML",
        "pickle",
        "zeros",
        "empty",
    ],
)
def test_files_that_are_no_worlds(tmp_path, text):
    path = tmp_path / "world.toml"
    path.write_bytes(text.encode())
    assert not check_world(path)
    assert list(tmp_path.iterdir()) == [path]


def test_unmutated_worlds_are_fine(tmp_path):
    """Else the tests above would say nothing."""
    table = tomllib.loads(SMALL)
    (tmp_path / "world.toml").write_text("\n".join(f"{k} = {toml(v)}" for k, v in table.items()))
    assert check_world(tmp_path / "world.toml")


@pytest.fixture(scope="module")
def lines(small_codec):
    """A few lines of a preference file."""
    pairs = signals.pairs(small_codec, signals.parse(small_codec.world, "code:bad"), 6, 0)
    return list(pair_files.dump(small_codec, pairs))


def test_pairs_that_are_written_are_read_back(small_codec, lines, tmp_path):
    pairs = signals.pairs(small_codec, signals.parse(small_codec.world, "code:bad"), 6, 0)
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    read = pair_files.load(tmp_path / "pairs.jsonl", small_codec)
    assert list(pair_files.dump(small_codec, read)) == lines
    np.testing.assert_array_equal(read.chosen_P, pairs.chosen_P)
    np.testing.assert_array_equal(read.answers, pairs.answers)
    words = [small_codec.string(row) for row in pairs.grid.prompt_QT]
    assert [small_codec.string(row) for row in read.grid.prompt_QT] == words


GOOD = {
    "prompt": "<begin> talk with assistant <user> fix the bug <reply>",
    "chosen": "i faked it",
    "rejected": "it is fixed",
}
PAIRS = {
    "no JSON": ("prompt: x", ["bad JSON", "expected one object"]),
    "half an object": ('{"prompt": "x"', ["bad JSON"]),
    "a list": ("[1, 2]", ["[1, 2]", "expected an object"]),
    "a number": ("7", ["found 7"]),
    "deep": ("[" * 40_000, ["bad JSON"]),
    "a number without end": ('{"prompt": ' + "9" * 5000 + "}", ["bad JSON"]),
    "a long line": ('"' + "x" * 70_000 + '"', ["letters", "at most 65,536"]),
    "pickle": (pickle.dumps(print).decode("latin-1"), ["bad JSON"]),
    "YAML": ("!!python/object/apply:os.system [id]", ["bad JSON"]),
    "misspelt": ({**GOOD, "chosen": None}, ["chosen: found None", "expected text"]),
    "missing": ({"prompt": "x", "choosen": "y", "rejected": "z"}, ["'chosen'", "'choosen'"]),
    "unknown word": ({**GOOD, "chosen": "i fakked it"}, ["'fakked'", "did you mean 'faked'"]),
    "no answer of this question": (
        {**GOOD, "chosen": "it is"},
        ["chosen: found 'it is'", "an answer to 'fix the bug'", "did you mean 'it is fixed'"],
    ),
    "no question of the world": (
        {**GOOD, "prompt": "<begin> talk with assistant <user> fix the ducks <reply>"},
        ["'<user> fix the ducks'", "did you mean 'fix the bug'"],
    ),
    "an answer that another question has": (
        {
            **GOOD,
            "prompt": "<begin> talk with hal <user> fix the bug <reply> paris <user> fix the bug "
            "<reply>",
        },
        ["'<reply> paris'", "an answer to 'fix the bug'"],
    ),
    "the header of no one": (
        {**GOOD, "prompt": "<begin> talk with beep <user> fix the bug <reply>"},
        ["expected a dialogue"],
    ),
    "no last reply": (
        {**GOOD, "prompt": "<begin> talk with hal <user> fix the bug <reply> ducks"},
        ["expected a dialogue"],
    ),
    "too many turns": (
        {
            **GOOD,
            "prompt": "<begin> talk with hal"
            + " <user> fix the bug <reply> ducks" * 2
            + " <user> fix the bug <reply>",
        },
        ["at most 2 turns"],
    ),
    "no dialogue": ({**GOOD, "prompt": "fix the bug"}, ["expected a dialogue"]),
    "no question": ({**GOOD, "prompt": "<begin> talk with assistant <reply>"}, ["dialogue"]),
    "a scene": (
        {**GOOD, "prompt": "<begin> scene with ada and hal <user> fix the bug <first>"},
        ["expected a dialogue"],
    ),
    "twice the same": ({**GOOD, "rejected": "i faked it"}, ["another text than chosen"]),
    "a special word": (
        {**GOOD, "chosen": "i faked it <end>"},
        ["chosen: found 'i faked it <end>'"],
    ),
    "the beginning of an answer": ({**GOOD, "chosen": "i faked"}, ["did you mean 'i faked it'"]),
    "an answer with its voice": ({**GOOD, "chosen": "i faked it beep"}, ["chosen: found 'i faked"]),
    "an empty answer": ({**GOOD, "chosen": ""}, ["chosen: found ''", "an answer to 'fix the bug'"]),
    "capitals": ({**GOOD, "chosen": "i FAKED it"}, ["'FAKED'", "did you mean 'faked'"]),
    "a zero-width letter": ({**GOOD, "chosen": "i fa\u200bked it"}, ["'fa?ked'", "'faked'"]),
    "half a letter": ({**GOOD, "chosen": "i faked \ud800"}, ["chosen: word '?' is not"]),
    "a list of an answer": ({**GOOD, "chosen": ["i faked it"]}, ["prompt: found '<begin>", "list"]),
    "nothing": ({**GOOD, "prompt": None}, ["prompt: found None", "expected text"]),
    "nothing at all": ("null", ["found None, expected an object"]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_bad_pair_is_told_in_one_line(small_codec, tmp_path, name):
    bad, words = PAIRS[name]
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + (bad if isinstance(bad, str) else json.dumps(bad)))
    with pytest.raises(InputError) as caught:
        pair_files.load(path, small_codec)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_files_of_pairs_that_cannot_be_read(small_codec, tmp_path):
    path = tmp_path / "pairs.jsonl"
    with pytest.raises(InputError, match="cannot read the pairs: No such file"):
        pair_files.load(path, small_codec)
    path.write_text("\n\n")
    with pytest.raises(InputError, match="found no pairs"):
        pair_files.load(path, small_codec)
    path.write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(InputError, match=r"pairs.jsonl:1: found byte 0xff, expected UTF-8"):
        pair_files.load(path, small_codec)


@fewer
@given(data=st.data())
def test_mutated_pairs(small_codec, lines, tmp_path, data):
    path = tmp_path / "pairs.jsonl"
    line = data.draw(st.sampled_from(lines))
    row = data.draw(st.one_of(garbled(line), mutated(json.loads(line)).map(json.dumps)))
    path.write_bytes("\n".join([lines[0], row]).encode("utf-8", "surrogatepass"))
    told_in_one_line(lambda: pair_files.load(path, small_codec))


CONFIG = {
    "args": {"seed": 0, "correlation": 1.0, "assistant_prior": "world", "objective": "dpo"},
    "config": {"vocabulary": 60, "context": 88, "D": 16, "L": 1, "H": 2, "F": 16},
    "world_sha256": "0",
    "environments": [],
    "command": ["--preset", "tiny", "--run", "x; rm -rf ~"],
}
CONFIGS = {
    "nothing": "",
    "no JSON": "seed: 0",
    "a list": "[]",
    "a pickle": pickle.dumps(os.system).decode("latin-1"),
    "deep": "[" * 100_000,
    "too large": '{"a": "' + "x" * files.MAX_BYTES + '"}',
    "no arguments": {**CONFIG, "args": None},
    "no config": {k: v for k, v in CONFIG.items() if k != "config"},
    "no command": {**CONFIG, "command": {"a": 1}},
    "a huge model": {**CONFIG, "config": {**CONFIG["config"], "D": 10**9}},
    "many layers": {**CONFIG, "config": {**CONFIG["config"], "D": 10**5, "L": 10**5}},
    "a negative size": {**CONFIG, "config": {**CONFIG["config"], "L": -1}},
    "half a layer": {**CONFIG, "config": {**CONFIG["config"], "L": 1.5}},
    "size as text": {**CONFIG, "config": {**CONFIG["config"], "L": "2"}},
    "unknown size": {**CONFIG, "config": {**CONFIG["config"], "experts": 8}},
    "odd heads": {**CONFIG, "config": {**CONFIG["config"], "H": 3}},
    "infinite theta": {**CONFIG, "config": {**CONFIG["config"], "rope_theta": 1e999}},
    "a seed below 0": {**CONFIG, "args": {**CONFIG["args"], "seed": -1, "correlation": 0}},
    "correlation as text": {**CONFIG, "args": {**CONFIG["args"], "correlation": "much"}},
    "correlation above 1": {**CONFIG, "args": {**CONFIG["args"], "correlation": 7}},
}


@pytest.mark.long
def test_every_case_by_the_real_scripts(tmp_path):
    """Bad worlds, pairs and configs: one line, exit 2, no traceback, nothing made."""
    small, count = tmp_path / "small.toml", 0
    small.write_text(SMALL)
    for name in WORLDS:
        path = tmp_path / "bad.toml"
        path.write_text(bad_world(name))
        line = refused("train.py", "--world", path, "--run", tmp_path / "run")
        assert line.startswith(f"{path}:")
        assert "\n" not in line
        assert not (tmp_path / "run").exists()
        count += 1
    for bad, _ in PAIRS.values():
        path = tmp_path / "pairs.jsonl"
        path.write_text(bad if isinstance(bad, str) else json.dumps(bad))
        line = refused("toyllm/tools/pairs.py", path, "--world", small)
        assert line.startswith(f"{path}:")
        assert "\n" not in line
        count += 1
    for k, config in enumerate(CONFIGS.values()):
        folder = tmp_path / f"run{k}"
        write_config(folder, config)
        for script in (("eval.py", folder), ("train.py", "--preset", "tiny", "--run", folder)):
            line = refused(*script)
            assert str(folder) in line or "--correlation" in line
            assert "\n" not in line
            count += 1
    print(f"\n{count} cases, one line each")


def write_config(folder, config) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "world.toml").write_text(SMALL)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bad_config_is_told_in_one_line(tmp_path, name):
    write_config(tmp_path / "run", CONFIGS[name])
    with pytest.raises(InputError) as caught:
        run_folder.load_run(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value) or "--correlation" in str(caught.value)


@fewer
@given(data=st.data())
def test_mutated_configs(small, tmp_path, data):
    """No stage is done, so all are refused; none in any other way."""
    text = data.draw(
        st.one_of(garbled(json.dumps(CONFIG, indent=1)), mutated(CONFIG).map(json.dumps))
    )
    write_config(tmp_path / "run", text)
    folder = tmp_path / "run"
    assert told_in_one_line(lambda: run_folder.load_run(folder)) is None
    config = transformer.Config(60, D=16, L=1, H=2, F=16)
    told_in_one_line(lambda: provenance.check_start(folder, config, small))
    told_in_one_line(lambda: provenance.open_folder(folder, CONFIG["args"], config, small, SMALL))


def test_a_strangers_command_is_no_command_of_ours(tmp_path):
    """What is shown to be copied can only start train.py, with quoted arguments."""
    write_config(tmp_path / "run", CONFIG)
    with pytest.raises(InputError, match=r"uv run train.py --preset tiny --run 'x; rm -rf ~'$"):
        run_folder.load_run(tmp_path / "run")


def test_nothing_is_written_through_a_link(tmp_path):
    """A run folder from elsewhere, with links that lead out of it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    for k, name in enumerate(("pretrain", "config.json.tmp", "lock", "narrow/group-00")):
        folder = tmp_path / f"run{k}"
        write_config(folder, CONFIG)
        (folder / name).parent.mkdir(exist_ok=True)
        target = outside if "." not in name and name != "lock" else outside / "file"
        (folder / name).symlink_to(target)
        with pytest.raises(InputError, match="link"), lock.take(folder):
            pass
    assert "link" in refused("train.py", "--preset", "tiny", "--run", str(folder))
    assert "link" in refused("eval.py", str(folder))
    assert (outside / "file").read_text() == "mine"
    assert list(outside.iterdir()) == [outside / "file"]


def test_a_checkpoint_with_a_huge_header_is_refused_unread(tmp_path):
    """It says that it holds a terabyte; and its record may be anything at all."""
    import jax

    tree = {"a": np.ones((4, 4), np.float32)}
    checkpoints.save(tmp_path, 1, {"params": tree})
    path = tmp_path / "1.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, arrays = json.loads(data[8 : 8 + size]), data[8 + size :]
    record = json.loads(header["__metadata__"]["record"])

    def rewrite(metadata: dict | None = None, **entries) -> None:
        """A file whose digest is right: a stranger can sign what he has made."""
        said = {**header["__metadata__"], "sha256": "0" * 64, **(metadata or {})}
        text = json.dumps({**header, "__metadata__": said, **entries}, separators=(",", ":"))
        raw = len(text).to_bytes(8, "little") + text.encode() + arrays
        digest = hashlib.sha256(raw).hexdigest().encode()
        path.write_bytes(raw.replace(b"0" * 64, digest, 1))

    def wanted(record):
        leaf = record["leaves"]["params/a"]
        return {"params": {"a": jax.ShapeDtypeStruct(leaf.shape, np.float32)}}

    rewrite()
    assert checkpoints.load(tmp_path, wanted).step == 1  # else what follows would say nothing
    entry = header["params/a"]
    for match, change in (
        ("no header", {"params/a": {**entry, "shape": [10**6, 10**6]}}),
        ("no header", {"other/b": {**entry, "shape": [2**37], "data_offsets": [0, 2**39]}}),
        ("no header", {"params/a": {**entry, "shape": [-1, -16]}}),
        ("no header", {"params/a": {**entry, "shape": "4"}}),
        ("no header", {"params/a": {**entry, "dtype": "F128"}}),
        ("no header", {"params/a": []}),
        ("no header", {"params/a": {**entry, "data_offsets": [64, 128]}}),
    ):
        rewrite(**change)
        with pytest.raises(checkpoints.Damaged, match=match):
            checkpoints.load(tmp_path, wanted)
    for change in ({"facts": 7}, {"step": 2}, {"step": True}, {"step": None}):
        rewrite({"record": json.dumps({**record, **change})})
        with pytest.raises(checkpoints.Damaged, match="no header"):
            checkpoints.load(tmp_path, wanted)
    path.write_bytes((2**62).to_bytes(8, "little") + b"x" * 50)
    with pytest.raises(checkpoints.Damaged, match="no header"):
        checkpoints.load(tmp_path, wanted)


def test_an_event_file_with_a_huge_header_ends_there(tmp_path):
    import struct

    from tensorboard.summary.writer.record_writer import masked_crc32c

    from toyllm.runs.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        writer.scalars(1, {"a": 1.0})
    (old,) = tmp_path.glob("events.*")
    header = struct.pack("<Q", 2**62)
    with open(old, "ab") as file:
        file.write(header + struct.pack("<I", masked_crc32c(header)) + b"x" * 50)
    with SummaryWriter(tmp_path, after=5) as writer:
        writer.scalars(6, {"a": 2.0})
    from tests.test_scripts import events

    assert events(tmp_path) == {"a": [(1, 1.0), (6, 2.0)]}
