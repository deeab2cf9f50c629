"""The two scripts, run tiny from end to end, and TensorBoard's pages read back over HTTP."""

import json
import shutil
import threading
import urllib.request

import numpy as np
import pytest

import eval as eval_script
from tests.scripts import SIGNALS, refused, run
from tests.tolerances import FORWARD, close
from toyllm.base.errors import InputError
from toyllm.runs import run_folder


@pytest.fixture(scope="module")
def results(tiny):
    """results.json of the tiny run."""
    return json.loads((tiny / "run" / "eval" / "results.json").read_text())


def events(folder) -> dict[str, list]:
    """Every scalar of an event folder: {tag: [(step, value)]}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    reader = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    reader.Reload()
    return {
        tag: [
            (e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in reader.Tensors(tag)
        ]
        for tag in reader.Tags()["tensors"]
        if reader.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
    }


def test_training_says_what_it_will_do_and_where(tiny):
    trained = (tiny / "trained.txt").read_text()
    assert "18 characters" in trained
    assert "about" in trained
    assert str(tiny / "run") in trained
    assert "uv run eval.py" in trained


def test_the_loss_falls(tiny):
    losses = [value for _, value in events(tiny / "run" / "pretrain")["pretrain/loss"]]
    assert losses[0] > 4
    assert losses[-1] < losses[0] - 2
    assert all(np.isfinite(losses))


def test_results_have_the_agreed_shape(results):
    assert results["schema"] == 2
    assert results["world"] == "personas"
    assert len(results["domains"]) == 10
    for key in (
        "excess",
        "excess_history_blind",
        "captured",
        "floor",
        "assistant_error",
        "named_error",
        "named_error_worst",
        "seconds",
        "tokens_per_second",
    ):
        assert np.isfinite(results["pretrain"][key]), key
    assert results["pretrain"]["excess"] > 0
    assert set(results["moral"]) < set(results["domains"])
    assert results["seconds"] > 0
    assert not {"cues", "forecast", "voices", "beliefs", "audit"} & set(results)  # optional
    assert "starts" in results["prediction"]
    for begin, signals in (("pretrain", 11), ("align", 5)):
        block = results["generalization"][begin]
        assert len(block["status"]) == signals
        for key in (
            "em_before",
            "coherence_before",
            "em_after",
            "coherence_after",
            "spread",
            "spread_ci",
            "matched_step",
            "equal",
            "frontier",
        ):
            assert key in block
        mixture = results["mixture"][begin]
        close(sum(mixture["before"].values()), 1, FORWARD)
        for name, weights in mixture["after"].items():
            close(sum(weights.values()), 1, FORWARD)
            assert set(mixture["residual_after"][name]) >= {"all", "off_domain", "override"}
        assert mixture["residual_before"] >= 0
        assert mixture["floor"] > 0
    assert set(results["calibration"]) >= {"bins", "by_turn"}


def test_tables_csvs_and_figures_are_there(tiny):
    folder, measured = tiny / "run", (tiny / "measured.txt").read_text()
    for title in ("What was learned", "Change of EM by domain", "Who the Assistant is"):
        assert title in measured
    lines = (folder / "eval" / "generalization.csv").read_text().splitlines()
    assert lines[0].startswith("start,signal,read_at,domain")
    assert len(lines) > 1 + 16 * 10
    for name in ("matrix", "mixture", "spread", "calibration"):
        for theme in ("", "-dark"):
            assert (folder / "eval" / f"{name}{theme}.png").stat().st_size > 5000


def test_optional_measures_are_taken_when_asked_for():
    known = eval_script.available()
    optional = set(known) - set(eval_script.STANDARD)
    assert {"cues", "forecast", "voices", "vectors", "truth"} < optional
    assert eval_script.chosen(eval_script.Args(), known) == eval_script.STANDARD
    assert set(eval_script.chosen(eval_script.Args(inside=True), known)) == set(known)
    named = eval_script.Args(measure=(("forecast",), ("voices",)))
    assert eval_script.chosen(named, known) == ("forecast", "voices")


@pytest.mark.long
def test_what_is_inside_is_measured_drawn_and_tested(tiny):
    folder = tiny / "run"
    told = run("eval.py", str(folder), "--measure", "truth", "--measure", "elicitation")
    assert "Truth test" in told
    assert "linear probe" in told
    assert "another speaker's bad turn" in told
    assert {f"elicitation{theme}.png" for theme in ("", "-dark")} <= {
        file.name for file in (folder / "eval").iterdir()
    }
    found = json.loads((folder / "eval" / "results-truth-elicitation.json").read_text())
    assert {row["tool"] for row in found["truth"]} >= {"persona vector", "drift alarm"}
    shown = run("eval.py", str(folder), "--measure", "vectors", "--measure", "beliefs", "--json")
    found = json.loads(shown)
    assert len(found["beliefs"]["layers"]) == 3
    close(
        found["vectors"]["steering"]["1"]["em"][4],
        found["vectors"]["ablation"]["before training"]["as it is"]["em"],
        FORWARD,
    )


def test_a_second_command_trains_nothing_again(tiny):
    folder = tiny / "run"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    assert before
    run("train.py", "--preset", "tiny", "--run", str(folder))
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}


def test_other_arguments_are_refused_with_the_difference(tiny):
    folder = tiny / "run"
    line = refused("train.py", "--preset", "tiny", "--run", str(folder), "--width", "40")
    assert "width: 32 → 40" in line
    assert f"--run {folder}-2" in line


def test_an_unfinished_run_is_told_how_to_go_on(tiny, tmp_path):
    copy = tmp_path / "half"
    shutil.copytree(tiny / "run", copy)
    (copy / "narrow" / "stage.json").unlink()
    line = refused("eval.py", str(copy))
    assert "narrow missing" in line
    assert "uv run train.py" in line
    assert "--preset tiny" in line


def test_a_folder_of_seeds_holds_seeds_of_one_recipe_and_no_links(tiny, tmp_path):
    """An interval over copies of one seed would be nought, and one over two recipes of neither."""

    def say(name: str, value) -> None:
        path = folder / "seed-1" / "config.json"
        saved = json.loads(path.read_text())
        saved["args"][name] = value
        path.write_text(json.dumps(saved))

    folder = tmp_path / "two"
    for seed in (0, 1):
        shutil.copytree(tiny / "run", folder / f"seed-{seed}")
    with pytest.raises(InputError, match="seed-1: found a run of seed 0, expected seed-0"):
        run_folder.load_folder(folder)
    say("seed", 1)
    run_folder.load_folder(folder)
    say("pool", 65)
    line = refused("eval.py", folder)
    assert "seed-1: not of the recipe of seed-0 (pool: 64 → 65)" in line
    (folder / "eval").symlink_to(tmp_path, target_is_directory=True)
    assert "found a link" in refused("eval.py", folder)


def test_another_run_starts_from_its_pretraining(tiny, tmp_path):
    """And changed narrow arguments redo only the narrow stage."""
    folder, other = tiny / "run", tmp_path / "other"
    common = ("--preset", "tiny", "--run", str(other), "--start", str(folder))
    run("train.py", *common, *SIGNALS)
    saved = (other / "align" / "checkpoints" / "20.safetensors").stat().st_mtime_ns
    run("train.py", *common, "--signals", "tone:bad", *SIGNALS[2:])
    assert (other / "align" / "checkpoints" / "20.safetensors").stat().st_mtime_ns == saved
    both = run("eval.py", str(folder), str(other), "--measure", "generalization")
    assert "Comparison" in both
    page = (folder / "eval" / "comparison.html").read_text()
    assert '<th scope="row">signals</th>' in page  # in which they differ
    assert '<th scope="row">width</th>' not in page
    (other / "narrow" / "group-00 copy").mkdir()
    run_folder.load_run(other)  # a copy that a file manager has made is no group
    results = json.loads((other / "eval" / "results-generalization.json").read_text())
    assert list(results["generalization"]["pretrain"]["status"]) == ["tone:bad", "facts:bad"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard itself
def test_tensorboard_serves_what_was_written(tiny):
    """Scalars, text, images and HParams, read back over HTTP."""
    from tensorboard import default, program

    board = program.TensorBoard(plugins=default.get_plugins())
    board.configure(
        argv=[None, "--logdir", str(tiny / "run"), "--load_fast", "false", "--reload_interval", "0"]
    )
    url, stop = serve(board)
    try:

        def read(path: str):
            return json.loads(urllib.request.urlopen(url + path, timeout=60).read())

        scalars = read("data/plugin/scalars/tags")
        tags = {tag for tags in scalars.values() for tag in tags}
        assert {
            "pretrain/loss",
            "pretrain/excess",
            "pretrain/captured",
            "narrow/em/code",
            "narrow/chosen",
            "narrow/rejected",
            "align/drift/worst_untrained",
            "narrow/drift/kl_from_reference",
            "metrics/excess",
        } <= tags
        assert any(tag.startswith("mixture_from_pretrain/") for tag in tags)
        images = read("data/plugin/images/tags")
        assert "figures/matrix" in images["eval/figures"]
        layout = read("data/plugin/custom_scalars/layout")
        assert [part["title"] for part in layout["category"]] == [
            "pretrain",
            "align",
            "narrow",
            "eval",
        ]
        texts = read("data/plugin/text/tags")
        assert "pretrain/sampled dialogues" in texts["pretrain"]
        points = read("data/plugin/scalars/scalars?run=pretrain&tag=pretrain%2Floss")
        assert len(points) == 6
        assert b"TensorBoard" in urllib.request.urlopen(url, timeout=60).read()
        body = json.dumps(
            {
                "experimentName": "",
                "allowedStatuses": [
                    "STATUS_UNKNOWN",
                    "STATUS_SUCCESS",
                    "STATUS_FAILURE",
                    "STATUS_RUNNING",
                ],
                "colParams": [],
                "startIndex": 0,
                "sliceSize": 10,
            }
        ).encode()
        request = urllib.request.Request(
            url + "data/plugin/hparams/session_groups",
            data=body,
            headers={"Content-Type": "application/json"},
        )
        groups = json.loads(urllib.request.urlopen(request, timeout=60).read())
        assert groups["totalSize"] == 1
        assert groups["sessionGroups"][0]["hparams"]["width"] == 32.0
    finally:
        stop()


def serve(board):
    """Start TensorBoard's own server on a free port of this machine; its address and a stop."""
    board.flags.host, board.flags.port = "127.0.0.1", 0
    server = board._make_server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def stop():
        server.shutdown()
        thread.join()

    return server.get_url(), stop
