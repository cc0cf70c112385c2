"""Turns the tables of the invented world into a list of facts with questions and answers.

Standard library only; the same list in the same order every time. Every fact has one canonical
answer, however the question is put, so that greedy answers can be compared word for word.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import starter_world as world
from starter_kinds import KINDS, Kind
from starter_world import words

# What the cells of each table say, from the second on.
ANIMAL_COLUMNS = [
    KINDS[f"animal {name}"] for name in words("colour place food sound home joy legs")
]
PERSON_COLUMNS = [
    KINDS[f"person {name}"] for name in words("job house dish pet friend hobby coat load")
]
JOB_COLUMNS = [KINDS[f"job {name}"] for name in words("work place tool dress")]
OBJECT_COLUMNS = [KINDS[f"thing {name}"] for name in words("colour place stuff use look")]
PLACE_COLUMNS = [KINDS[f"place {name}"] for name in words("sight smell weather")]
FOOD_COLUMNS = [KINDS[f"food {name}"] for name in words("taste colour source time")]
WEATHER_COLUMNS = [KINDS[f"weather {name}"] for name in words("need plan")]
OWNERS = [KINDS[name] for name in ("job holder", "house owner", "pet owner")]
# Digits have no capital letters and read alike in several manners.
PLAIN_ONLY = frozenset({"digits"})
LITTLE_WORDS = frozenset(words("in on under by near at behind above against a an the"))


@dataclass(frozen=True)
class Fact:
    """A subject, a value and the sentences about them."""

    kind: Kind
    subject: str
    value: str

    @property
    def answer(self) -> str:
        """Return the one right answer."""
        return self._fill(self.kind.answer)

    @property
    def questions(self) -> list[str]:
        """Return every way to ask for this fact."""
        return [self._fill(question) for question in self.kind.questions]

    @property
    def record(self) -> dict[str, str]:
        """Return the fact as two keys and two bare values."""
        subject_key, value_key = self.kind.keys
        return {subject_key: bare(self.subject), value_key: bare(self.value)}

    def _fill(self, pattern: str) -> str:
        text = pattern.format(s=self.subject, v=self.value, a=world.article(self.subject))
        return text[0].upper() + text[1:]


def bare(phrase: str) -> str:
    """Drop the leading prepositions and articles: 'on the mat' becomes 'mat'."""
    rest = phrase.split()
    while len(rest) > 1 and rest[0] in LITTLE_WORDS:
        rest.pop(0)
    return " ".join(rest)


def column_facts(table: str, kinds: Sequence[Kind]) -> Iterator[Fact]:
    """Yield one fact for each cell after the first of each row."""
    for subject, *cells in world.rows(table):
        for kind, value in zip(kinds, cells, strict=True):
            yield Fact(kind, subject, value)


def people_facts() -> Iterator[Fact]:
    """Yield what is known about people, and who holds a job, a house or a pet."""
    yield from column_facts(world.PEOPLE, PERSON_COLUMNS)
    for name, job, house, _, pet, *_ in world.rows(world.PEOPLE):
        for kind, subject in zip(OWNERS, (job, house, pet), strict=True):
            yield Fact(kind, subject, name)


def job_facts() -> Iterator[Fact]:
    """Yield what each job does, and what the makers make."""
    yield from column_facts(world.JOBS, JOB_COLUMNS)
    for job, work, *_ in world.rows(world.JOBS):
        if work.startswith("makes "):
            yield Fact(KINDS["job product"], job, work.removeprefix("makes "))


def sort_facts() -> Iterator[Fact]:
    """Yield what sort of thing each noun names."""
    sorts = ((world.ANIMALS, "an animal"), (world.OBJECTS, "a thing"), (world.FOODS, "a food"))
    for table, value in sorts:
        yield from (Fact(KINDS["sort"], row[0], value) for row in world.rows(table))


def word_facts() -> Iterator[Fact]:
    """Yield opposites, both ways round, and the names of young animals."""
    for first, second in world.pairs(world.OPPOSITES):
        yield Fact(KINDS["opposite"], first, second)
        yield Fact(KINDS["opposite"], second, first)
    for animal, young in world.pairs(world.YOUNG):
        yield Fact(KINDS["young"], animal, world.article(young))


def calendar_facts() -> Iterator[Fact]:
    """Yield the order of days, months and numbers, and the seasons."""
    cycles = (world.DAYS, world.MONTHS)
    for names in cycles:
        for index, name in enumerate(names):
            yield Fact(KINDS["after"], name, names[(index + 1) % len(names)])
            yield Fact(KINDS["before"], name, names[index - 1])
    for smaller, larger in zip(world.NUMBERS, world.NUMBERS[1:], strict=False):
        yield Fact(KINDS["after"], smaller, larger)
        yield Fact(KINDS["before"], larger, smaller)
    for season, months in world.SEASONS.items():
        for month in months:
            yield Fact(KINDS["season"], world.MONTHS[month], season)


def sum_facts() -> Iterator[Fact]:
    """Yield sums and differences up to ten, in words and in digits."""
    names = world.NUMBERS
    for first in range(11):
        for second in range(11):
            total = first + second
            yield Fact(KINDS["sum"], f"{names[first]} plus {names[second]}", names[total])
            yield Fact(KINDS["digits"], f"{first} + {second}", str(total))
            if second <= first:
                rest = first - second
                yield Fact(
                    KINDS["difference"], f"{names[first]} minus {names[second]}", names[rest]
                )
                yield Fact(KINDS["digits"], f"{first} - {second}", str(rest))


def all_facts() -> list[Fact]:
    """Return every fact of the world, in a fixed order."""
    return [
        *column_facts(world.ANIMALS, ANIMAL_COLUMNS),
        *people_facts(),
        *job_facts(),
        *column_facts(world.OBJECTS, OBJECT_COLUMNS),
        *column_facts(world.PLACES, PLACE_COLUMNS),
        *column_facts(world.FOODS, FOOD_COLUMNS),
        *column_facts(world.WEATHER, WEATHER_COLUMNS),
        *sort_facts(),
        *word_facts(),
        *calendar_facts(),
        *sum_facts(),
    ]
