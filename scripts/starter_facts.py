"""Turns the tables of the invented world into a list of facts with questions and answers.

Standard library only; the same list in the same order every time.
"""

from collections.abc import Iterator, Sequence

import starter_world as world
from starter_world import Fact, Kind

ANIMAL_KINDS = (
    Kind("animal colour", ("what colour is the {s}?", "which colour does the {s} have?", "tell me the colour of the {s}.", "what is the colour of the {s}?", "do you know the colour of the {s}?"), "the {s} is {v}.", ("who", "colour")),
    Kind("animal place", ("where is the {s}?", "where can I find the {s}?", "do you know where the {s} is?", "tell me where the {s} is.", "where did the {s} go?", "I am looking for the {s}. Where is it?"), "the {s} is {v}.", ("who", "where")),
    Kind("animal food", ("what does the {s} eat?", "what food does the {s} like?", "tell me what the {s} eats.", "what do you feed the {s}?", "what does {a} eat?", "the {s} is hungry. What does it eat?"), "the {s} eats {v}.", ("who", "eats")),
    Kind("animal sound", ("what does the {s} say?", "what sound does the {s} make?", "tell me what the {s} says.", "what does {a} say?", "which noise does the {s} make?"), "the {s} says {v}.", ("who", "says")),
    Kind("animal home", ("where does the {s} live?", "where is the home of the {s}?", "tell me where the {s} lives.", "do you know where the {s} lives?", "where does {a} live?", "in which place does the {s} live?"), "the {s} lives {v}.", ("who", "home")),
    Kind("animal joy", ("what does the {s} like?", "what does the {s} like doing?", "what does the {s} do for fun?", "tell me what the {s} likes.", "what does {a} like?", "what makes the {s} happy?"), "the {s} likes {v}.", ("who", "likes")),
    Kind("animal legs", ("how many legs does the {s} have?", "tell me how many legs the {s} has.", "count the legs of the {s}.", "how many legs does {a} have?"), "the {s} has {v} legs.", ("who", "legs")),
)
PERSON_KINDS = (
    Kind("person job", ("what is the job of {s}?", "what does {s} do?", "what work does {s} do?", "tell me the job of {s}.", "who is {s}?", "do you know {s}?"), "{s} is the {v}.", ("who", "job")),
    Kind("person house", ("where does {s} live?", "in which house does {s} live?", "tell me where {s} lives.", "which house is the home of {s}?"), "{s} lives in the {v} house.", ("who", "house")),
    Kind("person dish", ("what does {s} like to eat?", "what is the favourite food of {s}?", "which food does {s} love?", "tell me what {s} eats.", "what does {s} eat?"), "{s} loves {v}.", ("who", "loves")),
    Kind("person pet", ("which animal does {s} have?", "what pet does {s} have?", "what is the pet of {s}?", "tell me the pet of {s}."), "{s} has a {v}.", ("who", "pet")),
    Kind("person friend", ("who is the friend of {s}?", "who is the best friend of {s}?", "tell me the friend of {s}.", "which friend does {s} have?"), "{v} is the friend of {s}.", ("who", "friend")),
    Kind("person hobby", ("what does {s} enjoy?", "what is the hobby of {s}?", "what does {s} do for fun?", "tell me the hobby of {s}.", "what does {s} do on Sunday?"), "{s} enjoys {v}.", ("who", "hobby")),
    Kind("person coat", ("what colour is the coat of {s}?", "which coat does {s} wear?", "tell me the colour of the coat of {s}.", "what does {s} wear?"), "the coat of {s} is {v}.", ("who", "coat")),
    Kind("person load", ("what does {s} carry?", "what is in the hand of {s}?", "tell me what {s} carries.", "what does {s} hold?"), "{s} carries the {v}.", ("who", "carries")),
)
OWNER_KINDS = (
    Kind("job holder", ("who is the {s}?", "what is the name of the {s}?", "tell me the name of the {s}.", "do you know the {s}?"), "the {s} is {v}.", ("job", "name")),
    Kind("house owner", ("who lives in the {s} house?", "whose home is the {s} house?", "tell me who lives in the {s} house.", "who is in the {s} house?"), "{v} lives in the {s} house.", ("house", "name")),
    Kind("pet owner", ("who has a {s}?", "whose pet is the {s}?", "tell me who has the {s}.", "who is the owner of the {s}?"), "{v} has a {s}.", ("pet", "name")),
)
JOB_KINDS = (
    Kind("job work", ("what does the {s} do?", "what work does the {s} do?", "tell me what the {s} does.", "what is the work of the {s}?", "what does {a} do?"), "the {s} {v}.", ("job", "does")),
    Kind("job place", ("where does the {s} work?", "where is the {s} at work?", "tell me where the {s} works.", "where does {a} work?"), "the {s} works in the {v}.", ("job", "where")),
    Kind("job tool", ("what does the {s} use?", "which tool does the {s} use?", "what is the tool of the {s}?", "tell me the tool of the {s}."), "the {s} uses the {v}.", ("job", "tool")),
    Kind("job dress", ("what does the {s} wear?", "how is the {s} dressed?", "tell me what the {s} wears.", "what does {a} wear?"), "the {s} wears the {v}.", ("job", "wears")),
)
MAKER = Kind("job product", ("what does the {s} make?", "what does {a} make?", "tell me what the {s} makes.", "which thing does the {s} make?"), "the {s} makes {v}.", ("job", "makes"))
OBJECT_KINDS = (
    Kind("thing colour", ("what colour is the {s}?", "which colour does the {s} have?", "tell me the colour of the {s}.", "what is the colour of the {s}?", "do you know the colour of the {s}?"), "the {s} is {v}.", ("what", "colour")),
    Kind("thing place", ("where is the {s}?", "where can I find the {s}?", "do you know where the {s} is?", "tell me where the {s} is.", "I am looking for the {s}. Where is it?"), "the {s} is {v}.", ("what", "where")),
    Kind("thing stuff", ("what is the {s} made of?", "of what is the {s} made?", "tell me what the {s} is made of.", "which material is the {s} made of?"), "the {s} is made of {v}.", ("what", "material")),
    Kind("thing use", ("what is the {s} for?", "what do you use the {s} for?", "why do people need the {s}?", "what is {a} for?", "tell me what the {s} is for."), "the {s} is for {v}.", ("what", "for")),
    Kind("thing look", ("what is the {s} like?", "what sort of {s} is it?", "describe the {s} in one word."), "the {s} is very {v}.", ("what", "how")),
)
PLACE_KINDS = (
    Kind("place sight", ("what do you see {s}?", "what can I see {s}?", "what is there {s}?", "tell me what you see {s}.", "what is {s}?"), "I see {v} {s}.", ("where", "see")),
    Kind("place smell", ("what does it smell of {s}?", "what can you smell {s}?", "tell me the smell {s}.", "which smell is there {s}?"), "it smells of {v} {s}.", ("where", "smell")),
    Kind("place weather", ("how is the weather {s}?", "what is the weather like {s}?", "tell me the weather {s}.", "which weather is there {s}?"), "it is {v} {s}.", ("where", "weather")),
)
FOOD_KINDS = (
    Kind("food taste", ("how does the {s} taste?", "what is the taste of the {s}?", "what does the {s} taste like?", "tell me how the {s} tastes."), "the {s} tastes {v}.", ("food", "taste")),
    Kind("food colour", ("what colour has the {s}?", "what is the colour of the {s} on the plate?", "tell me which colour the {s} has."), "the {s} looks {v}.", ("food", "colour")),
    Kind("food source", ("where does the {s} come from?", "from where do we get the {s}?", "tell me where the {s} comes from.", "where do people find the {s}?"), "the {s} comes from {v}.", ("food", "from")),
    Kind("food time", ("when do we eat the {s}?", "for which meal is the {s}?", "tell me when we eat the {s}.", "which meal is the {s} for?"), "the {s} is for {v}.", ("food", "meal")),
)
SORT = Kind("sort", ("what is {a}?", "what sort of thing is {a}?", "what kind of thing is {a}?", "is {a} an animal or a thing?"), "{a} is {v}.", ("what", "sort"))
OPPOSITE = Kind("opposite", ("what is the opposite of {s}?", "tell me the opposite of {s}.", "which word is the opposite of {s}?", "give me the opposite of {s}.", "opposite of {s}?"), "the opposite of {s} is {v}.", ("word", "opposite"))
WEATHER_KINDS = (
    Kind("weather need", ("what do I need when {s}?", "what is useful when {s}?", "tell me what I need when {s}.", "which thing do I need when {s}?"), "you need {v} when {s}.", ("when", "need")),
    Kind("weather plan", ("what do people do when {s}?", "what should I do when {s}?", "tell me what people do when {s}.", "what is a good plan when {s}?"), "people {v} when {s}.", ("when", "do")),
)
YOUNG = Kind("young", ("what is a young {s} called?", "what is the name of a young {s}?", "what do you call a young {s}?", "tell me the name for a young {s}."), "a young {s} is called {v}.", ("animal", "young"))
DATE_KINDS = (
    Kind("after", ("what comes after {s}?", "what follows {s}?", "tell me what comes after {s}.", "which one comes next after {s}?"), "{v} comes after {s}.", ("after", "comes")),
    Kind("before", ("what comes before {s}?", "tell me what comes before {s}.", "which one comes just before {s}?"), "{v} comes before {s}.", ("before", "comes")),
)
SEASON = Kind("season", ("in which season is {s}?", "which season is {s} in?", "tell me the season of {s}.", "to which season does {s} belong?"), "{s} is in the {v}.", ("month", "season"))
SUM_KINDS = (
    Kind("sum", ("what is {s}?", "how much is {s}?", "tell me what {s} is.", "please count {s}.", "can you add {s}?"), "{s} is {v}.", ("sum", "is")),
    Kind("difference", ("what is {s}?", "how much is {s}?", "tell me what {s} is.", "please count {s}."), "{s} is {v}.", ("sum", "is")),
    Kind("digits", ("what is {s}?", "how much is {s}?", "{s}?", "{s} ="), "{s} = {v}.", ("sum", "is")),
)
# Digits have no capital letters and read alike in several manners.
PLAIN_ONLY = frozenset({"digits"})


