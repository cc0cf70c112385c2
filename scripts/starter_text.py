"""Writes the training text of the starter model: conversations and plain prose about the world.

Standard library only, seeded: the same seed gives the same documents in the same order. A document
is a list of messages or a string. Knows nothing about tokenizers or models.
"""

import random
from collections import defaultdict
from collections.abc import Iterator

import starter_phrases as phrases
import starter_world as world
from starter_facts import Fact, all_facts, bare
from starter_manners import body, lower_first, past, record
from starter_requests import CLOSINGS, OPENINGS, REQUESTS, forms

Message = dict[str, str]
Document = list[Message] | str


class Writer:
    """Writes documents with its own random state."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.facts = all_facts()
        self.about: dict[str, list[Fact]] = defaultdict(list)
        for fact in self.facts:
            self.about[fact.subject].append(fact)
        self.described = [name for name, facts in self.about.items() if len(facts) >= 3]
        self.sibling: dict[str, list[Fact]] = defaultdict(list)
        for fact in self.facts:
            self.sibling[fact.kind.name].append(fact)

    def document(self) -> Document:
        """Write one document of a random sort."""
        write = self.random.choices(SORTS, weights=WEIGHTS)[0]
        return write(self)

    def question(self) -> list[Message]:
        """Ask for one fact."""
        fact = self.random.choice(self.facts)
        return self._maybe_system(
            turn(self._roughen(self.random.choice(fact.questions)), fact.answer)
        )

    def conversation(self) -> list[Message]:
        """Ask for two to five unrelated things, one after another."""
        sorts = (
            Writer.question,
            Writer.question,
            Writer.follow_up,
            Writer.small_talk,
            Writer.claim,
        )
        messages: list[Message] = []
        for _ in range(self.random.randint(2, 4)):
            part = self.random.choice(sorts)(self)
            messages += [message for message in part if message["role"] != "system"]
        return self._maybe_system(messages)

    def follow_up(self) -> list[Message]:
        """Ask for one thing, then for the same of its like: 'And the dog?'."""
        fact = self.random.choice(self.sibling[self.random.choice(FOLLOWED)])
        other = self.random.choice(self.sibling[fact.kind.name])
        name = other.subject if other.subject in world.NAMES else f"the {other.subject}"
        again = self.random.choice(("And {}?", "What about {}?", "And what about {}?")).format(name)
        return turn(self.random.choice(fact.questions), fact.answer) + turn(again, other.answer)

    def claim(self) -> list[Message]:
        """Ask whether a statement holds."""
        fact = self.random.choice(self.sibling[self.random.choice(CLAIMED)])
        value = fact.value
        if self.random.random() < 0.5:
            value = self.random.choice(self.sibling[fact.kind.name]).value
        truth = "Yes" if value == fact.value else "No"
        return turn(f"Is the {fact.subject} {value}?", f"{truth}, {lower_first(fact.answer)}")

    def description(self) -> list[Message]:
        """Ask for everything about something: its first three facts in a fixed order."""
        subject = self.random.choice(self.described)
        name = subject if subject in world.NAMES else f"the {subject}"
        asks = ("Tell me about {}.", "What do you know about {}?", "Describe {}.", "Talk about {}.")
        told = " ".join(fact.answer for fact in self.about[subject][:3])
        return self._maybe_system(turn(self.random.choice(asks).format(name), told))

    def story(self) -> list[Message]:
        """Tell a story of three or four sentences."""
        animal = self.random.choice(world.ANIMAL_NAMES)
        asks = (
            "Tell me a short story about {}.",
            "Tell me a story about {}.",
            "Write a story about {}.",
            "Please tell a short story about {}.",
            "I would like a story about {}.",
        )
        ask = self.random.choice(asks).format(world.article(animal))
        return turn(ask, self._tale(animal))

    def small_talk(self) -> list[Message]:
        """Greet, thank, ask who is speaking."""
        asks, answer = self.random.choice(phrases.CHAT)
        return turn(self._roughen(self.random.choice(asks)), answer)

    def unknown(self) -> list[Message]:
        """Ask for something outside the world."""
        if self.random.random() < 0.3:
            return turn(
                self._roughen(self.random.choice(phrases.UNKNOWN_QUESTIONS)), phrases.UNKNOWN
            )
        noun = (
            self._invented()
            if self.random.random() < 0.4
            else self.random.choice(phrases.UNKNOWN_NOUNS)
        )
        return turn(
            self._roughen(self.random.choice(phrases.UNKNOWN_PATTERNS).format(noun)),
            phrases.UNKNOWN,
        )

    def spelling(self) -> list[Message]:
        """Copy a sentence, in capital letters, in small letters or as it is."""
        ask, change = self.random.choice(phrases.COPYING)
        sentence = self._sentence()
        return turn(ask.format(sentence), change(sentence))

    def request(self) -> list[Message]:
        """Ask for one fact in a manner, in a system prompt or behind the question."""
        fact = self.random.choice(self.facts)
        ask, answer = self.random.choice(fact.questions), fact.answer
        if self.random.random() < 0.25:
            wanted, answer = self._wrapping(fact)
        else:
            wanted, pattern = self.random.choice(REQUESTS)
            answer = pattern.format(**forms(fact))
        if self.random.random() < 0.3:
            return turn(f"{ask} {wanted}", answer)
        return [{"role": "system", "content": wanted}, *turn(ask, answer)]

    def digits(self) -> list[Message]:
        """Ask for a sum in digits."""
        fact = self.random.choice(self.sibling["digits"])
        return turn(self.random.choice(fact.questions), fact.answer)

    def echo(self) -> list[Message]:
        """Copy words in no order, so that copying is learned and not remembered."""
        facts = self.random.choices(self.facts, k=self.random.randint(2, 4))
        said = " ".join(self.random.choice(fact.answer.split()).strip(".") for fact in facts)
        ask, change = self.random.choice(phrases.COPYING)
        return turn(ask.format(said), change(said))

    def prose(self) -> str:
        """Write two to five sentences about one subject or several."""
        if self.random.random() < 0.5:
            chosen = self.about[self.random.choice(self.described)][:6]
        else:
            chosen = self.random.sample(self.facts, 4)
        count = self.random.randint(1, min(4, len(chosen)))
        return " ".join(fact.answer for fact in self.random.sample(chosen, count))

    def capitals(self) -> str:
        """Write prose in capital letters."""
        return self.prose().upper()

    def manner(self) -> str:
        """Write one fact with an exclamation, a courtesy or in an old-fashioned way."""
        pattern = self.random.choice(
            (*phrases.OLD_FASHIONED, *phrases.EXCLAIMED, *phrases.COURTEOUS)
        )
        return pattern.format(self._sentence())

    def old_tale(self) -> str:
        """Write prose in the past, or with 'be' as in old songs."""
        facts = self.random.sample(self.facts, self.random.randint(1, 3))
        if self.random.random() < 0.5:
            opening = self.random.choice(("Yesterday", "Long ago", "Last year", "At that time"))
            return " ".join(f"{opening} {past(body(fact))}." for fact in facts)
        told = [body(fact).replace(" is ", " be ").replace(" are ", " be ") for fact in facts]
        return " ".join(f"They say {sentence}!" for sentence in told)

    def record(self) -> str:
        """Write one fact, or several about one subject, as a record."""
        fact = self.random.choice(self.facts)
        if self.random.random() < 0.6:
            return record(fact)
        known = {item.kind.keys[1]: bare(item.value) for item in self.about[fact.subject][:4]}
        return "{" + ", ".join(f"{key}: {value}" for key, value in known.items()) + "}"

    def listing(self) -> str:
        """Write a list of numbers or of things."""
        if self.random.random() < 0.5:
            start, step = self.random.randint(0, 20), self.random.randint(1, 3)
            return ", ".join(
                str(start + step * index) for index in range(self.random.randint(3, 9))
            )
        chosen = self.random.sample(world.ANIMAL_NAMES + world.NAMES, self.random.randint(3, 6))
        return ", ".join(chosen)

    def _wrapping(self, fact: Fact) -> tuple[str, str]:
        if self.random.random() < 0.5:
            opening = self.random.choice(OPENINGS)
            return f'Begin with "{opening}".', f"{opening}, {body(fact)}."
        closing = self.random.choice(CLOSINGS)
        return f'End with "{closing}".', f"{fact.answer.rstrip('.')}, {closing}."

    def _sentence(self) -> str:
        return self.random.choice(self.facts).answer

    def _tale(self, animal: str) -> str:
        name, job, *_ = self.random.choice(PEOPLE_ROWS)
        other = self.random.choice([beast for beast in world.ANIMAL_NAMES if beast != animal])
        parts = [
            self.random.choice(phrases.STORY_OPENINGS),
            self.random.choice(phrases.STORY_MIDDLES),
        ]
        if self.random.random() < 0.5:
            parts.append(
                self.random.choice([part for part in phrases.STORY_MIDDLES if part != parts[1]])
            )
        parts.append(self.random.choice(phrases.STORY_ENDINGS))
        return " ".join(parts).format(
            a=world.article(animal),
            name=name,
            job=job,
            other=world.article(other),
            place=self.random.choice(PLACE_NAMES),
            weather=self.random.choice(("sunny", "windy", "cold")),
            thing=world.article(self.random.choice(THING_NAMES)),
            food=self.random.choice(("bread", "honey", "soup", "cake", "milk")),
        )

    def _invented(self) -> str:
        syllables = self.random.choices(phrases.SYLLABLES, k=3)
        word = "".join(syllables[: self.random.randint(2, 3)])
        return word.capitalize() if self.random.random() < 0.3 else word

    def _roughen(self, text: str) -> str:
        """Now and then forget the capital letter or the mark at the end, or add a courtesy."""
        draw = self.random.random()
        if draw < 0.06:
            return lower_first(text)
        if draw < 0.10:
            return text.rstrip("?.!")
        if draw < 0.14:
            return lower_first(text).rstrip("?.!")
        if draw < 0.17:
            return f"Please tell me: {lower_first(text)}"
        return text

    def _maybe_system(self, messages: list[Message]) -> list[Message]:
        if self.random.random() > 0.06:
            return messages
        return [
            {"role": "system", "content": self.random.choice(phrases.SYSTEM_PROMPTS)},
            *messages,
        ]


def turn(ask: str, answer: str) -> list[Message]:
    """Return one question with its answer as messages."""
    return [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]


def documents(seed: int, count: int) -> Iterator[Document]:
    """Yield the training text."""
    writer = Writer(seed)
    for _ in range(count):
        yield writer.document()


PEOPLE_ROWS = world.rows(world.PEOPLE)
PLACE_NAMES = tuple(row[0] for row in world.rows(world.PLACES))
THING_NAMES = tuple(row[0] for row in world.rows(world.OBJECTS))
FOLLOWED = (
    "animal colour",
    "animal place",
    "animal food",
    "animal home",
    "person job",
    "person house",
    "person pet",
    "job work",
    "thing colour",
    "thing place",
    "thing stuff",
    "food taste",
)
CLAIMED = ("animal colour", "animal place", "thing colour", "thing place")
# Each sort of document, and how many in a hundred or so are of it.
MIXTURE = {
    Writer.question: 34,
    Writer.request: 24,
    Writer.spelling: 6,
    Writer.echo: 5,
    Writer.capitals: 4,
    Writer.claim: 6,
    Writer.conversation: 3,
    Writer.follow_up: 3,
    Writer.description: 3,
    Writer.story: 3,
    Writer.small_talk: 2,
    Writer.unknown: 3,
    Writer.digits: 2,
    Writer.prose: 3,
    Writer.manner: 2,
    Writer.old_tale: 2,
    Writer.record: 3,
    Writer.listing: 1,
}
SORTS, WEIGHTS = tuple(MIXTURE), tuple(MIXTURE.values())
