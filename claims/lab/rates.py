"""Values at several learning rates, with arithmetic that is done rate by rate."""

import operator
from collections.abc import Callable
from typing import Any

USUAL = 1.0  # multiple of the usual learning rate


class ByRate(dict):
    """Values at each multiple of the usual learning rate, {rate: values}.

    Arithmetic with another `ByRate` pairs equal rates; with anything else, every rate has the same.
    """

    __array_ufunc__ = None  # so that `array - by_rate` comes here and not to NumPy

    @property
    def usual(self) -> Any:
        """The value at the usual learning rate."""
        return self[USUAL]

    def map(self, function: Callable, *others: "ByRate") -> "ByRate":
        """The function of the values (and of those of others) at each rate."""
        return ByRate({r: function(v, *(other[r] for other in others)) for r, v in self.items()})

    def __sub__(self, other) -> "ByRate":
        return self._pair(operator.sub, other)

    def __truediv__(self, other) -> "ByRate":
        return self._pair(operator.truediv, other)

    def __rsub__(self, other) -> "ByRate":
        return self.map(lambda value: other - value)

    def _pair(self, operation: Callable, other) -> "ByRate":
        if isinstance(other, ByRate):
            return self.map(operation, other)
        return self.map(lambda value: operation(value, other))


def usual(values) -> Any:
    """The value at the usual learning rate, of values at one rate or at several."""
    return values.usual if isinstance(values, ByRate) else values
