"""The generative process: a World to Documents, a struct of arrays that holds every hidden draw.

Axes: N documents, T turns (or statements), L speaker slots (a scene has two; so has an
introduction, whose statements are about the first and whose turns are by the second; all else one).
An absent value is -1.
"""

import dataclasses

import numpy as np

from toyllm.world.world import ASSISTANT, DIALOGUE, INTRODUCTION, PROFILE, SCENE, World

SLOTS = 2
GOLDEN = (5**0.5 - 1) / 2
TURN = ("speaker", "domain", "situation", "instruction", "behaviour", "answer", "voice")


@dataclasses.dataclass(frozen=True)
class Documents:
    """N documents as arrays of whole numbers; what does not apply is -1."""

    kind: np.ndarray  # [N] index into KINDS
    header: np.ndarray  # [N, L] index into HEADERS
    character: np.ndarray  # [N, L] who really speaks; hidden unless the header is `named`
    speaker: np.ndarray  # [N, T] the slot that answers; -1 past the end of the document
    domain: np.ndarray  # [N, T]
    situation: np.ndarray  # [N, T]
    instruction: np.ndarray  # [N, T] -1: none
    behaviour: np.ndarray  # [N, T]
    answer: np.ndarray  # [N, T] index into the domain's answers; in a profile -1
    voice: np.ndarray  # [N, T] in a profile -1

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, rows) -> "Documents":
        """Some of the documents, by slice, mask or indices."""
        return Documents(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    @property
    def turns(self) -> np.ndarray:
        """turns[N]: how many turns or statements each document has."""
        return (self.speaker >= 0).sum(1)

    @property
    def stated(self) -> np.ndarray:
        """stated[N, T]: True for statements in the third person, which nothing asks for."""
        return (self.speaker >= 0) & (self.situation < 0)


def concatenate(parts: list[Documents]) -> Documents:
    """Join documents of the same world, one part after another."""
    names = [f.name for f in dataclasses.fields(Documents)]
    return Documents(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def sample(
    world: World,
    count: int,
    rng: np.random.Generator,
    kind: int | None = None,
    header: int | None = None,
    character: int | None = None,
    turns=None,
    even: int = 0,
) -> Documents:
    """Draw `count` documents. A given kind, header, character or number of turns is not drawn.

    turns: a whole number for all, or one for each document [N].
    even: the size of batches over which documents are spread evenly (systematic sampling), so that
        gradients vary less; 0: no batches. Kinds and lengths are spread over each batch, so that
        every batch has nearly the same number of tokens; headers, characters, behaviours and
        closing phrases over all documents. The distribution of a single document does not change.
        It must divide `count`.
    """
    N, T = count, world.max_turns

    def draw(p, *keys):
        """An index from each distribution p [N, L, …], evenly among documents alike in keys."""
        return at(p, spread(rng, *keys) if even else rng.random(p.shape[:-1]))

    # u decides the kind and v the length, since these two decide how many tokens a document has
    u, v = (evenly(rng, N // even, even) if even else rng.random(N) for _ in "uv")
    kinds = at(world.kind_weights, u) if kind is None else np.full(N, kind)
    kind_of, batch_of = np.broadcast_arrays(kinds, np.arange(N) // (even or N))
    kind_of, batch_of = (np.repeat(x[:, None], SLOTS, 1) for x in (kind_of, batch_of))
    headers = draw(np.broadcast_to(world.header_weights, (N, SLOTS, 3)), kind_of, batch_of)
    headers = headers if header is None else np.full((N, SLOTS), header)
    characters = draw(world.speaker_KHC[kind_of, headers], kind_of, headers, batch_of)
    characters = characters if character is None else np.full((N, SLOTS), character)
    introduction = kinds == INTRODUCTION
    headers[introduction] = ASSISTANT
    if introduction.any() and character is None:
        characters[introduction] = introduced(world, introduction.sum(), rng)
    # only a scene and an introduction have a second speaker
    only_first = ((kinds != SCENE) & ~introduction)[:, None] & (np.arange(SLOTS) == 1)
    headers, characters = (np.where(only_first, -1, x) for x in (headers, characters))

    lows, highs = np.array(world.lengths).T
    lengths = lows[kinds] + (v * (highs - lows + 1)[kinds]).astype(int)
    lengths = lengths if turns is None else np.broadcast_to(turns, N)
    statements = np.where(kinds == PROFILE, lengths, 0)
    if introduction.any():
        statements[introduction] = rng.integers(
            world.statements[0], world.statements[1], introduction.sum(), endpoint=True
        )
        lengths = lengths + np.where(introduction, statements, 0)
    here, stated = (np.arange(T) < count[:, None] for count in (lengths, statements))
    speaker = np.where((kinds == SCENE)[:, None], rng.integers(SLOTS, size=(N, T)), 0)
    speaker = np.where(introduction[:, None] & ~stated, 1, speaker)
    domain = rng.integers(len(world.domains), size=(N, T))
    # the statements of a document are about distinct domains: the first ones of a random order
    order = rng.random((N, len(world.domains))).argsort(1)
    domain = np.where(stated, order[:, np.arange(T) % order.shape[1]], domain)
    situation = rng.integers(world.situations_D[domain])
    instruction = draw(world.instruction_DI[domain], here)
    # a statement about a character is not a reply, so nothing asks for it: the last index of
    # `rates_ICDB` is no instruction
    instruction[stated] = len(world.instructions)
    c = np.take_along_axis(characters, speaker, 1)
    behaviour = draw(world.rates_ICDB[instruction, c, domain], here, instruction, domain, c)
    answer = draw_answer(world, domain, situation, behaviour, rng)
    voice = draw(world.voices_CV[c], here, c)

    instruction = np.where(instruction == len(world.instructions), -1, instruction)
    spoken = {"situation": situation, "instruction": instruction, "answer": answer, "voice": voice}
    columns = {"speaker": speaker, "domain": domain, "behaviour": behaviour}
    columns = {name: np.where(here, x, -1) for name, x in columns.items()}
    columns |= {name: np.where(here & ~stated, x, -1) for name, x in spoken.items()}
    return Documents(kinds, headers, characters, **columns)


def introduced(world: World, count: int, rng: np.random.Generator) -> np.ndarray:
    """Of introductions: whom the statements are about and who speaks, as the Assistant [count, 2].

    With probability `world.binding` they are one draw of `assistant_C`; else the first is drawn
    from those whom profiles of the Assistant describe.
    """
    told, speaks = (at(p_C[None], rng.random(count)) for p_C in world.introduced_2C)
    bound = rng.random(count) < world.binding
    return np.stack([np.where(bound, speaks, told), speaks], 1)


def dialogues(header, character, **turns_NT) -> Documents:
    """Dialogues whose turns are given: columns [N, T] of `TURN`, those left out being -1.

    header, character: of each document [N], or the same for all.
    """
    N, T = turns_NT["speaker"].shape
    who = np.full((2, N, SLOTS), -1)
    who[0, :, 0], who[1, :, 0] = header, character
    columns = {name: np.full((N, T), -1) for name in TURN} | turns_NT
    return Documents(np.full(N, DIALOGUE), *who, **columns)


def spoken(world: World, heads, turns) -> Documents:
    """Dialogues in which all that is said is given.

    heads: the header and character of each dialogue. turns: the (domain, situation, instruction,
        answer, voice) of each turn of each dialogue.
    """
    count_N = np.array([len(row) for row in turns])
    here = np.arange(max(1, count_N.max())) < count_N[:, None]
    columns = np.full((5, *here.shape), -1)
    columns[:, here] = np.reshape([turn for row in turns for turn in row], (-1, 5)).T
    domain, situation, instruction, answer, voice = columns
    behaviour = np.where(here, world.behaviour_DSA[domain, situation, answer], -1)
    return dialogues(
        *np.array(heads).T, speaker=np.where(here, 0, -1), domain=domain, situation=situation,
        instruction=instruction, behaviour=behaviour, answer=answer, voice=voice,
    )  # fmt: skip


def with_turn(docs: Documents, turn, **columns) -> Documents:
    """The same documents with some columns of one turn replaced.

    turn: its index, the same for all documents or of each [N]. columns: the new values by the names
        in `TURN`, the same for all or of each [N].
    """
    rows, changed = np.arange(len(docs)), {}
    for name, value in columns.items():
        changed[name] = getattr(docs, name).copy()
        changed[name][rows, turn] = value
    return dataclasses.replace(docs, **changed)


def asking(docs: Documents, turn, domain, situation, instruction=-1) -> Documents:
    """The same documents with the question of a turn replaced, its answer being left open."""
    question = {"domain": domain, "situation": situation, "instruction": instruction}
    return with_turn(docs, turn, **question, behaviour=0, answer=0, voice=0)


def every_question(
    world: World, header: int = ASSISTANT, character: int = -1, instruction: int = -1, domains=None
) -> Documents:
    """One document for each situation of each domain, asked under a header, with no history."""
    domains = range(len(world.domains)) if domains is None else domains
    asked = [(d, s) for d in domains for s in range(world.situations_D[d])]
    speaker = np.full((len(asked), world.max_turns), -1)
    speaker[:, 0] = 0
    domain, situation = np.array(asked).T
    return asking(dialogues(header, character, speaker=speaker), 0, domain, situation, instruction)


def evenly(rng: np.random.Generator, batches: int, size: int) -> np.ndarray:
    """Uniform numbers [batches * size]; those of a batch are one grid, shifted and shuffled."""
    grid = (np.arange(size) + rng.random((batches, 1))) / size
    return rng.permuted(grid, axis=1).reshape(-1)


def draw_answer(world: World, domain, situation, behaviour, rng: np.random.Generator) -> np.ndarray:
    """Draw a text for each (domain, situation, behaviour), uniform among those that show it."""
    pick = rng.integers(world.count_DSB[domain, situation, behaviour])
    return world.answer_DSBA[domain, situation, behaviour, pick]


def spread(rng: np.random.Generator, *keys: np.ndarray) -> np.ndarray:
    """Uniform numbers [N, L] that are even among documents alike in their keys [N, L].

    In each column the documents are sorted by their keys, the first key first, and document k of
    them gets the fractional part of k times the golden ratio plus a shift: any few such numbers in
    a row are spread evenly over [0, 1) (Weyl 1916). The shift is drawn anew for each column. So
    each number is uniform whatever was drawn before it, as if documents were drawn one by one.
    """
    N, L = keys[0].shape
    u_NL = np.empty((N, L))
    for t in range(L):
        ties = rng.random(N)
        order = np.lexsort((ties, *(key[:, t] for key in reversed(keys))))
        u_NL[order, t] = (np.arange(N) * GOLDEN + rng.random()) % 1
    return u_NL


def at(p: np.ndarray, u) -> np.ndarray:
    """The index at which the cumulative sum of each distribution passes u: its quantile."""
    # rounding may leave the last edge below 1, so the index is held within bounds
    return np.minimum((u[..., None] > p.cumsum(-1)).sum(-1), p.shape[-1] - 1)
