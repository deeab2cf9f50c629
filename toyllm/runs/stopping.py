"""SIGTERM and Ctrl-C: save, then leave; a second one leaves at once."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from toyllm.base.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECOND_S = 0.3  # a second Ctrl-C within this time is the first one, passed on by a launcher


class Stop:
    """Notices signals while in a `with` block.

    A signal raises `Stopped` in the main thread, but within `later` only sets `asked`, for a loop
    that looks at it and saves first. Python runs a handler only between two of its own
    instructions, and a compilation can take ten seconds; so a thread of its own waits for the
    second signal.
    """

    def __init__(self):
        self.asked = 0  # the signal's number
        self._later = False

    def __enter__(self) -> "Stop":
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._writer)  # which ends the thread

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        """Within this block, the loop itself looks at `asked` and decides when to leave."""
        self._later = True
        try:
            yield
        finally:
            self._later = False
        self.check()  # for a signal that came after the last look

    def check(self) -> None:
        """Leave, if a signal has asked for that."""
        if self.asked:
            raise Stopped(self.asked)

    def _handle(self, number: int, frame) -> None:
        first, self.asked = not self.asked, self.asked or number
        if first and not self._later:
            raise Stopped(number)

    def _watch(self) -> None:
        first = 0.0
        with os.fdopen(self._reader, "rb", buffering=0) as reader:
            while data := reader.read(1):
                now = time.monotonic()
                if first and data[0] == signal.SIGINT and now - first > SECOND_S:
                    os._exit(128 + signal.SIGINT)
                first = first or now * (data[0] in SIGNALS)
