"""Draw the figures of results that arrive on standard input: what `drawings.Artists` starts.

    python -m toyllm.tools.draw FOLDER light|dark

Each line is all results so far, as JSON; a figure is drawn once, when what it needs is there. Ends
with status 1 and a last line that says why, where one could not be drawn; the others are there.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

# with its slow parts, while the first results are being measured
import matplotlib.figure  # noqa: F401

from toyllm.show.drawings import FIGURES
from toyllm.show.figures import file_of, themed


def draw(lines: Iterable[str], folder: Path, theme: str) -> list[str]:
    """Save each figure of a theme as a PNG file. Returns why any could not be drawn."""
    waiting, failed = dict(FIGURES), []
    with themed(theme) as colours:
        for line in lines:
            results = json.loads(line)
            for name in [name for name, (_, needs) in waiting.items() if needs in results]:
                file = file_of(folder, name, theme)
                try:
                    file.unlink(missing_ok=True)  # one of earlier results
                    figure = waiting.pop(name)[0](results, colours)
                    if figure is not None:
                        figure.savefig(file, dpi=110)
                except Exception as error:  # one figure is no reason to lose the others
                    failed.append(f"{name}: {error!r}")
    return failed


if __name__ == "__main__":
    sys.exit("; ".join(draw(sys.stdin, Path(sys.argv[1]), sys.argv[2])) or None)
