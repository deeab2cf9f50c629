"""Errors that end a script with a message of one line, and warnings."""

import contextlib
import functools
import sys
from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input. Scripts print the message, one line, and exit with status 2."""

    def __init__(self, message: str):
        super().__init__(clean(message))


class RunError(RuntimeError):
    """A run that cannot continue. Scripts print the message, one line, and exit with status 1."""


class Stopped(BaseException):
    """SIGTERM or Ctrl-C. Scripts print the message, one line, and exit with status 143 or 130."""

    def __init__(self, signal: int, message: str = "stopped"):
        super().__init__(message)
        self.signal = signal


def warn(line: str) -> None:
    """Print a warning of one line on standard error, above any progress bar."""
    from tqdm import tqdm

    with contextlib.suppress(
        OSError
    ):  # a warning that cannot be written, as on a full disk, is lost
        tqdm.write(clean(line), file=sys.stderr)


warn_once = functools.cache(warn)  # the same line is printed once


def clean(text: str) -> str:
    """Untrusted text as one line of printable characters, of at most 2000."""
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
