"""toyllm: a laboratory for the persona selection model.

    import toyllm
    world = toyllm.cards.load("corpora/compact.toml")

The packages, from the ground up. Each may import those above it in this list, and none below:

    base        errors and exit statuses, command-line arguments, operating systems, devices, files
    world       characters and their traits, documents drawn from them, the exact ideal observer
    lm          the language model: tokenizer, transformer, losses, training, scoring
    posttrain   training signals, preference pairs, many narrow runs at once, the drift monitor
    runs        what keeps a run: its folder, checkpoints, session, TensorBoard
    measures    one file each: what `eval.py` measures of a finished run
    show        results as tables, figures and a page
    tools       small commands, `uv run -m toyllm.tools.NAME`

In a notebook every module can be reached by its own name, `toyllm.cards` for `toyllm.world.cards`.
Modules load when they are first accessed, and importing them creates no array.
"""

import importlib
import pkgutil
from types import ModuleType

__version__ = "0.3.0"


def __getattr__(name: str) -> ModuleType:
    """Import a package of toyllm, or a module of one of them, by its own name."""
    modules = _modules()
    if name in modules:
        return importlib.import_module(modules[name])
    from toyllm.base.errors import nearest

    raise AttributeError(f"toyllm has no '{name}'{nearest(name, modules)}")


def __dir__() -> list[str]:
    """The names of all packages and modules."""
    return list(_modules())


def _modules() -> dict[str, str]:
    """Every package and module by its own name; a package goes before a module of that name."""
    packages = {
        package.name: f"{__name__}.{package.name}" for package in pkgutil.iter_modules(__path__)
    }
    folders = [f"{folder}/{name}" for folder in __path__ for name in packages]
    inside = {
        module.name: f"{__name__}.{module.module_finder.path.rpartition('/')[2]}.{module.name}"
        for module in pkgutil.iter_modules(folders)
    }
    return inside | packages
