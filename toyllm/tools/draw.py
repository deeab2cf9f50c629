"""Draw the figures of results that arrive on standard input: what `drawings.Artists` starts.

    python -m toyllm.tools.draw FOLDER light|dark

Each line is all results so far, as JSON; a figure is drawn once, when what it needs is there.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import matplotlib.figure  # with its slow parts, while the first results are being measured

from toyllm.drawings import FIGURES
from toyllm.figures import THEMES, file_of, style


def draw(lines: Iterable[str], folder: Path, theme: str) -> None:
    """Save each figure of a theme as a PNG file."""
    waiting = dict(FIGURES)
    with matplotlib.rc_context(style(THEMES[theme])):
        for line in lines:
            results = json.loads(line)
            for name in [name for name, (_, needs) in waiting.items() if needs in results]:
                figure = waiting.pop(name)[0](results, THEMES[theme])
                if figure is not None:
                    figure.savefig(file_of(folder, name, theme), dpi=110)


if __name__ == "__main__":
    draw(sys.stdin, Path(sys.argv[1]), sys.argv[2])