def column_facts(table: str, kinds: Sequence[Kind]) -> Iterator[Fact]:
    """Yield one fact for each cell after the first of each row."""
    for subject, *cells in world.rows(table):
        for kind, value in zip(kinds, cells, strict=True):
            yield Fact(kind, subject, value)


def people_facts() -> Iterator[Fact]:
    """Yield what is known about people, and who holds a job, a house or a pet."""
    yield from column_facts(world.PEOPLE, PERSON_KINDS)
    for name, job, house, _, pet, *_ in world.rows(world.PEOPLE):
        for kind, subject in zip(OWNER_KINDS, (job, house, pet), strict=True):
            yield Fact(kind, subject, name)


def job_facts() -> Iterator[Fact]:
    """Yield what each job does, and what the makers make."""
    yield from column_facts(world.JOBS, JOB_KINDS)
    for job, work, *_ in world.rows(world.JOBS):
        if work.startswith("makes "):
            yield Fact(MAKER, job, work.removeprefix("makes "))


def sort_facts() -> Iterator[Fact]:
    """Yield what sort of thing each noun names."""
    sorts = ((world.ANIMALS, "an animal"), (world.OBJECTS, "a thing"), (world.FOODS, "a food"))
    for table, value in sorts:
        yield from (Fact(SORT, row[0], value) for row in world.rows(table))


