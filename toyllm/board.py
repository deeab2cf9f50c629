"""TensorBoard events, without TensorFlow: scalars, text, images, hyperparameters."""

import time
from pathlib import Path

import numpy as np

from toyllm import devices


class Board:
    """Writes one event file in a folder. `None` and NaN values are left out.

    TensorBoard is imported with the first event. Only the first process writes.
    """

    def __init__(self, folder: Path):
        self.folder, self.writer = folder, None

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

    def hparams(self, name: str, values: dict) -> None:
        """Write the run's row of the HParams tab; metrics are scalars of the same folder."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        simple = {k: v for k, v in values.items() if isinstance(v, str | bool | int | float)}
        self._write(0, hparams_pb(simple, trial_id=name))

    def _write(self, step: int, summary) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if not devices.first():
            return
        self.writer = self.writer or EventFileWriter(str(self.folder))
        self.writer.add_event(Event(step=step, wall_time=time.time(), summary=summary))

    def close(self) -> None:
        """Write what is left and close the file."""
        if self.writer:
            self.writer.close()

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_) -> None:
        self.close()
