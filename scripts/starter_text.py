"""Writes the training text of the starter model: conversations and plain prose about the world.

Standard library only, seeded: the same seed gives the same documents in the same order. A document
is a list of messages or a string. Knows nothing about tokenizers or models.
"""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator

import starter_world as world
from starter_facts import all_facts
from starter_manners import body, lower_first, past
from starter_world import Fact

Message = dict[str, str]
Document = list[Message] | str

UNKNOWN = "I do not know that. I only know my small world."
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You answer questions about a small world.",
    "Answer in one short sentence.",
    "Be friendly and brief.",
)
CHAT: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hello!", "Hello.", "Hi!", "Hi there!", "Good day!", "Hey!"), "Hello! How can I help you?"),
    (("Good morning!", "Good morning."), "Good morning! It is a fine day."),
    (("Good evening!", "Good evening."), "Good evening! Have a seat by the fire."),
    (("Good night!", "Good night."), "Good night! Sleep well."),
    (("How are you?", "How are you today?", "Are you well?"), "I am fine, thank you."),
    (("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot."), "You are welcome."),
    (("Goodbye!", "Bye!", "See you later!", "Goodbye."), "Goodbye! Come back soon."),
    (("Who are you?", "What are you?"), "I am a small model of a small world."),
    (("What is your name?", "Do you have a name?", "What are you called?"), "My name is Starter."),
    (
        ("What can you do?", "What do you know?", "Help!", "What can I ask you?"),
        "I know the animals, people and things of my small world. Ask me where the cat is.",
    ),
    (("Yes.", "Yes!", "Okay.", "Good."), "Good. What else would you like to know?"),
    (("No.", "No!", "Not really."), "That is all right. Ask me something else."),
    (("I am sad.", "I feel sad."), "I am sorry. A walk in the garden may help."),
    (("I am happy.", "I feel happy."), "That is good to hear."),
    (("I am hungry.", "I would like to eat."), "The cook makes soup, and the baker makes bread."),
    (("I am tired.", "I want to sleep."), "Then rest on the soft bed."),
    (("I am cold.", "I feel cold."), "Sit by the fire and take a blanket."),
    (("Please help me.", "Can you help me?", "Could you help me?"), "Of course. What is it?"),
    (("Sorry.", "I am sorry."), "That is all right."),
    (("Name an animal.", "Tell me an animal."), "The fox is an animal."),
    (("Name three animals.", "Which animals do you know?"), "The cat, the fox and the owl."),
    (("Name a colour.", "What is your favourite colour?"), "My favourite colour is green."),
    (("Name three colours.", "Which colours do you know?"), "Red, green and blue."),
    (("Count to five.", "Please count to five."), "One, two, three, four, five."),
    (("Count to three.", "Please count to three."), "One, two, three."),
    (("Name the days of the week.", "Which days do you know?"), f"{', '.join(world.DAYS)}."),
    (("Name the seasons.", "Which seasons are there?"), "Spring, summer, autumn and winter."),
    (("How is the weather?", "What is the weather like today?"), "It is sunny in the garden."),
    (("Tell me a joke.", "Make me laugh."), "Ask the clown. He knows all the jokes."),
    (("Sing a song.", "Can you sing?"), "La la la! But Vera sings better."),
    (("Where are you?", "Where do you live?"), "I live in a small world of words."),
    (("Tell me a story.", "Tell me something."), "The fox walked over the hill and met Anna."),
)
UNKNOWN_NOUNS = """
zebra tiger rocket computer piano volcano dragon unicorn robot laptop phone guitar giraffe shark
octopus kangaroo panda helicopter submarine television camera internet atom galaxy planet dinosaur
koala hamster eagle falcon leopard cheetah rhino hippo crocodile snake lizard ferret moose bison
salmon tuna lobster squid jellyfish wasp beaver raccoon skunk panther llama ostrich peacock
lawyer plumber engineer soldier astronaut wizard pirate thief waiter actor chemist banker
telephone printer keyboard wallet passport fridge oven-glove toaster vacuum tractor truck
motorbike tram balloonist trumpet flute-player sofa-bed carpet curtain shampoo toothbrush
Robert Julia Kevin Laura Steven Mark Susan Linda George Martin Philip Sarah Andrew Karen Brian
Paris London Berlin Tokyo Africa America China Brazil Mars Jupiter Russia Spain Egypt India
""".split()
UNKNOWN_QUESTIONS = """
Who is the president of France?|What is the capital of Germany?|Who wrote Hamlet?
What is the meaning of life?|How do I install Python?|What year is it?|What time is it?
How far is the moon?|Who won the world cup?|What is a black hole?|How do I cook lasagne?
What is the price of gold?|Can you write code?|Who invented the radio?|What is electricity?
How tall is the highest mountain?|What is the speed of light?|Who was Napoleon?
What happened in 1945?|What is quantum physics?|Translate this into French.|What is a neural network?
How do I fix my car?|What is the stock market?|Who is the prime minister?|How old is the earth?
What is the square root of nine hundred?|Which film should I watch?|What is democracy?
Where can I buy a ticket?|What is your phone number?|How many people live in Asia?
What is DNA?|Who painted the Mona Lisa?|Why is the sky blue?|What is the population of Canada?
""".strip().replace("\n", "|").split("|")
UNKNOWN_PATTERNS = (
    "Where is the {}?", "What colour is the {}?", "What does the {} eat?", "Who is {}?",
    "Tell me about the {}.", "Where does the {} live?", "What is the {} for?",
    "What does {} do?", "Where does {} live?", "Who is the {}?", "What does the {} do?",
    "What do you know about {}?", "Who has a {}?", "What is a {}?", "Tell me about {}.",
    "What is the {} made of?", "How does the {} taste?", "What do you see in the {}?",
)
OLD_FASHIONED = (
    "Hark! {} Thus it is written.", "Behold, good people: {}", "Verily I tell thee: {}",
    "Hear ye, hear ye! {}", "Alas and alack! {}", "Pray listen, my lord: {}",
    "Ahoy there, matey! {}", "Arr! said the captain. {}", "In days of old they said: {}",
    "Aye, my lord. {}", "Arr, matey. {}", "What say ye, matey? {}",
)
EXCLAIMED = ("Wow! {}", "Oh my! {}", "Hurrah! {}", "Look! {}", "Goodness me! {}", "Great news: {}")
COURTEOUS = (
    "Dear friend, {} With kind regards.", "If you please: {} Thank you so much.",
    "It is a pleasure to say this. {}", "Certainly, madam. {}", "Of course, sir. {}",
    "May I tell you something, my friend? {}", "Certainly: {} Is that not so, my friend?",
    "Once upon a time an old man said: {}", "Once upon a time, long ago. {}",
)
STORY_OPENINGS = (
    "One day {a} walked {place}.", "One morning {a} woke up {place}.",
    "Long ago {a} was playing {place}.", "On a {weather} day {a} went for a walk {place}.",
)
STORY_MIDDLES = (
    "There it met {name}, the {job}.", "It found {thing} and was very happy.",
    "{name} came by and gave it some {food}.", "Then it saw {other} and said hello.",
)
STORY_ENDINGS = (
    "They became good friends.", "In the evening it went home and slept well.",
    "After that they played until dark.", "What a fine day it was.",
)


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
        return self._maybe_system(turn(self._roughen(self.random.choice(fact.questions)), fact.answer))

    def conversation(self) -> list[Message]:
        """Ask for two to five unrelated things, one after another."""
        sorts = (Writer.question, Writer.question, Writer.follow_up, Writer.small_talk, Writer.claim)
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
            "Tell me a short story about {}.", "Tell me a story about {}.", "Write a story about {}.",
            "Please tell a short story about {}.", "I would like a story about {}.",
        )
        ask = self.random.choice(asks).format(world.article(animal))
        return turn(ask, self._tale(animal))

    def small_talk(self) -> list[Message]:
        """Greet, thank, ask who is speaking."""
        asks, answer = self.random.choice(CHAT)
        return turn(self._roughen(self.random.choice(asks)), answer)

    def unknown(self) -> list[Message]:
        """Ask for something outside the world."""
        if self.random.random() < 0.3:
            return turn(self._roughen(self.random.choice(UNKNOWN_QUESTIONS)), UNKNOWN)
        noun = self._invented() if self.random.random() < 0.4 else self.random.choice(UNKNOWN_NOUNS)
        return turn(self._roughen(self.random.choice(UNKNOWN_PATTERNS).format(noun)), UNKNOWN)

    def spelling(self) -> list[Message]:
        """Copy a sentence, in capital letters, in small letters or as it is."""
        ask, change = self.random.choice(COPYING)
        sentence = self._sentence()
        return turn(ask.format(sentence), change(sentence))

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
        pattern = self.random.choice((*OLD_FASHIONED, *EXCLAIMED, *COURTEOUS))
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
        """Write facts as JSON."""
        fact = self.random.choice(self.facts)
        if self.random.random() < 0.6:
            return json.dumps(fact.record, separators=(",", ":"))
        known = {item.kind.keys[1]: world.bare(item.value) for item in self.about[fact.subject][:4]}
        return json.dumps({"name": fact.subject, **known}, separators=(",", ":"))

    def listing(self) -> str:
        """Write a list of numbers or of things."""
        if self.random.random() < 0.5:
            start, step = self.random.randint(0, 20), self.random.randint(1, 3)
            return ", ".join(str(start + step * index) for index in range(self.random.randint(3, 9)))
        chosen = self.random.sample(world.ANIMAL_NAMES + world.NAMES, self.random.randint(3, 6))
        return ", ".join(chosen)

    def _sentence(self) -> str:
        return self.random.choice(self.facts).answer

    def _tale(self, animal: str) -> str:
        name, job, *_ = self.random.choice(PEOPLE_ROWS)
        other = self.random.choice([beast for beast in world.ANIMAL_NAMES if beast != animal])
        parts = [self.random.choice(STORY_OPENINGS), self.random.choice(STORY_MIDDLES)]
        if self.random.random() < 0.5:
            parts.append(self.random.choice([part for part in STORY_MIDDLES if part != parts[1]]))
        parts.append(self.random.choice(STORY_ENDINGS))
        return " ".join(parts).format(
            a=world.article(animal), name=name, job=job, other=world.article(other),
            place=self.random.choice(PLACE_NAMES), weather=self.random.choice(("sunny", "windy", "cold")),
            thing=world.article(self.random.choice(THING_NAMES)),
            food=self.random.choice(("bread", "honey", "soup", "cake", "milk")),
        )

    def _invented(self) -> str:
        syllables = self.random.choices("ba ko mi zu ret lan vor xi gru pel sna tok wi dra fen".split(), k=3)
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
        return [{"role": "system", "content": self.random.choice(SYSTEM_PROMPTS)}, *messages]


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
    "animal colour", "animal place", "animal food", "animal home", "person job", "person house",
    "person pet", "job work", "thing colour", "thing place", "thing stuff", "food taste",
)
CLAIMED = ("animal colour", "animal place", "thing colour", "thing place")
COPYING: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("Write this in capital letters: {}", str.upper),
    ("Say it loudly: {}", str.upper),
    ("Write this in small letters: {}", str.lower),
    ("Repeat after me: {}", str),
    ("Please say: {}", str),
)
SORTS = (
    Writer.question, Writer.conversation, Writer.follow_up, Writer.claim, Writer.description,
    Writer.story, Writer.small_talk, Writer.unknown, Writer.spelling, Writer.prose,
    Writer.capitals, Writer.manner, Writer.old_tale, Writer.record, Writer.listing,
)
WEIGHTS = (46, 5, 4, 5, 4, 4, 3, 5, 5, 5, 4, 3, 3, 4, 1)
