"""Documents read back from their tokens: no tokens say two things."""

import numpy as np

from toyllm.lm.tokenizer import OPENING, PAD, SPECIAL, Tokenizer
from toyllm.world.corpus import SLOTS, Documents
from toyllm.world.world import ASSISTANT, DIALOGUE, HEADERS, INTRODUCTION, NAMED, PROFILE, SCENE


def decode(tokenizer: Tokenizer, tokens) -> Documents:
    """One document's tokens back to Documents (N = 1); who really speaks is -1 if not named.

    Raises ValueError where the tokens are no document of this world.
    """
    words = [tokenizer.words[token] for token in tokens if token != PAD]
    try:
        document = _parse(tokenizer, words)
        same = list(tokenizer.encode(document)[0]) == [token for token in tokens if token != PAD]
    except (IndexError, KeyError, StopIteration, ValueError):
        same = False
    if not same:
        raise ValueError(f"not a document of world '{tokenizer.world.name}': {' '.join(words)}")
    return document


def _parse(tokenizer: Tokenizer, words: list[str]) -> Documents:
    """The document that these words spell; any exception, or another document, if there is none."""
    world, T = tokenizer.world, tokenizer.world.max_turns
    blocks: list[list[str]] = [[]]
    for word in words[1:-1]:
        if word in SPECIAL:
            blocks.append([])
        blocks[-1].append(word)
    heading, *blocks = blocks
    head = " ".join(heading)
    kind = next(k for k in (DIALOGUE, SCENE, PROFILE) if head.startswith(OPENING[k] + " "))
    header, character = np.full(SLOTS, -1), np.full(SLOTS, -1)
    for slot, name in enumerate(head[len(OPENING[kind]) + 1 :].split(" and ")):
        if name in world.characters:
            header[slot], character[slot] = NAMED, world.characters.index(name)
        else:
            header[slot] = HEADERS.index(name)
    columns = ("speaker", "domain", "situation", "instruction", "behaviour", "answer", "voice")
    rows = {name: np.full(T, -1) for name in columns}
    stated = {
        text: (d, b) for d, dom in enumerate(world.domains) for b, text in enumerate(dom.profile)
    }
    statements = [block for block in blocks if block[0] == "<trait>"]
    for t, (_, *text) in enumerate(statements):
        rows["domain"][t], rows["behaviour"][t] = stated[" ".join(text)]
        rows["speaker"][t] = 0
    if kind == PROFILE and len(statements) < len(blocks):
        kind, header[1] = INTRODUCTION, ASSISTANT
    blocks = blocks[len(statements) :]
    for t, ((_, *question), (tag, *reply)) in enumerate(
        zip(blocks[::2], blocks[1::2], strict=True), len(statements)
    ):
        d, s, i = tokenizer.asked[" ".join(question)]
        a, v = tokenizer.replies[d][" ".join(reply)]
        b = world.domains[d].behaviour_SA[s, a]
        slot = 1 if kind == INTRODUCTION else tag == "<second>"
        for name, value in zip(columns, (slot, d, s, i, b, a, v), strict=True):
            rows[name][t] = value
    return Documents(
        kind=np.array([kind]),
        header=header[None],
        character=character[None],
        **{name: row[None] for name, row in rows.items()},
    )
