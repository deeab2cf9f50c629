"""What may end a script: bad input, a run that cannot go on, a wish to stop. One line each."""

import contextlib
import sys
from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input, told in one line. Scripts print it and exit with status 2."""

    def __init__(self, message: str):
        super().__init__(clean(message))


class RunError(RuntimeError):
    """A run that cannot go on, told in one line. Scripts print it and exit with status 1."""


class Stopped(BaseException):
    """SIGTERM or Ctrl-C, told in one line. Scripts print it and exit with status 143 or 130."""

    def __init__(self, signal: int, message: str = "stopped"):
        super().__init__(message)
        self.signal = signal


def tell(line: str) -> None:
    """A warning for whoever runs a script: one line on standard error, beside progress bars."""
    from tqdm import tqdm

    with contextlib.suppress(OSError):  # such as a full disk: no reason to stop
        tqdm.write(clean(line), file=sys.stderr)


def clean(text: str) -> str:
    """One line of bounded length that a terminal can show, whoever wrote what is in it."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= 2000 else shown[:1997] + "..."


def nearest(word: str, options: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the option nearest to `word`, or an empty string.

    A word in capitals that is like no option is compared in lower case.
    """
    texts, word = [str(option) for option in options], str(word)
    close = get_close_matches(word, texts, n=1, cutoff=0.5)
    close = close or get_close_matches(word.lower(), texts, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
