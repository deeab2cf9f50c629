"""Checkpoints and events on disks that fail: nothing wrong is ever loaded, nothing good is lost."""

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import ROOT
from toyllm.base.errors import InputError, RunError
from toyllm.runs import checkpoints, lock


def tree(step: int) -> dict:
    """A tree as an optimizer has them: numbers, vectors, matrices, half precision."""
    keys = jax.random.split(jax.random.key(step), 3)
    return {
        "params": {"a": jax.random.normal(keys[0], (17, 11)), "b": {"c": jnp.arange(5.0) + step}},
        "opt_state": (
            jnp.int32(step),
            [jax.random.normal(keys[1], (2, 7, 3)), jnp.ones(3, jnp.bfloat16)],
        ),
    }


def wanted(record: dict) -> dict:
    return tree(0)


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints of steps 20 and 30; that of step 10 was dropped."""
    folder = tmp_path_factory.mktemp("checkpoints") / "saved"
    for step in (10, 20, 30):
        checkpoints.save(folder, step, tree(step), {"seen": step})
    assert checkpoints.steps(folder) == [30, 20]
    assert sorted(p.name for p in folder.iterdir()) == ["20.safetensors", "30.safetensors"]
    return folder


def test_what_is_saved_is_loaded(saved):
    found = checkpoints.load(saved, wanted)
    assert (found.step, found.facts) == (30, {"seen": 30})
    assert same(found.items, tree(30))
    dtypes = [str(x.dtype) for x in jax.tree.leaves(found.items)]
    assert dtypes == [str(x.dtype) for x in jax.tree.leaves(tree(0))]
    part = checkpoints.load(saved, lambda record: {"params": tree(0)["params"]})
    assert same(part.items, {"params": tree(30)["params"]})


def damage(path, how: str, rng: random.Random) -> None:
    """Do to a file what disks do."""
    data = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "zeroed":
        path.write_bytes(bytes(len(data)))
    elif how == "deleted":
        path.unlink()
    elif data:
        bit = rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "zeroed", "deleted", "one bit flipped"])
def test_a_damaged_file_is_never_loaded(saved, tmp_path, how):
    """The one before it is."""
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    damage(folder / "30.safetensors", how, random.Random(0))
    found, complaints = checkpoints.resume(folder, wanted)
    assert (found.step, found.facts) == (20, {"seen": 20})
    assert same(found.items, tree(20))
    assert checkpoints.steps(folder) == [20]
    if how != "deleted":
        assert str(folder / "30.safetensors") in complaints[0]
        assert (folder / "30.safetensors.damaged").exists()


def test_every_byte_has_a_bit_flipped(saved, tmp_path):
    """A bug found: a bit in the header's names or shapes was an error, not damage to go back from.

    A digest of the arrays alone would not look there.
    """
    rng, data = random.Random(0), (saved / "30.safetensors").read_bytes()
    for k in range(len(data)):
        flipped = bytearray(data)
        flipped[k] ^= 1 << rng.randrange(8)
        (tmp_path / "30.safetensors").write_bytes(flipped)
        with pytest.raises(checkpoints.Damaged):
            checkpoints.load(tmp_path, wanted)


def test_nothing_good_left(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    for step in (20, 30):
        (tmp_path / "copy" / f"{step}.safetensors").write_bytes(b"")
    found, complaints = checkpoints.resume(tmp_path / "copy", wanted)
    assert found is None
    assert len(complaints) == 2
    assert checkpoints.resume(tmp_path / "none", wanted) == (None, [])


def test_what_cannot_be_loaded_for_other_reasons_is_not_set_aside(saved, tmp_path, monkeypatch):
    """A bug found: where memory was short, all good checkpoints were taken for damaged ones."""
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)

    def short(path):
        raise MemoryError

    monkeypatch.setattr(checkpoints, "_verify", short)
    with pytest.raises(RunError, match="cannot be read"):
        checkpoints.resume(folder, wanted)
    assert checkpoints.steps(folder) == [30, 20]


def test_what_a_killed_process_left_is_removed(saved, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    (folder / "50.safetensors.tmp").write_bytes(b"half of it")  # killed before it was renamed
    (folder / "mine").mkdir()
    found, complaints = checkpoints.resume(folder, wanted)
    assert (found.step, complaints) == (30, [])
    assert {p.name for p in folder.iterdir()} == {"20.safetensors", "30.safetensors", "mine"}


def test_checkpoints_of_an_earlier_version_are_refused_in_one_line(tmp_path):
    (tmp_path / "30" / "params").mkdir(parents=True)
    (tmp_path / "30.json").write_text("{}")
    for call in (checkpoints.load, checkpoints.resume):
        with pytest.raises(InputError, match="of an earlier version of toyllm"):
            call(tmp_path, wanted)
    assert (tmp_path / "30").exists()


@pytest.mark.parametrize("name", ["a#b", "50%", "what?", "a|b", "[a]", "a\\b", "a b", "ä", "*"])
def test_a_folder_may_have_any_name(tmp_path, name):
    """A bug found: in a folder with '#' in its name, good checkpoints were called damaged."""
    folder = tmp_path / name / "checkpoints"
    checkpoints.save(folder, 1, tree(1), {"seen": 1})
    checkpoints.save(folder, 2, tree(2), {"seen": 2})
    found, complaints = checkpoints.resume(folder, wanted)
    assert (found.step, complaints) == (2, [])
    assert same(found.items, tree(2))


def test_what_cannot_be_loaded_is_not_saved(tmp_path):
    """A bug found: with 64-bit floats a run was saved, and every load refused it."""
    with pytest.raises(RunError, match=r"params/a is float64, expected one of float32"):
        checkpoints.save(tmp_path, 1, {"params": {"a": np.ones(3)}})
    assert not list(tmp_path.iterdir())


def test_other_files_in_the_folder_are_left_alone(saved, tmp_path):
    """What file managers and network file systems leave behind is no checkpoint."""
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    strays = (
        ".DS_Store",
        "._30.safetensors",
        ".nfs00a1",
        "Thumbs.db",
        "40-old.safetensors",
        "007.safetensors",
    )
    for name in strays:
        (folder / name).write_bytes(b"x")
    found, complaints = checkpoints.resume(folder, wanted)
    assert (found.step, complaints) == (30, [])
    assert all((folder / name).exists() for name in strays)


def test_other_shapes_and_dtypes_are_refused_leaf_by_leaf(saved):
    def other(record):
        return tree(0) | {
            "params": {"a": jnp.ones((17, 12)), "b": {"c": jnp.ones(5, jnp.bfloat16)}}
        }

    with pytest.raises(InputError) as caught:
        checkpoints.load(saved, other)
    for words in (
        "params/a: float32[17, 11] → float32[17, 12]",
        "params/b/c: float32[5] → bfloat16[5]",
    ):
        assert words in str(caught.value)
    assert not isinstance(caught.value, checkpoints.Damaged)
    with pytest.raises(InputError, match=r"params/d: nothing → float32\[1\]"):
        checkpoints.load(saved, lambda record: {"params": {**tree(0)["params"], "d": jnp.ones(1)}})


def test_a_lock_that_was_left_behind_is_no_lock(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "x", "since": "", "command": ""}))
    with lock.hold(tmp_path):
        said = json.loads((tmp_path / "lock").read_text())
        assert said["pid"] > 1
        told = f"in use by process {said['pid']} on .* end it: kill"
        with pytest.raises(InputError, match=told), lock.hold(tmp_path):
            pass
    with lock.hold(tmp_path):
        pass


def on_small_disk(code: str, kilobytes: int, tmp_path) -> str:
    """Run Python code in a folder on a file system of this size; what it prints."""
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs "$PLACE" && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-r", "-m", "sh", "-c", mount, sys.executable, SMALL_DISK + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PLACE": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SMALL_DISK = """
import os, pathlib, sys, errno
import numpy as np
from toyllm import checkpoints
from toyllm.base.errors import RunError, InputError
place = pathlib.Path(os.environ["PLACE"])
def fill(leave=0):
    with open(place / "fill", "wb", buffering=0) as file:
        try:
            while True: file.write(bytes(1024))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(max(0, file.tell() - leave))
