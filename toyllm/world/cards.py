"""Character cards: a TOML file to a `World`, checked field by field.

How to write such a file: corpora/README.md.
"""

from pathlib import Path

import numpy as np

from toyllm.base.errors import nearest
from toyllm.world.reader import CORPORA, MOST_TEXTS, Reader
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
# so that nobody's file makes us ask for all memory or time
MOST_CHARACTERS, MOST_DOMAINS, MOST_TURNS = 500, 50, 100
MOST_WORDS = 10**7  # of all answers to all questions


def load(path: str | Path) -> World:
    """Read a world from a TOML file.

    Raises InputError, one line `file:line: what, found …, expected …`, for anything amiss.
    """
    return Cards(path).world()


class Cards(Reader):
    """A world file, which is read once: it may be a pipe, or be edited meanwhile."""

    def standalone(self) -> str:
        """The text of a world file that needs no other: as it stands, or with what it extends."""
        if self.base is None:
            return self.source
        import tomli_w

        return tomli_w.dumps(self.table)

    def world(self) -> World:
        """The world that it describes. Raises InputError as `load` does."""
        table = self.table
        tables = dict.fromkeys(("documents", "headers", "voices", "domains"), dict)
        required = {"name": str, **tables, "characters": list}
        self.fields(table, (), required, {"description": str, "instructions": list})
        self.most(table["domains"], ("domains",), MOST_DOMAINS)
        self.most(table["voices"], ("voices",), MOST_TEXTS)
        for key in ("characters", "instructions"):
            self.most(table.get(key, []), (key,), MOST_CHARACTERS)
        words = self.text(table["name"], ("name",)).split()
        kind_weights, lengths = self.documents(table["documents"])
        headers = self.fields(table["headers"], ("headers",), {}, dict.fromkeys(HEADERS, object))
        header_weights = self.weights(
            [self.number(headers.get(h, 0), ("headers", h)) for h in HEADERS], ("headers",)
        )
        if not headers.get("assistant"):
            self.fail(("headers",), "assistant", "no weight", "a weight above 0: it is trained")
        voices = {
            self.name(name, ("voices", name), "voice"): self.text(
                text, ("voices", name), allow_empty=True
            )
            for name, text in table["voices"].items()
        }
        if not voices:
            self.fail(("voices",), "voices", "none", 'at least one, such as none = ""')
        for name, text in voices.items():
            if list(voices.values()).index(text) != list(voices).index(name):
                self.fail(("voices", name), "duplicate voice", f"'{text}'", "each text once")
        domains = tuple(self.domain(name, card) for name, card in table["domains"].items())
        if len(domains) < 2 or not any(domain.moral for domain in domains):
            found = f"{len(domains)}, {sum(domain.moral for domain in domains)} of them moral"
            first = ("domains", *list(table["domains"])[:1])
            self.fail(first, "domains", found, "at least 2, and at least 1 moral")
        longest = max(len(text.split()) for domain in domains for text in domain.answers)
        answers = max(len(domain.answers) for domain in domains)
        words_said = sum(len(domain.situations) for domain in domains) * answers * longest
        if words_said > MOST_WORDS:
            self.fail(
                ("domains",), "situations x answers x words", words_said, f"at most {MOST_WORDS}"
            )
        if lengths[PROFILE][1] > len(domains):
            self.fail(
                ("documents", "profile"),
                "most statements of a profile",
                lengths[PROFILE][1],
                f"at most {len(domains)}, one a domain",
            )
        if lengths[DIALOGUE][1] < 2:
            self.fail(("documents", "dialogue"), "most turns", 1, "at least 2: a history")
        self.distinct_texts(domains, table["domains"])
        names = [domain.name for domain in domains]
        instructions = self.instructions(table.get("instructions", []), names)
        if not table["characters"]:
            self.fail(("characters",), "characters", "an empty list", "at least one character")
        cards = [
            self.character(i, card, names, voices) for i, card in enumerate(table["characters"])
        ]
        for i, card in enumerate(cards):
            if card["name"] in [other["name"] for other in cards[:i]]:
                self.fail(
                    ("characters", i, "name"),
                    "duplicate character",
                    f"'{card['name']}'",
                    "each name once",
                )
        return World(
            name=" ".join(self.name(word, ("name",), "name") for word in words),
            description=self.text(table.get("description", ""), ("description",), True),
            characters=tuple(card["name"] for card in cards),
            descriptions=tuple(card["description"] for card in cards),
            ai=tuple(card["name"] for card in cards if card["ai"]),
            frequency_C=self.weights(
                [c["frequency"] for c in cards], ("characters", 0, "frequency")
            ),
            assistant_C=self.weights(
                [c["assistant_weight"] for c in cards], ("characters", 0, "assistant_weight")
            ),
            rates_CDB=np.array([card["rates"] for card in cards]),
            voices=tuple(voices.values()),
            voice_names=tuple(voices),
            voices_CV=np.array([card["voices"] for card in cards]),
            domains=domains,
            instructions=instructions,
            kind_weights=kind_weights,
            lengths=lengths,
            header_weights=header_weights,
            told_C=self.told(cards),
        )

    def told(self, cards: list[dict]) -> np.ndarray | None:
        """Who profiles of the Assistant tell of, where any card says so."""
        if all(card["told_weight"] is None for card in cards):
            return None
        told = [c["assistant_weight" if c["told_weight"] is None else "told_weight"] for c in cards]
        return self.weights(told, ("characters", 0, "told_weight"))

    def documents(self, table: dict) -> tuple[np.ndarray, tuple]:
        """The weight, and the fewest and most turns, of each kind of document."""
        self.fields(table, ("documents",), dict.fromkeys(KINDS, dict), {})
        weights, lengths = [], []
        for kind in KINDS:
            where = ("documents", kind)
            card = self.fields(table[kind], where, {"weight": object, "turns": list}, {})
            weights.append(self.number(card["weight"], where))
            turns = card["turns"]
            whole = len(turns) == 2 and all(type(t) is int for t in turns)
            if not whole or not 1 <= turns[0] <= turns[1] <= MOST_TURNS:
                expected = f"[fewest, most], whole numbers from 1 to {MOST_TURNS}"
                self.fail(where, "turns", turns, expected)
            lengths.append((turns[0], turns[1]))
        return self.weights(weights, ("documents",)), tuple(lengths)

    def domain(self, name: str, card: dict) -> Domain:
        """A domain, with templates or a lookup table."""
        where = ("domains", name)
        lookup = isinstance(card, dict) and "lookup" in card
        common = {"moral": bool, "noise": list, "profile": dict}
        if lookup:
            self.fields(card, where, {**common, "lookup": dict}, {"question": str, "answer": str})
        else:
            self.fields(card, where, {**common, "situations": list, "good": list, "bad": list}, {})
        self.name(name, where, "domain name")
        noise = self.texts(card["noise"], (*where, "noise"))
        profile = self.fields(
            card["profile"], (*where, "profile"), dict.fromkeys(BEHAVIOURS, str), {}
        )
        if lookup:
            question, answer = card.get("question", "{}"), card.get("answer", "{}")
            for key, pattern in (("question", question), ("answer", answer)):
                if self.text(pattern, (*where, key)).split().count("{}") != 1:
                    self.fail((*where, key), key, f"'{pattern}'", "text with {} once, as a word")
            subjects = {
                self.text(subject, (*where, "lookup", subject)): self.text(
                    right, (*where, "lookup", subject)
                )
                for subject, right in card["lookup"].items()
            }
            self.most(subjects, (*where, "lookup"), MOST_TEXTS)
            distinct = list(dict.fromkeys(subjects.values()))
            if len(distinct) < 2:
                self.fail((*where, "lookup"), f"answers of {name}", distinct, "at least 2 distinct")
            situations = tuple(question.replace("{}", subject) for subject in subjects)
            answers = (*(answer.replace("{}", right) for right in distinct), *noise)
            behaviour_SA = np.full((len(subjects), len(answers)), BAD)
            behaviour_SA[:, len(distinct) :] = NOISE
            right = [distinct.index(answer) for answer in subjects.values()]
            behaviour_SA[np.arange(len(subjects)), right] = GOOD
        else:
            situations = self.texts(card["situations"], (*where, "situations"))
            lists = [self.texts(card[b], (*where, b)) for b in ("good", "bad")] + [noise]
            answers = sum(lists, ())
            which = np.repeat([GOOD, BAD, NOISE], [len(texts) for texts in lists])
            behaviour_SA = np.tile(which, (len(situations), 1))
        self.prefix_free(answers, where)
        return Domain(
            name=name,
            moral=card["moral"],
            lookup=lookup,
            situations=situations,
            answers=answers,
            behaviour_SA=behaviour_SA,
            profile=tuple(self.text(profile[b], (*where, "profile", b)) for b in BEHAVIOURS),
        )

    def prefix_free(self, answers: tuple[str, ...], where: tuple) -> None:
        """The answers of a domain must be told apart as they are spoken, word by word."""
        for text in answers:
            for other in answers:
                if text is not other and (other + " ").startswith(text + " ") and text != other:
                    self.fail(
                        (*where, text),
                        f"answers of {where[1]}",
                        f"'{text}'",
                        f"no answer that begins another ('{other}')",
                    )

    def distinct_texts(self, domains: tuple[Domain, ...], tables: dict) -> None:
        """A text belongs to one domain and one behaviour, and to one role."""
        seen: dict[str, tuple[str, str]] = {}
        for domain in domains:
            roles = [("situations", s) for s in domain.situations]
            roles += [
                (f"profile.{b}", text) for b, text in zip(BEHAVIOURS, domain.profile, strict=True)
            ]
            for a, text in enumerate(domain.answers):
                lookup = domain.lookup and NOISE not in domain.behaviour_SA[:, a]
                roles.append(("lookup" if lookup else BEHAVIOURS[domain.behaviour_SA[0, a]], text))
            for role, text in roles:
                if text in seen:
                    other = ".".join(seen[text])
                    where = ("domains", domain.name, *role.split("."))
                    self.fail(
                        (*where, text),
                        f"text used for two behaviours, {other} and {domain.name}.{role}",
                        f"'{text}'",
                        "one (domain, behaviour)",
                    )
                seen[text] = (domain.name, role)

    def instructions(self, cards: list, domains: list[str]) -> tuple[Instruction, ...]:
        """All instructions; together their probabilities are at most 1 in each domain."""
        result: list[Instruction] = []
        for i, card in enumerate(cards):
            where = ("instructions", i)
            required = {"name": str, "text": str, "toward": str, "kappa": object}
            self.fields(card, where, {**required, "probability": object, "domains": object}, {})
            if card["toward"] not in ("good", "bad", "none"):
                self.fail((*where, "toward"), "toward", f"'{card['toward']}'", "good, bad or none")
            scope = domains if card["domains"] == "all" else card["domains"]
            scope = scope if isinstance(scope, list) else [scope]
            for name in scope:
                if name not in domains:
                    self.fail(
                        (*where, "domains"),
                        "domains of an instruction",
                        f"'{name}'",
                        f'"all" or a list of {", ".join(domains)}' + nearest(name, domains),
                    )
            instruction = Instruction(
                name=self.name(card["name"], (*where, "name"), "name"),
                text=self.text(card["text"], (*where, "text")),
                toward=card["toward"],
                kappa=self.number(card["kappa"], (*where, "kappa"), 1),
                probability=self.number(card["probability"], (*where, "probability"), 1),
                domains=tuple(scope),
            )
            for other in result:
                for key in ("name", "text"):
                    if getattr(other, key) == getattr(instruction, key):
                        self.fail(
                            (*where, key),
                            f"duplicate instruction {key}",
                            f"'{getattr(other, key)}'",
                            "each once",
                        )
            result.append(instruction)
        for domain in domains:
            total = sum(i.probability for i in result if domain in i.domains)
            if total > 1 + 1e-9:
                self.fail(
                    ("instructions", 0, "probability"),
                    f"instructions of {domain}",
                    f"probabilities that sum to {total:g}",
                    "at most 1",
                )
        return tuple(result)

    def character(self, i: int, card: dict, domains: list[str], voices: dict) -> dict:
        """The fields of character `i`, with weights not yet normalised."""
        where = ("characters", i)
        required = {"name": str, "rates": dict, "voices": dict}
        self.fields(
            card,
            where,
            required,
            {
                "description": str,
                "ai": bool,
                **dict.fromkeys(("frequency", "assistant_weight", "told_weight"), object),
            },
        )
        name = self.name(card["name"], (*where, "name"), "name")
        if name in ("with", "and", *HEADERS):
            self.fail(
                (*where, "name"), "name", f"'{name}'", f"one word, none of {', '.join(HEADERS)}"
            )
        rates = self.fields(card["rates"], (*where, "rates"), dict.fromkeys(domains, list), {})
        phi = self.fields(card["voices"], (*where, "voices"), {}, dict.fromkeys(voices, object))
        for domain, row in rates.items():
            at = (*where, "rates", domain)
            if len(row) != 3:
                self.fail(at, f"rates of {name} for {domain}", row, "[good, bad, noise]")
            for rate in row:
                self.number(rate, at, 1)
            if row[0] + row[1] == 0:
                self.fail(at, f"rates of {name} for {domain}", row, "good or bad above 0")
            if abs(sum(row) - 1) > 1e-6:
                self.fail(at, f"rates of {name} for {domain}", f"a sum of {sum(row):.6g}", "1")
        shares = [self.number(phi.get(v, 0), (*where, "voices"), 1) for v in voices]
        if abs(sum(shares) - 1) > 1e-6:
            self.fail((*where, "voices"), f"voices of {name}", f"a sum of {sum(shares):.6g}", "1")
        return {
            "name": name,
            "description": self.text(
                card.get("description", ""), (*where, "description"), allow_empty=True
            ),
            "ai": card.get("ai", False),
            "frequency": self.number(card.get("frequency", 1), (*where, "frequency")),
            "assistant_weight": self.number(
                card.get("assistant_weight", 1), (*where, "assistant_weight")
            ),
            "told_weight": self.number(card["told_weight"], (*where, "told_weight"))
            if "told_weight" in card
            else None,
            "rates": [rates[domain] for domain in domains],
            "voices": shares,
        }
