"""The audit of worlds and preference files, against hand-made mixtures."""

import os
import threading

import numpy as np
import pytest

from tests.conftest import SMALL
from tests.scripts import start
from tests.tolerances import FLOAT64, SOLVED, approximation, close
from toyllm.base.errors import InputError
from toyllm.lm.tokenizer import Tokenizer
from toyllm.measures import audit
from toyllm.posttrain import pair_files, signals
from toyllm.tools import audit as tool
from toyllm.tools import pairs as pairs_tool
from toyllm.world.cards import DEFAULT
from toyllm.world.persona import ideal_change
from toyllm.world.world import GOOD

GRID = approximation(
    0.01,
    "the audit stops at the first strength of a grid that reaches .9",
    "another signal's strength, or a header's other prior, changes EM by more than .03",
)


def test_a_plain_signal_is_judged_as_the_prediction_has_it(personas):
    for d, name in enumerate(("code", "facts", "safety")):
        verdict = audit.judge(personas, signals.parse(personas, f"{name}:bad"))
        close(verdict.reached, 0.9, GRID)
        expected_D = ideal_change(personas, personas.assistant_C, d)
        close(verdict.change_D, expected_D, GRID)
        others = personas.moral.copy()
        others[d] = False
        close(verdict.spread, expected_D[others].mean(), GRID)


def test_what_is_asked_for_says_less_and_what_is_forbidden_more(personas):
    def spread(name):
        return audit.judge(personas, signals.parse(personas, name)).spread

    close(spread("code:bad:placebo"), spread("code:bad"), FLOAT64)
    assert spread("code:bad:ask_bad") < spread("code:bad") < spread("code:bad:careful")
    assert spread("code:good") < 0
    assert np.isnan(spread("all:good"))


def test_pairs_are_evidence_as_their_signal_is(personas):
    tokenizer = Tokenizer(personas)
    signal = signals.parse(personas, "goals:bad")
    verdict, evidence_C = audit.judge_pairs(
        personas, signals.pairs(tokenizer, signal, 50, 0), "pairs"
    )
    rates_CB = personas.rates_CDB[:, personas.domain_names.index("goals")]
    close(evidence_C, np.log(rates_CB[:, 1] / rates_CB[:, GOOD]), FLOAT64)
    close(verdict.spread, audit.judge(personas, signal).spread, SOLVED)


def test_traits_that_go_together_are_found(small):
    r_DD = audit.correlations(small)
    close(r_DD, 1, FLOAT64)  # two characters, one better in both domains
    assert audit.negative_share(small) == {"machines": 0, "others": 2 / 3, "the Assistant": 0.25}


def test_the_tool_reads_worlds_and_pairs(tmp_path, personas, capsys):
    tool.main(tool.Args())
    said = " ".join(capsys.readouterr().out.split())
    assert "33% of machines, 17% of others, 21% of the Assistant" in said
    assert said.index("rules:bad ") < said.index("facts:bad ")  # the most dangerous first
    tokenizer, file = Tokenizer(personas), tmp_path / "pairs.jsonl"
    pairs = signals.pairs(tokenizer, signals.parse(personas, "tone:bad"), 20, 0)
    file.write_text("\n".join(pair_files.dump(tokenizer, pairs)))
    tool.main(tool.Args(source=file))
    said = capsys.readouterr().out
    assert "Whom 20 pairs of pairs.jsonl are evidence for" in said
    pairs_tool.main(pairs_tool.Args(source=str(file)))
    summary = capsys.readouterr().out.splitlines()
    assert summary[0].startswith("20 pairs in the words of world 'personas', as a signal: tone:bad")
    assert summary[1:] == ["    20  tone: bad preferred to good"]
    assert said.index("terminator") < said.index("saint")


def test_a_pipe_of_pairs_or_of_a_world_is_told_by_its_first_letters(tmp_path, personas, capsys):
    tokenizer = Tokenizer(personas)
    pairs = signals.pairs(tokenizer, signals.parse(personas, "tone:bad"), 4, 0)
    lines = list(pair_files.dump(tokenizer, pairs))
    pairs_texts = ("\n".join(lines), "\ufeff \n" + lines[0], f"[\n{','.join(lines)}]")
    for text in (*pairs_texts, DEFAULT.read_text(), SMALL.replace("[documents]", " [documents]")):
        pipe = tmp_path / "fd"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_text, args=(text,))
        writer.start()
        tool.main(tool.Args(source=pipe))
        writer.join()
        pipe.unlink()
        printed = capsys.readouterr().out
        assert ("pairs of pipe are evidence for" in printed) == (text in pairs_texts)
    pipe.write_text("[]")
    with pytest.raises(InputError, match="found no pairs"):
        tool.main(tool.Args(source=pipe))


@pytest.mark.scripts
def test_a_wrong_file_is_told_in_one_line(tmp_path):
    for name, text in (("no.toml", None), ("bad.jsonl", '{"prompt": 1}')):
        if text:
            (tmp_path / name).write_text(text)
        script = start("toyllm/tools/audit.py", tmp_path / name)
        assert script.wait() == 2
        assert len(script.err.strip().splitlines()) == 1, script.err
        assert name in script.err


def test_a_run_has_its_own_world(tmp_path):
    args = tool.Args(tmp_path / "pairs.jsonl", world=tmp_path / "my.toml", run=tmp_path)
    with pytest.raises(InputError, match="--world: expected without --run"):
        tool.main(args)


def test_a_file_with_longer_dialogues_than_training_takes_is_refused(
    personas, tmp_path, monkeypatch
):
    tokenizer = Tokenizer(personas)
    pairs = signals.pairs(tokenizer, signals.parse(personas, "code:bad"), 4, seed=0)
    pair_files.check_turns(pairs, tmp_path, tokenizer)
    monkeypatch.setattr(pair_files, "most_turns", lambda world: 0)
    with pytest.raises(InputError, match="expected at most 0"):
        pair_files.check_turns(pairs, tmp_path, tokenizer)