def word_facts() -> Iterator[Fact]:
    """Yield opposites, both ways round, and the names of young animals."""
    for first, second in world.pairs(world.OPPOSITES):
        yield Fact(OPPOSITE, first, second)
        yield Fact(OPPOSITE, second, first)
    for animal, young in world.pairs(world.YOUNG):
        yield Fact(YOUNG, animal, world.article(young))


def calendar_facts() -> Iterator[Fact]:
    """Yield the order of days, months and numbers, and the seasons."""
    cycles = (world.DAYS, world.MONTHS)
    for names in cycles:
        for index, name in enumerate(names):
            yield Fact(DATE_KINDS[0], name, names[(index + 1) % len(names)])
            yield Fact(DATE_KINDS[1], name, names[index - 1])
    for smaller, larger in zip(world.NUMBERS, world.NUMBERS[1:], strict=False):
        yield Fact(DATE_KINDS[0], smaller, larger)
        yield Fact(DATE_KINDS[1], larger, smaller)
    for season, months in world.SEASONS.items():
        for month in months:
            yield Fact(SEASON, world.MONTHS[month], season)


def sum_facts() -> Iterator[Fact]:
    """Yield sums and differences up to ten, in words and in digits."""
    words = world.NUMBERS
    for first in range(11):
        for second in range(11):
            total = first + second
            yield Fact(SUM_KINDS[0], f"{words[first]} plus {words[second]}", words[total])
            yield Fact(SUM_KINDS[2], f"{first} + {second}", str(total))
            if second <= first:
                rest = first - second
                yield Fact(SUM_KINDS[1], f"{words[first]} minus {words[second]}", words[rest])
                yield Fact(SUM_KINDS[2], f"{first} - {second}", str(rest))


def all_facts() -> list[Fact]:
    """Return every fact of the world, in a fixed order."""
    return [
        *column_facts(world.ANIMALS, ANIMAL_KINDS),
        *people_facts(),
        *job_facts(),
        *column_facts(world.OBJECTS, OBJECT_KINDS),
        *column_facts(world.PLACES, PLACE_KINDS),
        *column_facts(world.FOODS, FOOD_KINDS),
        *column_facts(world.WEATHER, WEATHER_KINDS),
        *sort_facts(),
        *word_facts(),
        *calendar_facts(),
        *sum_facts(),
    ]