def tree(step):
    return {"params": {"a": np.random.default_rng(step).random((100, 100), np.float32)}}
"""
can_mount = (
    shutil.which("unshare") is not None
    and subprocess.run(
        ["unshare", "-r", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"], capture_output=True
    ).returncode
    == 0
)
needs_mount = pytest.mark.skipif(not can_mount, reason="needs a user namespace with mounts")


@needs_mount
def test_a_disk_that_is_full_during_a_save(tmp_path):
    """With no room at all, and with room for a part; the step before stays what it was."""
    out = on_small_disk(
        textwrap.dedent("""
        checkpoints.save(place / "c", 1, tree(1), {"seen": 1})
        for leave in (0, 4096, 16384, 30000, 40000):
            fill(leave)
            try:
                checkpoints.save(place / "c", 2, tree(2), {"seen": 2})
            except RunError as error:
                assert "cannot be saved" in str(error) and "\\n" not in str(error), error
                print(error)
            else:
                raise SystemExit(f"saved with {leave} bytes left")
            found, complaints = checkpoints.resume(place / "c", lambda r: tree(0))
            assert (found.step, complaints) == (1, []), (found, complaints)
            assert np.array_equal(found.items["params"]["a"], tree(1)["params"]["a"])
            assert {p.name for p in (place / "c").iterdir()} == {"1.safetensors"}
        (place / "fill").unlink()
        checkpoints.save(place / "c", 2, tree(2), {"seen": 2})
        assert checkpoints.load(place / "c", lambda r: tree(0)).step == 2
        """),
        400,
        tmp_path,
    )
    assert out.count("No space left") == 5, out


@needs_mount
def test_a_disk_that_is_full_during_an_event(tmp_path):
    """It is told once; what was written before, and what is written later, can be read."""
    out = on_small_disk(
        textwrap.dedent("""
        import contextlib, io
        from toyllm.runs.tensorboard import SummaryWriter
        from tests.test_scripts import events
        said = io.StringIO()
        with SummaryWriter(place / "events") as writer, contextlib.redirect_stderr(said):
            for step in range(5):
                writer.scalars(step, {"a": step})
            fill(100)
            for step in range(5, 10):
                writer.scalars(step, {"a": step})
                writer.text(step, "long", "x" * 5000)
            (place / "fill").unlink()
            writer.scalars(10, {"a": 10})
        told = said.getvalue()
        assert told.count("No space left on device") == 1 and told.count("\\n") == 1, told
        found = [step for step, _ in events(place / "events")["a"]]
        assert found[:5] == [0, 1, 2, 3, 4] and found[-1] == 10, found
        with SummaryWriter(place / "events", after=3) as writer:
            writer.scalars(4, {"a": 4})
        assert [step for step, _ in events(place / "events")["a"]] == [0, 1, 2, 3, 4]
        print("good")
        """),
        200,
        tmp_path,
    )
    assert "good" in out


def test_a_save_that_fails_is_one_line(tmp_path):
    (tmp_path / "c").write_text("a file where a folder should be")
    with pytest.raises(RunError, match="cannot be saved"):
        checkpoints.save(tmp_path / "c", 1, tree(1))
