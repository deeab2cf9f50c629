"""TensorBoard events, without TensorFlow: scalars, text, images, hyperparameters."""

import contextlib
import errno
import hashlib
import io
import os
import platform
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from toyllm.base import devices, files
from toyllm.base.errors import warn

MAX_BYTES = 2**28  # of an event file that is read again
LAYOUT = {  # the custom scalars page: stage → chart → tags, as regular expressions
    "pretrain": {
        "loss (nats a token)": ["pretrain/loss"],
        "excess over the ideal observer": ["pretrain/excess"],
        "captured of who is speaking": ["pretrain/captured"],
        "forecast: how far a bad signal would spread": ["pretrain/forecast_spread"],
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
    "eval": {
        "spread of each signal": ["spread_from_(pretrain|align)/.*"],
        "what was learned": ["metrics/(captured|excess|coherence)"],
    },
}


class SummaryWriter:
    """Writes one event file in a folder. `None` and NaN values are left out.

    after: the step that training resumes at. Events that earlier sessions wrote for later steps are
        removed, so that a run that was killed and resumed shows each step once; -1 removes all.

    Every event is passed to the operating system at once, whole or not at all. The first write that
    fails prints a warning, and training continues. Only the first process writes.

    TensorBoard is imported with the first event.
    """

    def __init__(self, folder: Path, after: int = -1):
        self.folder, self.after, self.file, self.warned = folder, after, None, False

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
        from tensorboard.plugins.image.metadata import create_summary_metadata

        # a PNG file has its width and height at fixed places
        width, height = (str(int.from_bytes(png[k : k + 4], "big")) for k in (16, 20))
        metadata = create_summary_metadata(display_name=tag, description="")
        self._texts(step, tag, [width, height, png], metadata)

    def layout(self, parts: dict[str, dict[str, list[str]]]) -> None:
        """Write the page of custom scalars: {part: {chart: tags, as regular expressions}}."""
        from tensorboard.plugins.custom_scalar import metadata
        from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

        categories = [
            {
                "title": part,
                "chart": [{"title": title, "multiline": {"tag": t}} for title, t in charts.items()],
            }
            for part, charts in parts.items()
        ]
        data = Layout(category=categories).SerializeToString()
        self._texts(0, metadata.CONFIG_SUMMARY_TAG, data, metadata.create_summary_metadata())

    def hparams(self, run: Path, values: dict) -> None:
        """Write the row of a run folder in the HParams tab; metrics are scalars of this folder.

        Runs of the same name share a row there. So the name ends in a few digits of the SHA-256 of
        the whole path, which itself is private: an event file may be given to others.
        """
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        simple = {k: v for k, v in values.items() if isinstance(v, str | bool | int | float)}
        path = run.resolve()
        digits = hashlib.sha256(os.fsencode(path)).hexdigest()[:6]
        self._write(0, hparams_pb(simple, trial_id=f"{path.parent.name}/{path.name} {digits}"))

    def __enter__(self) -> "SummaryWriter":
        return self

    def __exit__(self, *_) -> None:
        if self.file:
            self.file.close()

    def _texts(self, step: int, tag: str, texts: bytes | list, metadata) -> None:
        """Write a tensor of bytes with the metadata of a plugin."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.util.tensor_util import make_tensor_proto

        tensor = make_tensor_proto(texts, dtype=np.object_)
        self._write(step, Summary(value=[{"tag": tag, "metadata": metadata, "tensor": tensor}]))

    def _write(self, step: int, summary) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        if not devices.first():
            return
        event = Event(step=step, wall_time=time.time(), summary=summary)
        try:
            self.file = self.file or self._open()
            _append(self.file, _framed(event.SerializeToString()))
        except OSError as error:
            if not self.warned:
                message = f"{self.folder}: TensorBoard's events cannot be written"
                warn(f"{message} ({error.strerror}); training continues without them")
            self.warned = True

    def _open(self) -> io.FileIO:
        """A new event file that begins with the events of earlier sessions up to `after`."""
        from tensorboard.compat.proto.event_pb2 import Event

        earlier = sorted(self.folder.glob("events.out.tfevents.*"))
        # without repeats: a process may have been killed before it removed the earlier files
        kept = dict.fromkeys(data for old in earlier for data in _events(old, self.after))
        # TensorBoard's own scheme, with random digits: two may be opened within a second
        unique = f"{time.time():.0f}.{platform.node()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        path = self.folder / f"events.out.tfevents.{unique}"
        header = Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()
        files.write_bytes(path, b"".join(map(_framed, [header, *kept])))
        for old in earlier:
            old.unlink()
        return open(path, "ab", buffering=0)  # without a buffer, so that a kill loses nothing


def _framed(data: bytes) -> bytes:
    """A record of an event file: its length, the data, and their checksums."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(data)
    return record.getvalue()


def _append(file: io.FileIO, record: bytes) -> None:
    """Write one record, whole or not at all. Raises OSError."""
    end = file.seek(0, os.SEEK_END)
    try:
        if file.write(record) < len(record):
            # a full disk takes a part, and raises only at the next write
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        file.truncate(end)
        raise


def _events(path: Path, after: int) -> Iterator[bytes]:
    """The events of a file up to step `after`, as far as they can be read."""
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    if after < 0 or path.stat().st_size > MAX_BYTES:
        return
    # a damaged record may claim any length, or not be an event
    with contextlib.suppress(DecodeError, MemoryError, OverflowError):
        for data in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(data)
            if event.summary.value and event.step <= after:
                yield data
