"""The house: imports go one way, importing makes nothing, only some files print."""

import ast
import re
import subprocess
import sys

from tests.conftest import ROOT

# from the ground up: a package may import those before it, and itself
PACKAGES = ["base", "world", "lm", "posttrain", "runs", "measures", "show", "tools", "claims"]


def package_of(path) -> str:
    """The package of a file of the library or of the claims."""
    parts = path.relative_to(ROOT).parts
    return parts[0] if parts[0] == "claims" else parts[1]


def imported(path) -> set[str]:
    """The packages that a file imports from."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            modules |= {f"{node.module}.{alias.name}".split(".")[:2][-1] for alias in node.names}
            modules |= {"claims"} if node.module.startswith("claims") else set()
        elif isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
    return modules & set(PACKAGES)


def sources() -> list:
    """The files of all packages."""
    paths = [*(ROOT / "toyllm").glob("*/**/*.py"), *(ROOT / "claims").rglob("*.py")]
    assert {package_of(path) for path in paths} == set(PACKAGES)
    return paths


def test_imports_between_packages_go_one_way():
    for path in sources():
        name = package_of(path)
        for other in imported(path):
            assert PACKAGES.index(other) <= PACKAGES.index(name), f"{path} imports {other}"


def test_a_package_says_what_is_in_it():
    for path in (ROOT / "toyllm").glob("*/__init__.py"):
        told = ast.get_docstring(ast.parse(path.read_text()))
        modules = {file.stem for file in path.parent.glob("*.py")} - {"__init__"}
        missing = {name for name in modules if not re.search(rf"\b{name}\b", told)}
        assert not missing, f"{path} does not mention {missing}"


def test_losses_import_jax_alone():
    tree = ast.parse((ROOT / "toyllm" / "lm" / "losses.py").read_text())
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert modules == {"jax", "jax.numpy"}
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]


def test_only_scripts_print_or_parse_arguments():
    for path in sources():
        # these two speak for the scripts
        if package_of(path) == "tools" or path.name in ("session.py", "starting.py"):
            continue
        calls = [
            n.func.id
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
        assert "print" not in calls, path


def test_importing_starts_no_backend():
    modules = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for p in [ROOT / "toyllm" / "__init__.py", *sources()]
    ]
    code = (
        f"import importlib, jax\n"
        f"for m in {modules!r}: importlib.import_module(m.removesuffix('.__init__'))\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, 'an import created an array'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_tool_shows_documents_of_a_world():
    command = [sys.executable, "-m", "toyllm.tools.show", "--count", "3"]
    shown = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    for kind in ("dialogue:", "profile:", "scene:", "    <reply> ", "    <trait> "):
        assert kind in shown
