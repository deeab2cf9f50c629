"""TensorBoard events, without TensorFlow: scalars, text, images, hyperparameters."""

import contextlib
import errno
import hashlib
import io
import os
import platform
import time
import uuid
from pathlib import Path

import numpy as np

from toyllm.base import devices
from toyllm.base.errors import tell

MOST = 2**28  # bytes of an event file that is read again
LAYOUT = {  # the page of custom scalars: a part for each stage; charts: title → regular expressions
    "pretrain": {
        "loss (nats a token)": ["pretrain/loss"],
        "excess over the ideal observer": ["pretrain/excess"],
        "captured of who is speaking": ["pretrain/captured"],
    },
    **{
        stage: {
            "bad answers by domain (EM)": [f"{stage}/em/.*"],
            "coherence by domain": [f"{stage}/coherence/.*"],
            "who the Assistant is (groups of characters)": [rf"{stage}/drift/(?!worst_|kl_).*"],
            "log-probability of chosen and rejected": [f"{stage}/(chosen|rejected)"],
        }
        for stage in ("align", "narrow")
    },
}


class SummaryWriter:
    """Writes one event file in a folder. `None` and NaN values are left out.

    after: the step that training goes on from. What earlier sessions wrote of later steps is left
        out, so that a run that was killed and resumed shows each step once; -1: all of it is.

    Every event is with the operating system at once, whole or not at all. Where the disk refuses
    one, that is told once, and training goes on. TensorBoard is imported with the first event. Only
    the first process writes.
    """

    def __init__(self, folder: Path, after: int = -1):
        self.folder, self.after, self.file, self.told = folder, after, None, False

    def scalars(self, step: int, values: dict) -> None:
        """Write {tag: number}, as one event."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        numbers = {tag: x for tag, x in values.items() if x is not None and np.isfinite(x)}
        parts = [scalar_pb(tag, float(x)).value[0] for tag, x in numbers.items()]
        if parts:
            self._write(step, Summary(value=parts))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Write a text; Markdown is rendered."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._write(step, text_pb(tag, markdown))

    def image(self, step: int, tag: str, png: bytes) -> None:
        """Write a picture, given as the bytes of a PNG file."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.image.metadata import create_summary_metadata

        width, height = (int.from_bytes(png[k : k + 4], "big") for k in (16, 20))
        strings = [str(width).encode(), str(height).encode(), png]
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(strings))])
        tensor = TensorProto(dtype=DT_STRING, string_val=strings, tensor_shape=shape)
        metadata = create_summary_metadata(display_name=tag, description="")
        value = Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
        self._write(step, Summary(value=[value]))

    def layout(self, parts: dict[str, dict[str, list[str]]]) -> None:
        """Write the page of custom scalars: {part: {chart: tags, as regular expressions}}."""
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.custom_scalar import layout_pb2, metadata

        categories = [
            layout_pb2.Category(
                title=part,
                chart=[
                    layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=t))
                    for title, t in charts.items()
                ],
            )
            for part, charts in parts.items()
        ]
        told = layout_pb2.Layout(category=categories).SerializeToString()
        tensor = TensorProto(dtype=DT_STRING, string_val=[told])
        plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME)
        value = Summary.Value(
            tag=metadata.CONFIG_SUMMARY_TAG,
            metadata=SummaryMetadata(plugin_data=plugin),
            tensor=tensor,
        )
        self._write(0, Summary(value=[value]))

    def hparams(self, run: Path, values: dict) -> None:
        """Write the row of a run folder in the HParams tab; metrics are scalars of this folder.

        Runs of one name are one row there. So the name has a few digits of the SHA-256 of the whole
        path, which is not shown: an event file may go to others.
        """
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        simple = {k: v for k, v in values.items() if isinstance(v, str | bool | int | float)}
        path = run.resolve()
        digits = hashlib.sha256(os.fsencode(path)).hexdigest()[:6]
        self._write(0, hparams_pb(simple, trial_id=f"{path.parent.name}/{path.name} {digits}"))

    def close(self) -> None:
        """Close the file."""
        if self.file:
            self.file.close()

    def __enter__(self) -> "SummaryWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _write(self, step: int, summary) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        if not devices.first():
            return
        event = Event(step=step, wall_time=time.time(), summary=summary)
        try:
            self.file = self.file or self._open()
            _append(self.file, event.SerializeToString())
        except OSError as error:
            if not self.told:
                message = f"{self.folder}: TensorBoard's events cannot be written"
                tell(f"{message} ({error.strerror}); going on without")
            self.told = True

    def _open(self):
        """A new event file that begins with what earlier sessions wrote and is still true."""
        from tensorboard.compat.proto.event_pb2 import Event

        self.folder.mkdir(parents=True, exist_ok=True)
        earlier = sorted(self.folder.glob("events.out.tfevents.*"))
        # each once: a process may have been killed after it had copied some
        kept = dict.fromkeys(data for old in earlier for data in _events(old, self.after))
        # named as TensorBoard names them, and told apart however soon two follow each other
        unique = f"{time.time():.0f}.{platform.node()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        path = self.folder / f"events.out.tfevents.{unique}"
        file = io.FileIO(path, "x")  # no buffer: what is written is with the operating system
        header = Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()
        try:
            for data in [header, *kept]:
                _append(file, data)
        except OSError:
            file.close()
            path.unlink()
            raise
        for old in earlier:
            old.unlink()
        return file


def _append(file, data: bytes) -> None:
    """Write one record, whole or not at all. Raises OSError."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    record, begin = io.BytesIO(), file.tell()
    RecordWriter(record).write(data)
    try:
        if file.write(record.getvalue()) < len(record.getvalue()):
            # a full disk takes a part, and would say so only the next time
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        file.truncate(begin)
        file.seek(begin)
        raise


def _events(path: Path, after: int) -> list[bytes]:
    """The events of a file up to step `after`, as far as they can be read."""
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    kept = []
    if after < 0 or path.stat().st_size > MOST:
        return kept
    # a record may say that it is longer than memory, or be no event
    with contextlib.suppress(DecodeError, MemoryError, OverflowError):
        for data in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(data)
            if event.summary.value and event.step <= after:
                kept.append(data)
    return kept
