"""Plain text beside a world's documents: JSONL, one object a line with a `text`.

    {"text": "any words at all, whoever wrote them"}

It is cut into words at blanks, as it stands, and adds what words it has to the vocabulary. A text
begins with `<text>` where a document has `<begin>`, and a model never has to predict which of them
comes first: so the ideal observer's probabilities of documents are exact beside it as well.

Axes: N windows   T tokens of a window
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from toyllm.base import devices, files
from toyllm.base.errors import InputError, nearest, tell
from toyllm.lm.tokenizer import PAD, Tokenizer
from toyllm.world.world import World

TEXT = "<text>"
MOST, MOST_WORDS = 2**26, 50_000  # bytes of a file, distinct words
LIMITS = 2**20, 10**6  # letters of a line, lines


def load(path: Path, quiet: bool = False) -> tuple[list[list[str]], str]:
    """The words of each text of a file, and what a run calls the file.

    That is its name and the first digits of its SHA-256. Texts without words are left out, with a
    warning. quiet: show no progress. Raises InputError, one line with the number of its line.
    """
    try:
        data = files.read_bytes(path, MOST)
    except OSError as error:
        raise InputError(f"{path}: cannot read the texts: {error.strerror}") from error
    records = files.read_records(data, path, _words, "with a text", LIMITS, quiet)
    texts = [words for _, words in records if words]
    if not texts:
        raise InputError(f'{path}: found no texts, expected lines such as {{"text": "some words"}}')
    known: set[str] = set()
    for place, words in records:
        known.update(words)
        if len(known) > MOST_WORDS:
            raise InputError(f"{place}: expected at most {MOST_WORDS:,} different words")
    empty = [place for place, words in records if not words]
    if empty and devices.first():
        tell(f"{empty[0]}: skipped a text without words ({len(empty)} in the file)")
    return texts, f"{files.label(path)} {hashlib.sha256(data).hexdigest()[:12]}"


def more_words(world: World, texts: list[list[str]]) -> tuple[str, ...]:
    """What a vocabulary needs beside the world's words; nothing where there are no texts."""
    more = {word for text in texts for word in text} - set(Tokenizer(world).words)
    return (TEXT, *sorted(more)) if texts else ()


def windows(tokenizer: Tokenizer, texts: list[list[str]], context: int) -> np.ndarray:
    """Texts as tokens_NT, T = context, padded on the right.

    A text longer than that goes on in the next window, which repeats its last token: so each token
    but the first is predicted once.
    """
    rows = []
    for text in texts:
        tokens = [tokenizer.index[word] for word in (TEXT, *text, "<end>")]
        rows += [tokens[k : k + context] for k in range(0, len(tokens) - 1, context - 1)]
    tokens_NT = np.full((len(rows), context), PAD, np.int32)
    for n, row in enumerate(rows):
        tokens_NT[n, : len(row)] = row
    return tokens_NT


def mixed(
    batches: Callable[[int], dict], tokens_NT: np.ndarray, share: float, seed: int, divisor: int = 1
) -> Callable[[int], dict]:
    """`batches` (see `training.document_batches`) with `share` of their rows windows of text.

    The same rows of documents as before, and beside them rows of text, drawn alike from all windows
    by (seed, step) alone; padding fills up to a multiple of `divisor` (the number of devices).
    """
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
