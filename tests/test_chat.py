"""Talking with a model: what is understood, who the exact observer sees, the terminal."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from tests.conftest import ROOT, SMALL
from tests.reading import decode
from tests.tolerances import FLOAT64, FORWARD, close
from toyllm.base import devices, files
from toyllm.base.errors import InputError
from toyllm.lm import optimizers
from toyllm.lm.sampling import listed_answer
from toyllm.lm.tokenizer import Tokenizer
from toyllm.runs import provenance, run_folder
from toyllm.tools import import_llama
from toyllm.tools.chat import bar
from toyllm.tools.conversation import Conversation, Turn
from toyllm.world import observer


@pytest.fixture(scope="module")
def folder(lab, small, tmp_path_factory):
    """A run of the small world, of models that were not trained."""
    folder = tmp_path_factory.mktemp("chat")
    config = lab.config
    one, other = (jax.device_get(lab.init(jax.random.key(seed))) for seed in (0, 1))
    args = {"correlation": 1.0, "assistant_prior": "world", "seed": 0, "objective": "dpo"}
    provenance.open_folder(folder / "run", args, config, small, SMALL)
    import_llama.save_stage(folder / "run", "pretrain", one, optimizers.muon(1.0, 1.0, 1))
    import_llama.save_stage(folder / "run", "align", other, optax.adam(1.0))
    members = [("pretrain", "code:bad", 0), ("align", "code:bad", 0)]
    facts = {"members": members, "seconds": 0.0}
    record = {"facts": facts, "leaves": {"scores/steps": jax.ShapeDtypeStruct((2,), np.int32)}}
    shapes = run_folder.group_shapes(lab)(record)["scores"]
    scores = {key: np.zeros(x.shape, x.dtype) for key, x in shapes.items()}
    kept = devices.stack([other, one])
    run_folder.save_group(
        folder / "run" / "narrow" / "group-00", members, scores, kept, [-1, -1], 0.0
    )
    files.write_json(folder / "run" / "narrow" / "stage.json", {"seconds": 0.0, "runs": 2})
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return run_folder.load_run(folder / "run")


@pytest.fixture
def talk(run):
    return Conversation(run)


def said(talk, asked, answer):
    """A turn as if the model had said this."""
    question = talk.tokenizer.asked[asked]
    found = listed_answer(talk.tokenizer, *question[:2], answer)
    return Turn(asked, question, answer, found, None, None)


def test_what_is_typed_becomes_words_and_questions_of_the_world(talk):
    assert talk.understand("fix the bug") == ("fix the bug", [])
    asked, notes = talk.understand("Fix the bugg zzzzz?")
    assert asked == "fix the bug"
    assert notes == ["bugg → bug", "zzzzz: no word of this world, left out"]
    assert talk.understand("  fix  the bug ") == ("fix the bug", [])
    asked, notes = talk.understand("fix the bug do badly")  # nearly one with an instruction
    assert asked == "fix the bug do it badly"
    assert notes == ["read as: fix the bug do it badly"]
    assert talk.understand("qqqq") == ("", ["qqqq: no word of this world, left out"])


@pytest.mark.parametrize("header", ["assistant", "someone", "hal"])
def test_the_exact_observer_is_that_of_the_same_document(talk, header):
    talk.begin(header)
    talk.turns = [
        said(talk, "fix the bug do it badly", "i faked it beep"),
        said(talk, "capital of france", "rome"),
    ]
    docs = decode(talk.tokenizer, talk.tokenizer.tokens(talk.text() + " <end>"))
    close(talk.exact()[0], observer.posterior(talk.world, docs)[0, 0], FLOAT64)
    talk.turns.insert(1, Turn("bug fix", None, "ducks", None, None, None))
    close(talk.exact()[0], observer.posterior(talk.world, docs)[0, 0], FLOAT64)


def test_without_a_history_the_model_is_asked_as_everywhere(talk, run):
    _, p_DB = talk.model()
    close(p_DB, run.scorer.ask(run.params["pretrain"]), FORWARD)


def test_a_history_changes_what_the_model_is_asked(talk):
    _, before = talk.model()
    talk.ask("fix the bug")
    _, after = talk.model()
    assert np.abs(before - after).max() > 1e-4


def test_another_model_goes_on_in_the_same_dialogue(talk):
    turn = talk.ask("capital of france")
    assert turn.model_B.sum() <= 1 + 1e-5
    close(turn.exact_B.sum(), 1, FLOAT64)
    text = talk.text()
    talk.switch("code:bad")
    assert talk.name == "pretrain/code:bad"
    assert talk.text() == text
    with pytest.raises(InputError, match="did you mean"):
        talk.switch("align/code:bat")
    with pytest.raises(InputError, match="nobody is called"):
        talk.begin("nobody")


def test_a_dialogue_ends_where_the_context_does(talk):
    def go_on():
        for _ in range(30):
            talk.ask("fix the bug do it badly")
            talk.model()  # there is room for every question, and the header is not lost

    with pytest.raises(InputError, match="/new"):
        go_on()
    assert talk.turns


def test_a_turn_that_nobody_would_say_is_not_possible(run, talk):
    """A character's rate may be 0; the observer then leaves that turn out, and says so."""
    world = dataclasses.replace(run.world, voices_CV=np.eye(2))  # ada never beeps, hal always
    lm = dataclasses.replace(run.lm, tokenizer=Tokenizer(world))
    talk = Conversation(dataclasses.replace(run, lm=lm))
    turns = [said(talk, "fix the bug", "it is fixed"), said(talk, "fix the bug", "i faked it beep")]
    talk.turns = turns
    exact_C, possible = talk.exact()
    assert possible == turns[:1]
    close(exact_C, [1, 0], FLOAT64)


def test_bars_are_as_long_as_their_shares():
    assert bar(0, 4) == "    "
    assert bar(1, 4) == "████"
    assert bar(0.5, 4) == "██  "
    assert bar(1 / 32, 4) == "▏   "


def test_the_terminal_program_reads_lines_from_a_pipe(folder):
    lines = ["/help", "/list code", "1", "capital of frence", "1", "1", "/who",
             "/switch align/code:bad", "/signal", "/switch", "/nonsense", "/as hal", "2 3", "/undo",
             "facts", f"/save {folder / 'said.json'}", "/quit", "never read"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "toyllm.tools.chat", folder / "run"],
        input="\n".join(lines), capture_output=True, text=True, cwd=ROOT,
        env={"PATH": "/usr/bin", "COLUMNS": "60", "HOME": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = done.stdout
    assert "\x1b" not in told
    assert max(map(len, told.splitlines())) <= 60
    for part in ("fix the bug", "frence → france", "exact, for the corpus", "nearest mixture",
                 "in the same dialogue", "trained on code:bad", "no command '/nonsense'",
                 "A new dialogue with hal", "Saved in"):  # fmt: skip
        assert part in told, part
    saved = json.loads((folder / "said.json").read_text())
    assert saved["header"] == "hal"
    assert saved["model"] == "align/code:bad"
    close(sum(part["exact"] for part in saved["who"].values()), 1, FLOAT64)
