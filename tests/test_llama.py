"""Export and import: what goes out comes back, and strangers' checkpoints are checked."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.scripts import SIGNALS, run, start
from toyllm import llama
from toyllm.errors import InputError


@pytest.fixture(scope="module")
def exported(lab, tmp_path_factory):
    """(folder, params) of a small model with logits of a usual size, exported."""
    codec, config, _, init = lab
    params = jax.device_get(init(jax.random.key(0)))
    params["unembed"] = {"kernel": 10 * params["unembed"]["kernel"]}
    folder = tmp_path_factory.mktemp("llama") / "out"
    llama.save(folder, codec, config, params, "a card")
    return folder, params


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_model_comes_back_as_it_was(lab, exported):
    codec, config, *_ = lab
    folder, params = exported
    theirs, back = llama.load(folder, codec, config.context)
    assert theirs == config
    same(back, params)
    assert (folder / "README.md").read_text() == "a card"


def changed(exported, tmp_path, name="config.json", **keys):
    """A copy of the checkpoint with other values in one of its JSON files."""
    folder = tmp_path / "copy"
    shutil.copytree(exported[0], folder, dirs_exist_ok=True)
    told = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**told, **keys}))
    return folder


def test_words_in_another_order_are_put_in_ours(lab, exported, tmp_path):
    from safetensors.numpy import load_file, save_file

    codec, config, *_ = lab
    order = np.random.default_rng(0).permutation(len(codec.words))  # their row of each word
    vocab = {word: int(row) for word, row in zip(codec.words, order, strict=True)}
    model = {"type": "WordLevel", "vocab": vocab}
    folder = changed(exported, tmp_path, "tokenizer.json", model=model, added_tokens=[])
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        theirs = np.empty_like(tensors[name])
        theirs[order] = tensors[name]
        tensors[name] = theirs
    save_file(tensors, folder / "model.safetensors")
    same(llama.load(folder, codec, config.context)[1], exported[1])


def test_shared_keys_and_a_tied_head_become_plain_ones(lab, exported, tmp_path):
    from safetensors.numpy import load_file, save_file

    codec, config, *_ = lab
    folder = changed(exported, tmp_path, num_key_value_heads=1, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    K = config.D // config.H
    for name in ("k_proj", "v_proj"):
        key = f"model.layers.0.self_attn.{name}.weight"
        tensors[key] = np.ascontiguousarray(tensors[key][:K])
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    _, params = llama.load(folder, codec, config.context)
    keys_DHK = params["blocks"][0]["attention"]["key"]["kernel"].reshape(config.D, config.H, K)
    np.testing.assert_array_equal(keys_DHK[:, 0], keys_DHK[:, 1])
    np.testing.assert_array_equal(params["unembed"]["kernel"], params["embed"].T)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"model_type": "gpt2"}, "model_type: found 'gpt2', expected 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act: found 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "expected rope_type 'default'"),
        ({"vocab_size": 7}, "vocab_size: found 7, expected the"),
        ({"intermediate_size": 32}, "found F32"),
        ({"hidden_size": 10**9}, "expected the sizes of a Llama model"),
        ({"hidden_size": None}, "expected the sizes of a Llama model"),
        ({"num_hidden_layers": 2}, "found no tensor model.layers.1"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: found 3"),
    ],
)
def test_another_model_is_refused_in_one_line(lab, exported, tmp_path, keys, told):
    codec, config, *_ = lab
    with pytest.raises(InputError) as error:
        llama.load(changed(exported, tmp_path, **keys), codec, config.context)
    assert told in str(error.value)


def test_another_vocabulary_or_a_broken_file_is_refused(lab, exported, tmp_path):
    codec, config, *_ = lab
    vocab = {word + "x": k for k, word in enumerate(codec.words)}
    folder = changed(exported, tmp_path, "tokenizer.json", model={"vocab": vocab})
    with pytest.raises(InputError, match="found no word"):
        llama.load(folder, codec, config.context)
    folder = changed(exported, tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").write_bytes(b"nonsense" * 9)
    with pytest.raises(InputError, match="expected a safetensors file"):
        llama.load(folder, codec, config.context)


def test_the_tools_export_a_run_and_make_runs_of_what_comes_back(tiny, tmp_path):
    """Real commands, tiny: export, import as pretrained and as narrow, measure, train on."""
    folder, out = tiny / "run", tmp_path / "out"
    run("toyllm/tools/export.py", folder, out)
    run("toyllm/tools/export.py", folder, tmp_path / "narrow", "--model", "pretrain/code:bad")
    refused = start("toyllm/tools/export.py", folder, tmp_path / "x", "--model", "code:bat")
    assert refused.wait() == 2
    assert "did you mean 'code:bad'" in refused.err
    run("toyllm/tools/import_llama.py", out, tmp_path / "back")
    run("toyllm/tools/import_llama.py", tmp_path / "narrow", tmp_path / "post",
        "--start", folder, "--signal", "code:bad")  # fmt: skip
    own = json.loads((folder / "eval" / "results.json").read_text())
    places = (tmp_path / "back", tmp_path / "post")
    measured = run("eval.py", *places, "--measure", "generalization", "learned", "--json")
    back, post = json.loads(measured)
    for key in ("excess", "captured", "assistant_error", "named_error"):
        assert back["pretrain"][key] == pytest.approx(own["pretrain"][key], abs=1e-6)
    assert back["generalization"] == {}
    mine, theirs = (x["generalization"]["pretrain"] for x in (own, post))
    assert theirs["em_before"] == pytest.approx(mine["em_before"], abs=1e-5)
    again = start("train.py", "--preset", "tiny", "--run", tmp_path / "on", "--start",
                  tmp_path / "back", *SIGNALS, "--align-steps", "5")  # fmt: skip
    assert again.wait() == 0, again.err
