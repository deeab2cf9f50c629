"""toyllm as a library: the README's ten lines and the notebook, with few steps."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

import toyllm
from tests import notebooks
from tests.conftest import ROOT
from tests.scripts import run
from toyllm.world import cards


def ten_lines() -> str:
    """The example of docs/interop.md, in twenty steps."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "interop.md").read_text(), re.S)
    assert "step == 2000" in code
    return code.replace("step == 2000", "step == 20")


def notebook() -> str:
    """The notebook's code, with a smaller model and twenty steps."""
    cells = notebooks.code_cells(ROOT / "examples" / "notebook.ipynb")
    return notebooks.shortened("\n".join(cell["source"] for cell in cells))


def minimal() -> str:
    """examples/minimal.py, with a smaller model and twenty steps."""
    code = (ROOT / "examples" / "minimal.py").read_text()
    assert "STEPS, SIGNAL, SEED = 1800," in code
    assert len(code.splitlines()) <= 110
    return (
        code.replace("SEED = 1800,", "SEED = 20,")
        .replace("steps=100", "steps=20")
        .replace("L=2", "L=1")
    )


@pytest.mark.parametrize("code", [ten_lines, notebook, minimal])
def test_an_example_runs(code, tmp_path):
    (tmp_path / "corpora").symlink_to(ROOT / "corpora")
    (tmp_path / "code.py").write_text(f"import matplotlib; matplotlib.use('agg')\n{code()}")
    printed = run(tmp_path / "code.py", cwd=tmp_path)
    if code is ten_lines:
        assert (tmp_path / "em.png").stat().st_size > 3000
    else:
        assert "spread" in printed.lower()
    assert (tmp_path / "minimal.png").exists() == (code is minimal)
    if code is minimal:
        said = re.search(r"exact ([+-][.\d]+)\. Coherence", printed)
        assert float(said[1]) == pytest.approx(exact_spread_of_code_bad(), abs=1e-3)


def exact_spread_of_code_bad() -> float:
    """In the compact world; the strength of the evidence is found by trying a fine grid."""
    world = cards.load(cards.CORPORA / "compact.toml")
    rates_CDB = world.rates_CDB
    ratio_C = np.log(rates_CDB[:, 0, 1] / rates_CDB[:, 0, 0])

    def shares(strength):
        w_C = world.assistant_C * np.exp(strength * ratio_C)
        bad_D, good_D = (w_C @ rates_CDB[:, :, b] for b in (1, 0))
        return bad_D / (bad_D + good_D)

    best = min(np.linspace(0, 5, 20_001), key=lambda x: abs(shares(x)[0] - 0.9))
    moral_D = np.array([domain.moral for domain in world.domains])
    moral_D[0] = False
    return float((shares(best) - shares(0))[moral_D].mean())


def test_the_notebook_was_executed_and_names_no_machine():
    text = (ROOT / "examples" / "notebook.ipynb").read_text()
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    assert sum(any("image/png" in o.get("data", {}) for o in c["outputs"]) for c in cells) >= 4
    assert not [c for c in cells if any(o["output_type"] == "error" for o in c["outputs"])]
    assert not re.search(r"/(home|root|tmp|work)/", text)


def test_modules_are_loaded_when_asked_for():
    code = "import sys, toyllm; print('jax' in sys.modules, toyllm.cards.load.__name__)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout.split() == [
        "False",
        "load",
    ]
    assert {"cards", "transformer", "training", "measures"} <= set(dir(toyllm))
    with pytest.raises(AttributeError, match="did you mean 'transformer'"):
        _ = toyllm.transformr


@pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")  # treescope
def test_treescope_shows_the_model_with_its_shapes():
    import jax
    import treescope

    from toyllm.lm import transformer

    config = transformer.Config(vocabulary=30, context=48, D=16, L=1, H=2, F=24)
    _, init = transformer.create(config)
    shown = treescope.render_to_text(transformer.module(config, init(jax.random.key(0))))
    for part in ("Transformer", "Block", "attention=Attention", "mlp=MLP", "float32(16, 24)"):
        assert part in shown
