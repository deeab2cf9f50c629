"""TensorBoard's events, read back."""

from types import SimpleNamespace

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from toyllm.show import exports


def row_of(folder) -> str:
    """The name of the row of the HParams tab that a folder's events are of."""
    reader = EventAccumulator(str(folder))
    reader.Reload()
    content = reader.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    return metadata.parse_session_start_info_plugin_data(content).group_name


def test_two_runs_of_one_name_have_a_row_each(tmp_path):
    """However they are named on the command line; and the row does not show the whole path."""
    keys = "excess", "captured", "assistant_error", "named_error", "named_error_worst", "coherence"
    learned = dict.fromkeys(keys, 0.5)
    results = {"pretrain": learned, "generalization": {}, "prediction": {}, "mixture": {}}
    rows = []
    for folder in (tmp_path / "a" / "seed0", tmp_path / "b" / "seed0", tmp_path / "b/../a/seed0"):
        exports.write_tensorboard(folder, SimpleNamespace(args={"seed": 0}), results)
        rows.append(row_of(folder / "eval"))
    assert rows[0] != rows[1]
    assert rows[0] == rows[2]
    assert [row.split()[0] for row in rows] == ["a/seed0", "b/seed0", "a/seed0"]
    assert str(tmp_path.parent) not in "".join(rows)
