"""Draw figures in another process while the caller measures.

`concurrent.futures.ProcessPoolExecutor` is not used: its workers outlive a caller that is killed,
one that hangs cannot be ended, and each start imports the caller's script again. A process that
reads lines until its standard input closes has none of these problems.
"""

import collections
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

from toyllm.base.errors import warn
from toyllm.base.scripts import OWN_MATPLOTLIB
from toyllm.show.drawings import FIGURES
from toyllm.show.figures import file_of

LIMIT_S = 120  # how long figures may take once all else is done


class BackgroundFigures:
    """A process that draws a run's figures; no failure of it stops the caller.

    Threads write to it and read what it prints, so that a full pipe blocks nobody.
    """

    def __init__(self, folder: Path):
        self.folder, self.process = folder, None
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # to write; None: no more
        self.last_line: collections.deque[str] = collections.deque(maxlen=1)  # that it printed
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "toyllm.show.drawings", folder.absolute()],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                cwd=Path(__file__).parents[2],
                env=os.environ | OWN_MATPLOTLIB,
            )
        except OSError as error:  # such as a limit on the number of processes
            warn(f"no figures will be drawn in {folder}: {error}")
            return
        threading.Thread(target=self._write, daemon=True).start()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def add(self, results: dict) -> None:
        """Draw what can be drawn of all results so far."""
        self.lines.put(json.dumps(results) + "\n")

    def finish(self) -> dict[str, Path]:
        """Wait for the last figure, and warn of any failure. Returns {name: light PNG file}."""
        self.lines.put(None)
        if self.process and (reason := self._failure()):
            warn(f"not all figures could be drawn in {self.folder}: {reason}")
        files = {name: file_of(self.folder, name, "light") for name in FIGURES}
        return {name: file for name, file in files.items() if file.exists()}

    def _write(self) -> None:
        with contextlib.suppress(OSError), self.process.stdin as stdin:  # `finish` says why
            for line in iter(self.lines.get, None):
                stdin.write(line)
                stdin.flush()

    def _read(self) -> None:
        with self.process.stderr as stderr:
            self.last_line.extend(iter(lambda: stderr.readline(1000), ""))

    def _failure(self) -> str:
        """Wait for the process to end, or end it. Returns why it failed; "" if it did not."""
        try:
            status = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return f"still drawing after {LIMIT_S} s"
        self.reader.join(1)
        return [f"exit status {status}", *self.last_line][-1].strip() if status else ""
