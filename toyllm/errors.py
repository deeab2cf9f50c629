"""The one error that a user's input may raise: a single line, and the nearest right spelling."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input, told in one line. Scripts print it and exit with status 2."""


def nearest(word: str, options: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the option nearest to `word`, or an empty string."""
    close = get_close_matches(str(word), [str(option) for option in options], n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
