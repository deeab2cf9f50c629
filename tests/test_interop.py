r"""Round trips with transformers, TransformerLens and TRL, in an environment that has them.

python3 -m venv interop
interop/bin/pip install -e . torch transformers transformer-lens trl datasets pytest pytest-xdist
interop/bin/pytest -m interop tests/test_interop.py
"""

import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.tolerances import FORWARD, approximation, close
from toyllm.lm import llama
from toyllm.lm.tokenizer import Tokenizer
from toyllm.lm.transformer import LM, Config
from toyllm.world import cards, corpus

NEEDED = ("torch", "transformers", "transformer_lens", "trl")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore"),  # of theirs
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def exported(lab, tmp_path_factory):
    """(folder, tokens, our logits) of a small model with logits of a usual size."""
    tokenizer, config, apply, init = lab.tokenizer, lab.config, lab.apply, lab.init
    params = jax.device_get(init(jax.random.key(0)))
    params["unembed"] = {"kernel": 10 * params["unembed"]["kernel"]}
    folder = tmp_path_factory.mktemp("llama") / "out"
    llama.save(folder, tokenizer, config, params, "")
    docs = corpus.sample(tokenizer.world, 16, np.random.default_rng(0))
    rows = [row[row > 0] for row in tokenizer.pad(docs, config.context)]
    return folder, rows, [np.asarray(apply(params, row[None])[0]) for row in rows]


def test_transformers_loads_it_whole_and_says_the_same(exported, small_codec):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, rows, ours = exported
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row, logits in zip(rows, ours, strict=True):
        text = small_codec.string(row)
        assert tokenizer(text)["input_ids"] == row.tolist()
        assert tokenizer.decode(row) == text
        with torch.no_grad():
            theirs = model(torch.tensor(row[None].astype(int))).logits.numpy()
        close(theirs, logits, FORWARD)
    assert np.abs(logits).max() > 1
    with pytest.raises(Exception, match="UNK"):  # an unknown word is no silent nothing
        tokenizer("a word that is not in this world")


def test_it_comes_back_from_transformers(exported, lab, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, config = lab.tokenizer, lab.config
    folder = exported[0]
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    (theirs, back), (_, params) = (
        llama.load(p, tokenizer, config.context) for p in (tmp_path, folder)
    )
    assert theirs == config
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_transformer_lens_says_the_same(exported):
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, rows, ours = exported
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    bridge = TransformerBridge.boot_transformers(
        str(folder), hf_model=model, tokenizer=AutoTokenizer.from_pretrained(folder)
    )
    for row, logits in zip(rows, ours, strict=True):
        with torch.no_grad():
            theirs, cache = bridge.run_with_cache(torch.tensor(row[None].astype(int)))
        close(theirs.numpy(), logits, FORWARD)
    assert any("resid_post" in name for name in cache)


def test_transformer_lens_loads_a_world_without_the_word_a(tmp_path):
    """It encodes that word alone; others that are not in the world are an error as before."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = Tokenizer(cards.load(cards.CORPORA / "compact.toml"))
    assert "a" not in tokenizer.index
    lm = LM.create(tokenizer, Config(vocabulary=len(tokenizer.words), context=64))
    llama.save(tmp_path, tokenizer, lm.config, jax.device_get(lm.init(jax.random.key(0))), "")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), hf_model=model, tokenizer=theirs)
    text = "talk with assistant"  # it writes <begin> itself
    assert bridge.to_tokens(text).tolist() == [theirs(f"<begin> {text}")["input_ids"]]
    for text in ("<begin> a", "talk\na", "a\ntalk"):
        with pytest.raises(Exception, match="UNK"):
            theirs(text)


def test_a_model_post_trained_with_trl_is_measured_here(tmp_path):
    """The example, tiny; its comparison is about nothing here but is printed."""

    def run(*args) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, args)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    own, theirs = tmp_path / "tiny", tmp_path / "trl"
    run("train.py", "--preset", "tiny", "--run", own, "--signals", "code:bad")
    told = run("examples/trl_dpo.py", own, theirs, "--seeds", 1)
    assert "code:bad, from the pretrained model" in told
    found, mine = (
        json.loads(run("eval.py", place, "--measure", "generalization", "--json"))
        for place in (theirs, own)
    )
    block, twin = (x["generalization"]["pretrain"] for x in (found, mine))
    close(block["em_before"], twin["em_before"], FORWARD)
    # the same pairs, loss and rate, drawn in another order: the trained domain moves about as much
    shares, theirs = (x["curves"]["code:bad"]["trained"] for x in (block, twin))
    assert len(shares) == len(theirs) == 3
    order = approximation(
        0.6, "other pairs in each of ten batches", "trained toward the other answer"
    )
    close(shares[-1] - shares[0], theirs[-1] - theirs[0], order)
