"""The house: imports go one way, importing makes nothing, only some files print."""

import ast
import subprocess
import sys

from tests.conftest import ROOT

LAYERS = [
    "errors",
    "stopping",
    "devices",
    "scripts",
    "files",
    "lock",
    "reader",
    "world",
    "cards",
    "corpus",
    "text",
    "plaintext",
    "bayes",
    "model",
    "checkpoints",
    "objectives",
    "optimizers",
    "scoring",
    "activations",
    "talk",
    "signals",
    "preferences",
    "training",
    "stages",
    "population",
    "provenance",
    "llama",
    "runs",
    "board",
    "figures",
    "inside",
    "drawings",
    "tables",
    "report",
    "mixtures",
    "monitor",
    "lookout",
    "conversation",
    "measures",
    "verdicts",
    "hull",
    "arms",
    "store",
    "bench",
    "panels",
    "results",
    "claims",
]


def imported(path) -> set[str]:
    """The toyllm modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toyllm"):
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("toyllm.")}
    return names


def test_imports_go_one_way():
    for path in sorted((ROOT / "toyllm").rglob("*.py")):
        name = path.relative_to(ROOT / "toyllm").parts[0].removesuffix(".py")
        if name in ("__init__", "tools"):
            continue
        for other in imported(path):
            earlier = LAYERS.index(other) < LAYERS.index(name)
            same = name == other in ("measures", "claims")
            assert earlier or same, f"{path.name} imports {other}"


def test_losses_import_jax_alone():
    tree = ast.parse((ROOT / "toyllm" / "objectives.py").read_text())
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert modules == {"jax", "jax.numpy"}
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]


def test_only_scripts_print_or_parse_arguments():
    for path in (ROOT / "toyllm").rglob("*.py"):
        if "tools" in path.parts:
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
        for p in sorted((ROOT / "toyllm").rglob("*.py"))
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
