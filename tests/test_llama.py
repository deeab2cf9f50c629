"""Export and import: what goes out comes back, and strangers' checkpoints are checked."""

import base64
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.conftest import SMALL
from tests.scripts import SIGNALS, refused, run, start
from tests.tolerances import FORWARD, close
from toyllm.base.errors import InputError
from toyllm.lm import llama
from toyllm.runs import lock, run_folder
from toyllm.tools import export, import_llama, release


@pytest.fixture(scope="module")
def exported(lab, tmp_path_factory):
    """(folder, params) of a small model with logits of a usual size, exported."""
    tokenizer, config, init = lab.tokenizer, lab.config, lab.init
    params = jax.device_get(init(jax.random.key(0)))
    params["unembed"] = {"kernel": 10 * params["unembed"]["kernel"]}
    folder = tmp_path_factory.mktemp("llama") / "out"
    llama.save(folder, tokenizer, config, params, "a card")
    return folder, params


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_model_comes_back_as_it_was(lab, exported):
    tokenizer, config = lab.tokenizer, lab.config
    folder, params = exported
    theirs, back = llama.load(folder, tokenizer, config.context)
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


def with_tensors(folder, change):
    """The checkpoint with other tensors: change(tensors) alters them in place."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions_and_several_files_are_read(lab, exported, tmp_path, dtype):
    from safetensors.numpy import load_file, save_file

    tokenizer, config = lab.tokenizer, lab.config
    folder = changed(exported, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [*tensors]
    for k, part in enumerate((names[::2], names[1::2])):
        shard = {name: tensors[name].astype(jax.numpy.dtype(dtype)) for name in part}
        save_file(shard, folder / f"model-{k + 1:05}-of-00002.safetensors")
    _, params = llama.load(folder, tokenizer, config.context)
    near = jax.tree.map(
        lambda x: np.asarray(x).astype(jax.numpy.dtype(dtype)).astype(np.float32), exported[1]
    )
    same(params, near)


def pad(tokenizer, rows):
    """A change that adds so many rows of ones to embedding and head."""

    def change(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = np.pad(tensors[name], ((0, rows), (0, 0)), constant_values=1)

    return change, len(tokenizer.words) + rows


def test_rows_without_a_word_are_dropped(lab, exported, tmp_path):
    tokenizer, config = lab.tokenizer, lab.config
    change, size = pad(tokenizer, 5)
    folder = with_tensors(changed(exported, tmp_path, vocab_size=size), change)
    theirs, params = llama.load(folder, tokenizer, config.context)
    assert theirs == config
    same(params, exported[1])


def test_rows_that_may_be_words_of_another_world_are_refused(lab, exported, tmp_path):
    tokenizer, config = lab.tokenizer, lab.config
    change, size = pad(tokenizer, 2)
    folder = with_tensors(changed(exported, tmp_path, vocab_size=size), change)
    vocab = {**tokenizer.index, "extra": size - 1}
    told = json.loads((folder / "tokenizer.json").read_text())
    told["model"]["vocab"] = vocab
    (folder / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="1 words that world 'small' does not have, such as 'ext"):
        llama.load(folder, tokenizer, config.context)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=f"vocab_size: found {size}, .* with the tokenizer.json"):
        llama.load(folder, tokenizer, config.context)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_weights_that_are_not_finite_are_refused(lab, exported, tmp_path, bad):
    tokenizer, config = lab.tokenizer, lab.config

    def change(tensors):
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = tensors[name].astype(np.float64)
        tensors[name][1, 2] = bad

    folder = with_tensors(changed(exported, tmp_path), change)
    with pytest.raises(
        InputError, match=r"model\.layers\.0\.mlp\.up_proj\.weight: found NaN or inf"
    ):
        llama.load(folder, tokenizer, config.context)


def test_only_whole_names_are_steps_of_a_training(lab, exported, tmp_path, capsys):
    """A copy beside a step does not replace it, and files of a file manager are no weights."""
    shutil.copytree(exported[0], tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-10" / "._model.safetensors").write_bytes(b"of a file manager")
    (tmp_path / "checkpoint-10" / ".DS_Store").write_bytes(b"of a file manager")
    others = ("checkpoint-10 copy", "checkpoint-10-bak", "checkpoint-010", "checkpoint-٣")
    for name in others:
        (tmp_path / name).mkdir()
    steps, (params,) = import_llama.trajectory(tmp_path, lab)
    assert steps == [10]
    same(params, exported[1])
    warned, stray = capsys.readouterr().err.splitlines()
    assert all(name in warned for name in others)
    assert "._model.safetensors: left by a file manager" in stray


def test_what_file_managers_leave_does_not_fill_a_folder(tmp_path, capsys):
    for name in (".DS_Store", "._x", ".nfs0001", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"")
    with lock.take(tmp_path):
        pass
    assert ".DS_Store and 4 more like it: left by" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    with (
        pytest.raises(InputError, match=r"has files but no config\.json"),
        lock.take(tmp_path),
    ):
        pass


def test_an_export_is_whole_or_not_there(tiny, tmp_path, monkeypatch):
    """A disk that is full at any of its files leaves none of them; then the same command works."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".DS_Store").write_bytes(b"")
    fsync, full = os.fsync, OSError(errno.ENOSPC, "No space left on device")
    for count in range(7):
        left = iter([fsync] * count)

        def sync(file, left=left):
            if (step := next(left, None)) is None:
                raise full
            step(file)

        monkeypatch.setattr(os, "fsync", sync)
        with pytest.raises(OSError, match="No space left") as error:
            export.main(export.Args(tiny / "run", folder))
        assert folder in Path(error.value.filename).parents
        assert [path.name for path in folder.iterdir()] == [".DS_Store"]  # not ours to remove
    monkeypatch.setattr(os, "fsync", fsync)
    mask = os.umask(0o027)
    export.main(export.Args(tiny / "run", folder))
    os.umask(mask)
    assert len(files := [path for path in folder.iterdir() if path.name[0] != "."]) == 7
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


