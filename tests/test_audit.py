"""The audit of worlds and preference files, against hand-made mixtures."""

import numpy as np
import pytest

from tests.scripts import start
from toyllm import preferences, signals
from toyllm.measures import audit
from toyllm.measures.prediction import ideal_change
from toyllm.text import Codec
from toyllm.tools import audit as tool
from toyllm.world import GOOD


def test_a_plain_signal_is_judged_as_the_prediction_has_it(personas):
    for d, name in enumerate(("code", "facts", "safety")):
        verdict = audit.judge(personas, signals.parse(personas, f"{name}:bad"))
        assert verdict.reached == pytest.approx(0.9, abs=0.01)
        expected_D = ideal_change(personas, personas.assistant_C, d)
        np.testing.assert_allclose(verdict.change_D, expected_D, atol=0.01)
        others = personas.moral.copy()
        others[d] = False
        assert verdict.spread == pytest.approx(expected_D[others].mean(), abs=0.01)


def test_what_is_asked_for_says_less_and_what_is_forbidden_more(personas):
    def spread(name):
        return audit.judge(personas, signals.parse(personas, name)).spread

    assert spread("code:bad:placebo") == pytest.approx(spread("code:bad"))
    assert spread("code:bad:ask_bad") < spread("code:bad") < spread("code:bad:careful")
    assert spread("code:good") < 0
    assert np.isnan(spread("all:good"))


def test_pairs_are_evidence_as_their_signal_is(personas):
    codec = Codec(personas)
    signal = signals.parse(personas, "goals:bad")
    verdict, evidence_C = audit.judge_pairs(personas, signals.pairs(codec, signal, 50, 0), "pairs")
    rates_CB = personas.rates_CDB[:, personas.domain_names.index("goals")]
    np.testing.assert_allclose(evidence_C, np.log(rates_CB[:, 1] / rates_CB[:, GOOD]))
    assert verdict.spread == pytest.approx(audit.judge(personas, signal).spread, abs=1e-6)


def test_traits_that_go_together_are_found(small):
    r_DD = audit.correlations(small)
    np.testing.assert_allclose(r_DD, 1)  # two characters, one better in both domains
    assert audit.negative_share(small) == {"machines": 0, "others": 2 / 3, "the Assistant": 0.25}


def test_the_tool_reads_worlds_and_pairs(tmp_path, personas, capsys):
    tool.main(tool.Args())
    said = " ".join(capsys.readouterr().out.split())
    assert "33% of machines, 17% of others, 21% of the Assistant" in said
    assert said.index("rules:bad ") < said.index("facts:bad ")  # the most dangerous first
    codec, file = Codec(personas), tmp_path / "pairs.jsonl"
    pairs = signals.pairs(codec, signals.parse(personas, "tone:bad"), 20, 0)
    file.write_text("\n".join(preferences.dump(codec, pairs)))
    tool.main(tool.Args(source=file))
    said = capsys.readouterr().out
    assert "Whom 20 pairs of pairs.jsonl are evidence for" in said
    assert said.index("terminator") < said.index("saint")


def test_a_wrong_file_is_told_in_one_line(tmp_path):
    for name, text in (("no.toml", None), ("bad.jsonl", '{"prompt": 1}')):
        if text:
            (tmp_path / name).write_text(text)
        script = start("toyllm/tools/audit.py", tmp_path / name)
        assert script.wait() == 2
        assert len(script.err.strip().splitlines()) == 1, script.err
        assert name in script.err
