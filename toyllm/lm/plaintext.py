"""Plain text to train on beside a world's documents: JSONL, one object a line with a `text`.

    {"text": "any words at all, whoever wrote them"}

A text is split into words at blanks, and its words are added to the vocabulary. It begins with
`<text>` where a document has `<begin>`. A model never has to predict which of the two comes first,
so the ideal observer's probabilities of documents stay exact.

Axes: N windows   T tokens of a window
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from toyllm.base import devices, files
from toyllm.base.errors import InputError, nearest, warn
from toyllm.lm.tokenizer import PAD, Tokenizer, padded
from toyllm.world.world import World

TEXT = "<text>"
# upper bounds for untrusted files
MAX_BYTES, MAX_WORDS = 2**26, 50_000  # bytes of a file, distinct words
LIMITS = 2**20, 10**6  # letters of a line, lines


def load(path: Path, quiet: bool = False) -> tuple[list[list[str]], str]:
    """The words of each text of a file, and the file's label in a run.

    The label is the file's name and the first digits of its SHA-256. Texts without words are left
    out, with a warning. quiet: show no progress. Raises InputError, which names the line.
    """
    data = files.read_input(path, MAX_BYTES, "the texts")
    records = files.read_records(data, path, _words, "with a text", LIMITS, quiet)
    texts = [words for _, words in records if words]
    if not texts:
        raise InputError(f'{path}: found no texts, expected lines such as {{"text": "some words"}}')
    known: set[str] = set()
    for place, words in records:
        known.update(words)
        if len(known) > MAX_WORDS:
            raise InputError(f"{place}: expected at most {MAX_WORDS:,} different words")
    empty = [place for place, words in records if not words]
    if empty and devices.first():
        warn(f"{empty[0]}: skipped a text without words ({len(empty)} in the file)")
    return texts, f"{files.label(path)} {hashlib.sha256(data).hexdigest()[:12]}"


def more_words(world: World, texts: list[list[str]]) -> tuple[str, ...]:
    """The words of texts that a world's vocabulary lacks, with `<text>`; none without texts."""
    more = {word for text in texts for word in text} - set(Tokenizer(world).words)
    return (TEXT, *sorted(more)) if texts else ()


def windows(tokenizer: Tokenizer, texts: list[list[str]], context: int) -> np.ndarray:
    """Texts as tokens_NT, T = context, padded on the right.

    A longer text continues in the next window, which repeats the last token of the one before, so
    that each token but the first of a text is predicted once.
    """
    rows = []
    for text in texts:
        tokens = [tokenizer.index[word] for word in (TEXT, *text, "<end>")]
        rows += [tokens[k : k + context] for k in range(0, len(tokens) - 1, context - 1)]
    return padded(rows, context)


def mixed(
    batches: Callable[[int], dict], tokens_NT: np.ndarray, share: float, seed: int, divisor: int = 1
) -> Callable[[int], dict]:
    """`batches` (see `training.document_batches`) with rows of text, if any, added to theirs.

    share: of the rows, how many are text. They are drawn uniformly from all windows by (seed, step)
    alone; rows of padding fill each batch up to a multiple of `divisor`, the number of devices.
    """
    if not len(tokens_NT):
        return batches
    first = batches(0)["tokens"]
    documents = int((first != PAD).any(-1).sum(1).max())  # however many devices pad them
    count = round(share / (1 - share) * documents)
    padding = -(first.shape[1] + count) % divisor

    def both(step: int) -> dict:
        batch = batches(step)
        chunks = []
        for k in range(len(batch["tokens"])):
            rng = np.random.Generator(np.random.Philox(key=[seed, 0x7E87], counter=step + k))
            chunks.append(tokens_NT[rng.integers(len(tokens_NT), size=count)])
        text = np.pad(np.stack(chunks), ((0, 0), (0, padding), (0, 0)), constant_values=PAD)
        return {
            "tokens": np.concatenate([batch["tokens"], text], 1),
            "segments": np.concatenate([batch["segments"], np.sign(text)], 1),
        }

    return both


def _words(value: dict) -> list[str]:
    if "text" not in value:
        raise InputError(f"found no 'text'{nearest('text', value)}, expected an object with a text")
    if not isinstance(value["text"], str):
        raise InputError(f"text: found {files.shorten(value['text'])}, expected text")
    words = value["text"].split()
    for word in words:
        if word.startswith("<") or not word.isprintable() or len(word) > 100:
            raise InputError(
                f"text: found the word {word[:40]!r}, expected none that begins with '<', cannot "
                "be printed or has more than 100 letters"
            )
    return words