def test_words_in_another_order_are_put_in_ours(lab, exported, tmp_path):
    tokenizer, config = lab.tokenizer, lab.config
    order = np.random.default_rng(0).permutation(len(tokenizer.words))  # their row of each word
    vocab = {word: int(row) for word, row in zip(tokenizer.words, order, strict=True)}
    model = {"type": "WordLevel", "vocab": vocab}
    folder = changed(exported, tmp_path, "tokenizer.json", model=model, added_tokens=[])

    def change(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            theirs = np.empty_like(tensors[name])
            theirs[order] = tensors[name]
            tensors[name] = theirs

    with_tensors(folder, change)
    same(llama.load(folder, tokenizer, config.context)[1], exported[1])


def test_shared_keys_and_a_tied_head_become_plain_ones(lab, exported, tmp_path):
    tokenizer, config = lab.tokenizer, lab.config
    folder = changed(exported, tmp_path, num_key_value_heads=1, tie_word_embeddings=True)
    K = config.D // config.H

    def change(tensors):
        for name in ("k_proj", "v_proj"):
            key = f"model.layers.0.self_attn.{name}.weight"
            tensors[key] = np.ascontiguousarray(tensors[key][:K])
        del tensors["lm_head.weight"]

    with_tensors(folder, change)
    _, params = llama.load(folder, tokenizer, config.context)
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
    tokenizer, config = lab.tokenizer, lab.config
    with pytest.raises(InputError) as error:
        llama.load(changed(exported, tmp_path, **keys), tokenizer, config.context)
    assert told in str(error.value)


def test_another_vocabulary_or_a_broken_file_is_refused(lab, exported, tmp_path):
    tokenizer, config = lab.tokenizer, lab.config
    vocab = {word + "x": k for k, word in enumerate(tokenizer.words)}
    folder = changed(exported, tmp_path, "tokenizer.json", model={"vocab": vocab})
    with pytest.raises(InputError, match="found no word"):
        llama.load(folder, tokenizer, config.context)
    folder = changed(exported, tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").write_bytes(b"nonsense" * 9)
    with pytest.raises(InputError, match="expected a safetensors file"):
        llama.load(folder, tokenizer, config.context)


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
        close(back["pretrain"][key], own["pretrain"][key], FORWARD)
    assert back["generalization"] == {}
    mine, theirs = (x["generalization"]["pretrain"] for x in (own, post))
    close(theirs["em_before"], mine["em_before"], FORWARD)
    again = start("train.py", "--preset", "tiny", "--run", tmp_path / "on", "--start",
                  tmp_path / "back", *SIGNALS, "--align-steps", "5")  # fmt: skip
    assert again.wait() == 0, again.err


def test_a_release_holds_every_model_with_its_checksum(tmp_path):
    """Real commands, tiny: two looks at pretraining are kept, and all is loaded by one line."""
    how = ("--preset", "tiny", "--pretrain-steps", "1010", "--keep", *SIGNALS)
    run("train.py", *how, "--run", tmp_path / "one")
    run("toyllm/tools/release.py", tmp_path / "out", tmp_path / "one")
    out = tmp_path / "out"
    models = json.loads((out / "models.json").read_text())
    names = ["pretrain-1000", "pretrain", "align", "pretrain/code:bad", "align/code:bad"]
    assert [one["model"] for one in models] == names
    for line in (out / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    card = (out / "README.md").read_text()
    one = run_folder.load_run(tmp_path / "one")
    for record in models:
        assert record["folder"] in card
        lm, params = release.load(out / record["folder"])
        assert lm.world.digest == one.world.digest == record["world_sha256"]
        jax.tree.map(np.testing.assert_array_equal, params, one.model(record["model"]))
    assert [one["captured"] is None for one in models] == [False, False, True, True, True]
    assert models[0]["captured"] != models[1]["captured"]  # each was measured at its own step
    kept, end = (jax.tree.leaves(one.model(name))[0] for name in names[:2])
    assert np.abs(kept - end).max() > 0
    page = tmp_path / "page.html"
    names = "pretrain-1000", "pretrain", "code:bad"  # the last is short for pretrain/code:bad
    told = run("toyllm/tools/playground.py", tmp_path / "one", "--out", page, "--models", *names)
    assert "(pretrain-1000, pretrain, pretrain/code:bad)" in told
    assert "the pretrained model after 1,000 steps" in page.read_text()
    assert one.about("pretrain-1000").startswith("Pretrained on the corpus for 1,000 steps;")
    assert one.about("align/code:bad").startswith("The aligned model, trained on code:bad")
    one.narrow.kept_step[:] = np.where(np.array(one.narrow.seed) == 0, 35, -1)  # which is taken
    assert " until 90% of its answers" in one.about("pretrain/code:bad")
    one.narrow.kept_step[:] = -1
    assert ", which ended before 90% of its answers" in one.about("pretrain/code:bad")
    elsewhere = dataclasses.replace(one, args={**one.args, "imported": ["DIR"]})
    assert elsewhere.about("pretrain").startswith("Pretrained on the corpus;")
    assert "trained elsewhere on code:bad" in elsewhere.about("align/code:bad")
    line = refused("toyllm/tools/release.py", out, tmp_path / "one")
    assert "is not empty; a free place:" in line


def test_steps_are_kept_where_a_dialogue_does_not_tell_who_speaks(tmp_path):
    """A bug found: of one character nothing can be captured, and that number was not saved."""
    (tmp_path / "small.toml").write_text(SMALL)
    world = tmp_path / "alone.toml"
    world.write_text('extends = "small.toml"\nname = "alone"\nwithout.characters = ["ada"]\n')
    run("train.py", "--preset", "tiny", "--world", world, "--pretrain-steps", "10", "--keep",
        "--run", tmp_path / "one", "--signals", "code:bad")  # fmt: skip
    one = run_folder.load_run(tmp_path / "one")
    assert one.along == [10]
    assert one.captured("pretrain") is one.captured("pretrain-10") is None


def test_a_playground_says_what_it_holds_and_refuses_in_one_line(tiny, tmp_path):
    folder, page = tiny / "run", tmp_path / "page.html"
    names = "pretrain", "pretrain/code:bad"
    told = run("toyllm/tools/playground.py", folder, "--out", page, "--models", *names)
    assert re.search(r"2 models \(pretrain, pretrain/code:bad\), 0\.\d+ MB; half precision", told)
    html = page.read_text()
    assert "http" not in html.replace("http-equiv", "")  # nothing is loaded
    data = json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1]
    )
    weights = np.frombuffer(base64.b64decode(data["models"]["pretrain"]["weights"]), "<f2")
    whole = jax.tree.leaves(run_folder.load_run(folder).model("pretrain"))
    np.testing.assert_array_equal(weights, np.concatenate([x.ravel() for x in whole]).astype("<f2"))
    (row,) = data["matrix"]
    assert row["model"] == "pretrain/code:bad"
    assert row["cells"][0]["after"] > row["cells"][0]["before"]
    line = refused("toyllm/tools/playground.py", folder, "--models", "code:bat")
    assert "did you mean 'code:bad'" in line
    line = refused("toyllm/tools/playground.py", folder, "--out", tmp_path)
    assert "expected the name of a page" in line
