"""toyllm: a laboratory for the persona selection model.

    import toyllm
    world = toyllm.cards.load("corpora/compact.toml")

Its modules are loaded when they are first asked for; importing it creates no array.
"""

import importlib
import pkgutil
from types import ModuleType

__version__ = "0.3.0"


def __getattr__(name: str) -> ModuleType:
    """A module of this package, loaded now."""
    if name in __dir__():
        return importlib.import_module(f"{__name__}.{name}")
    from toyllm.errors import nearest

    raise AttributeError(f"toyllm has no '{name}'{nearest(name, __dir__())}")


def __dir__() -> list[str]:
    """The modules there are."""
    return [module.name for module in pkgutil.iter_modules(__path__)]
