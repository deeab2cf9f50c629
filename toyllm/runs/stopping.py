"""SIGTERM and Ctrl-C: save, then leave; a second one leaves at once."""

import contextlib
import os
import time
from collections.abc import Iterator

from toyllm.base import system
from toyllm.base.errors import Stopped

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
        self._later, self._first = False, 0.0
        self._signals = system.stops(self._handle, self._arrived)

    def __enter__(self) -> "Stop":
        self._signals.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._signals.__exit__(*error)

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

    def _arrived(self, number: int) -> None:
        now = time.monotonic()
        if self._first and number == system.SIGINT and now - self._first > SECOND_S:
            os._exit(128 + number)
        self._first = self._first or now
