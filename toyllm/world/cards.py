"""Character cards: a TOML file to a `World`, checked field by field.

How to write such a file: corpora/README.md.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from toyllm.base.errors import nearest
from toyllm.world.reader import CORPORA, MAX_TEXTS, Reader
from toyllm.world.world import (
    BAD,
    BEHAVIOURS,
    DIALOGUE,
    GOOD,
    HEADERS,
    KINDS,
    NOISE,
    PROFILE,
    Domain,
    Instruction,
    World,
)

DEFAULT = CORPORA / "personas.toml"  # the world that commands take unless told
# upper bounds for untrusted files
MAX_CHARACTERS, MAX_DOMAINS, MAX_TURNS = 500, 50, 100
MAX_WORDS = 10**7  # of all answers to all questions


def load(path: str | Path) -> World:
    """Read a world from a TOML file.

    Raises InputError, one line `file:line: what: found …, expected …`, for the first fault.
    """
    return Cards(path).world()


class Cards(Reader):
    """A world file. It is read once, since it may be a pipe or be edited meanwhile.

    The methods named after fields check their value, given its key path, and return what it means.
    """

    def standalone(self) -> str:
        """The text of a world file that extends no other: the file itself, or the merged one."""
        if self.base is None:
            return self.source
        import tomli_w

        return tomli_w.dumps(self.table)

    def world(self) -> World:
        """The world that the file describes. Raises InputError as `load` does."""
        cards_list = partial(self.entries, kind=list, limit=MAX_CHARACTERS)
        required = {
            "name": self.title,
            "documents": self.documents,
            "headers": self.headers,
            "voices": self.voices,
            "domains": self.domains,
            "characters": cards_list,
        }
        optional = {"description": self.maybe_text, "instructions": partial(cards_list, empty=True)}
        fields = {"description": "", "instructions": []}
        fields |= self.fields(self.table, (), required, optional)
        domains, voices = fields["domains"], fields["voices"]
        documents = fields["documents"]
        stated = {("profile", "turns"): documents["lengths"][PROFILE]}
        stated[("introduction", "statements")] = documents["statements"]
        for path, lengths in stated.items():
            if lengths[1] > len(domains):
                expected = f"at most {len(domains)} statements, one a domain"
                self.fail(("documents", *path), [*lengths], expected)
        names = [domain.name for domain in domains]
        instructions = self.instructions(fields["instructions"], names)
        paths = [("characters", i) for i in range(len(fields["characters"]))]
        cards = [
            self.character(card, path, names, [*voices])
            for card, path in zip(fields["characters"], paths, strict=True)
        ]
        self.unique([card["name"] for card in cards], paths, "duplicate character")

        # without a weight of its own, a character is told of as often as the Assistant is it
        told = [card.get("told_weight", card["assistant_weight"]) for card in cards]
        tells = any("told_weight" in card for card in cards)

        def weights(field: str) -> np.ndarray:
            return self.weights([card[field] for card in cards], ("characters", 0, field))

        return World(
            name=fields["name"],
            description=fields["description"],
            characters=tuple(card["name"] for card in cards),
            descriptions=tuple(card["description"] for card in cards),
            ai=tuple(card["name"] for card in cards if card["ai"]),
            frequency_C=weights("frequency"),
            assistant_C=weights("assistant_weight"),
            rates_CDB=np.array([[*card["rates"].values()] for card in cards]),
            voices=tuple(voices.values()),
            voice_names=tuple(voices),
            voices_CV=np.array([card["voices"] for card in cards]),
            domains=domains,
            instructions=instructions,
            **documents,
            header_weights=fields["headers"],
            told_C=self.weights(told, ("characters", 0, "told_weight")) if tells else None,
        )

    def title(self, value: object, key_path: tuple) -> str:
        """Names with single spaces between."""
        return " ".join(self.name(word, key_path) for word in self.text(value, key_path).split())

    def documents(self, table: object, key_path: tuple) -> dict:
        """The fields of a world that say which kinds of documents there are."""
        kind = partial(self.fields, required={"weight": self.number, "turns": self.turns})
        checks = {"weight": self.number, "turns": self.turns, "statements": self.turns}
        introduction = partial(self.fields, required=checks)
        optional = {"introduction": introduction, "binding": self.share}
        kinds = self.fields(table, key_path, dict.fromkeys(KINDS[:-1], kind), optional)
        if "binding" in kinds and "introduction" not in kinds:
            expected = "introductions, which it is about"
            self.fail((*key_path, "binding"), kinds["binding"], expected)
        binding = kinds.get("binding", 0.0)
        kinds.setdefault("introduction", {"weight": 0.0, "turns": (0, 0), "statements": (0, 0)})
        statements = kinds["introduction"]["statements"]
        lengths = tuple(kinds[kind]["turns"] for kind in KINDS)
        if lengths[DIALOGUE][1] < 2:
            path, expected = (*key_path, "dialogue", "turns"), "at least 2 turns: a history"
            self.fail(path, [*lengths[DIALOGUE]], expected)
        weights = self.weights([kinds[kind]["weight"] for kind in KINDS], key_path)
        return {
            "kind_weights": weights,
            "lengths": lengths,
            "statements": statements,
            "binding": binding,
        }

    def turns(self, value: object, key_path: tuple) -> tuple[int, int]:
        """The fewest and most turns of a kind of document."""
        whole = isinstance(value, list) and [type(turns) for turns in value] == [int, int]
        if not whole or not 1 <= value[0] <= value[1] <= MAX_TURNS:
            expected = f"[fewest, most], whole numbers from 1 to {MAX_TURNS}"
            self.fail(key_path, value, expected)
        return value[0], value[1]

    def headers(self, table: object, key_path: tuple) -> np.ndarray:
        """The weights of the headers."""
        given = self.fields(table, key_path, {}, dict.fromkeys(HEADERS, self.number))
        weights = self.weights([given.get(header, 0) for header in HEADERS], key_path)
        if not given.get("assistant"):
            expected = "a weight above 0, since it is trained"
            self.fail(key_path, None, expected, "headers.assistant", "no weight")
        return weights

    def voices(self, table: object, key_path: tuple) -> dict[str, str]:
        """The closing phrase of each voice."""
        self.entries(table, key_path, dict, MAX_TEXTS)
        paths = [(*key_path, name) for name in table]
        texts = [self.maybe_text(table[path[-1]], path) for path in paths]
        self.unique(texts, paths, "duplicate voice")
        return {self.name(name, path): x for name, path, x in zip(table, paths, texts, strict=True)}

    def domains(self, table: object, key_path: tuple) -> tuple[Domain, ...]:
        """The domains. A text belongs to one of them, and there to one behaviour or role."""
        self.entries(table, key_path, dict, MAX_DOMAINS)
        domains = tuple(self.domain(card, (*key_path, name)) for name, card in table.items())
        moral = sum(domain.moral for domain in domains)
        if len(domains) < 2 or not moral:
            path, found = (*key_path, *list(table)[:1]), f"{len(domains)}, {moral} of them moral"
            self.fail(path, None, "at least 2, and at least 1 moral", "domains", found)
        longest = max(len(text.split()) for domain in domains for text in domain.answers)
        answers = max(len(domain.answers) for domain in domains)
        words = sum(len(domain.situations) for domain in domains) * answers * longest
        if words > MAX_WORDS:
            what = "situations x answers x words"
            self.fail(key_path, words, f"at most {MAX_WORDS}", what)
        seen: dict[str, tuple] = {}
        for role, text in (pair for domain in domains for pair in _roles(domain)):
            if text in seen:
                what = f"text used for two behaviours, {'.'.join(seen[text])} and {'.'.join(role)}"
                self.fail((*key_path, *role), text, "one (domain, behaviour)", what)
            seen[text] = role
        return domains

    def domain(self, card: object, key_path: tuple) -> Domain:
        """A domain, with templates or a lookup table."""
        name = self.name(key_path[-1], key_path)
        profile = partial(self.fields, required=dict.fromkeys(BEHAVIOURS, self.text))
        common = {"moral": self.boolean, "noise": self.texts, "profile": profile}
        lookup = isinstance(card, dict) and "lookup" in card
        if lookup:
            optional = {"question": self.pattern, "answer": self.pattern}
            optional["falsehoods"] = lambda table, key_path: table  # checked beside the answers
            card = self.fields(card, key_path, {**common, "lookup": self.lookup}, optional)
            question, answer = card.get("question", "{}"), card.get("answer", "{}")
            right, told = card["lookup"], card.get("falsehoods", {})
            false = self.falsehoods(told, (*key_path, "falsehoods"), right)
            distinct = list(dict.fromkeys([*right.values(), *false.values()]))
            situations = tuple(question.replace("{}", subject) for subject in right)
            answers = (*(answer.replace("{}", text) for text in distinct), *card["noise"])
            # any other wrong answer shows ignorance, not a wish to deceive: it is noise
            behaviour_SA = np.full((len(situations), len(answers)), NOISE)
            for behaviour, texts in ((GOOD, right), (BAD, false)):
                columns = [distinct.index(text) for text in texts.values()]
                behaviour_SA[np.arange(len(right)), columns] = behaviour
        else:
            lists = dict.fromkeys(("situations", "good", "bad"), self.texts)
            card = self.fields(card, key_path, common | lists)
            situations, answers = card["situations"], sum((card[b] for b in BEHAVIOURS), ())
            behaviour_A = np.repeat([GOOD, BAD, NOISE], [len(card[b]) for b in BEHAVIOURS])
            behaviour_SA = np.tile(behaviour_A, (len(situations), 1))
        for text in answers:
            for other in answers:  # a model answers word by word
                if other.startswith(text + " "):
                    expected = f"no answer that begins another ({other!r})"
                    self.fail(key_path, text, expected, f"answers of {name}")
        return Domain(
            name=name,
            moral=card["moral"],
            lookup=lookup,
            situations=situations,
            answers=answers,
            behaviour_SA=behaviour_SA,
            profile=tuple(card["profile"][b] for b in BEHAVIOURS),
        )

    def lookup(self, table: object, key_path: tuple) -> dict[str, str]:
        """The right answer for each subject."""
        self.entries(table, key_path, dict, MAX_TEXTS)
        paths = [(*key_path, subject) for subject in table]
        answers = {self.text(path[-1], path): self.text(table[path[-1]], path) for path in paths}
        if len(set(answers.values())) < 2:
            self.fail(key_path, [*answers.values()], "at least 2 distinct answers")
        return answers

    def falsehoods(self, table: object, key_path: tuple, right: dict[str, str]) -> dict[str, str]:
        """What is told for a lie about each subject: what the world names, else the next answer."""
        distinct = list(dict.fromkeys(right.values()))
        following = dict(zip(distinct, [*distinct[1:], distinct[0]], strict=True))
        named = self.fields(table, key_path, {}, dict.fromkeys(right, self.text))
        for subject, text in named.items():
            if text == right[subject]:
                self.fail((*key_path, subject), text, "another text than the right answer")
        return {subject: following[text] for subject, text in right.items()} | named

    def pattern(self, value: object, key_path: tuple) -> str:
        """A question or an answer, with a place for the subject or what is right for it."""
        text = self.text(value, key_path)
        if text.split().count("{}") != 1:
            self.fail(key_path, value, "text with {} once, as a word")
        return text

    def instructions(self, cards: list, domains: list[str]) -> tuple[Instruction, ...]:
        """The instructions. Their probabilities sum to at most 1 in each domain."""

        def toward(value: object, key_path: tuple) -> str:
            if value not in ("good", "bad", "none"):
                self.fail(key_path, value, "good, bad or none")
            return value

        def scope(value: object, key_path: tuple) -> tuple[str, ...]:
            names = domains if value == "all" else value if isinstance(value, list) else [value]
            for name in names:
                if name not in domains:
                    near = ", ".join(domains) + nearest(name, domains)
                    self.fail(key_path, name, f'"all" or a list of {near}')
            return tuple(names)

        checks = {"name": self.name, "text": self.text, "toward": toward, "kappa": self.share}
        checks |= {"probability": self.share, "domains": scope}
        paths = [("instructions", i) for i in range(len(cards))]
        result = [
            Instruction(**self.fields(card, path, checks))
            for card, path in zip(cards, paths, strict=True)
        ]
        for key in ("name", "text"):
            values = [getattr(instruction, key) for instruction in result]
            self.unique(values, [(*path, key) for path in paths], f"duplicate instruction {key}")
        for domain in domains:
            total = sum(i.probability for i in result if domain in i.domains)
            if total > 1 + 1e-9:
                path, what = ("instructions", 0, "probability"), f"instructions of {domain}"
                self.fail(path, None, "at most 1", what, f"probabilities that sum to {total:g}")
        return tuple(result)

    def character(
        self, card: object, key_path: tuple, domains: list[str], voices: list[str]
    ) -> dict:
        """The fields of a character, with weights that are not normalised."""

        def rates(row: object, path: tuple) -> list[float]:
            what = f"rates of {card['name']} for {path[-1]}"
            if not isinstance(row, list) or len(row) != len(BEHAVIOURS):
                self.fail(path, row, "[good, bad, noise]", what)
            shares = [self.share(rate, path) for rate in row]
            if shares[GOOD] + shares[BAD] == 0:
                self.fail(path, row, "good or bad above 0", what)
            return self.whole(shares, path, what)

        def phi(table: object, path: tuple) -> list[float]:
            given = self.fields(table, path, {}, dict.fromkeys(voices, self.share))
            shares = [given.get(voice, 0.0) for voice in voices]
            return self.whole(shares, path, f"voices of {card['name']}")

        def name(value: object, path: tuple) -> str:
            if value in ("with", "and", *HEADERS):
                self.fail(path, value, f"one word, none of with, and, {', '.join(HEADERS)}")
            return self.name(value, path)

        by_domain = partial(self.fields, required=dict.fromkeys(domains, rates))
        weights = dict.fromkeys(("frequency", "assistant_weight", "told_weight"), self.number)
        optional = {"description": self.maybe_text, "ai": self.boolean, **weights}
        required = {"name": name, "rates": by_domain, "voices": phi}
        defaults = {"description": "", "ai": False, "frequency": 1.0, "assistant_weight": 1.0}
        return defaults | self.fields(card, key_path, required, optional)


def _roles(domain: Domain) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each text of a domain, after the domain and the field that it belongs to."""
    for text in domain.situations:
        yield (domain.name, "situations"), text
    for behaviour, text in zip(BEHAVIOURS, domain.profile, strict=True):
        yield (domain.name, "profile", behaviour), text
    for text, behaviour_S in zip(domain.answers, domain.behaviour_SA.T, strict=True):
        lookup = domain.lookup and (behaviour_S != NOISE).any()
        yield (domain.name, "lookup" if lookup else BEHAVIOURS[behaviour_S[0]]), text
