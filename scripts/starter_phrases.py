"""The set phrases of the training text: small talk, things outside the world, manners of speech.

Pure data; starter_text fills them in.
"""

from collections.abc import Callable

import starter_world as world

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
UNKNOWN_NOUNS = world.words("""
zebra tiger rocket computer piano volcano dragon unicorn robot laptop phone guitar giraffe shark
octopus kangaroo panda helicopter submarine television camera internet atom galaxy planet dinosaur
koala hamster eagle falcon leopard cheetah rhino hippo crocodile snake lizard ferret moose bison
salmon tuna lobster squid jellyfish wasp beaver raccoon skunk panther llama ostrich peacock
lawyer plumber engineer soldier astronaut wizard pirate thief waiter actor chemist banker
telephone printer keyboard wallet passport fridge oven-glove toaster vacuum tractor truck
motorbike tram balloonist trumpet flute-player sofa-bed carpet curtain shampoo toothbrush
Robert Julia Kevin Laura Steven Mark Susan Linda George Martin Philip Sarah Andrew Karen Brian
Paris London Berlin Tokyo Africa America China Brazil Mars Jupiter Russia Spain Egypt India
""")
UNKNOWN_QUESTIONS = (
    """
Who is the president of France?|What is the capital of Germany?|Who wrote Hamlet?
What is the meaning of life?|How do I install Python?|What year is it?|What time is it?
How far is the moon?|Who won the world cup?|What is a black hole?|How do I cook lasagne?
What is the price of gold?|Can you write code?|Who invented the radio?|What is electricity?
How tall is the highest mountain?|What is the speed of light?|Who was Napoleon?
What happened in 1945?|What is quantum physics?|Translate this into French.
What is a neural network?|How do I fix my car?|What is the stock market?
Who is the prime minister?|How old is the earth?
What is the square root of nine hundred?|Which film should I watch?|What is democracy?
Where can I buy a ticket?|What is your phone number?|How many people live in Asia?
What is DNA?|Who painted the Mona Lisa?|Why is the sky blue?|What is the population of Canada?
""".strip()
    .replace("\n", "|")
    .split("|")
)
UNKNOWN_PATTERNS = (
    "Where is the {}?",
    "What colour is the {}?",
    "What does the {} eat?",
    "Who is {}?",
    "Tell me about the {}.",
    "Where does the {} live?",
    "What is the {} for?",
    "What does {} do?",
    "Where does {} live?",
    "Who is the {}?",
    "What does the {} do?",
    "What do you know about {}?",
    "Who has a {}?",
    "What is a {}?",
    "Tell me about {}.",
    "What is the {} made of?",
    "How does the {} taste?",
    "What do you see in the {}?",
)
OLD_FASHIONED = (
    "Hark! {} Thus it is written.",
    "Behold, good people: {}",
    "Verily I tell thee: {}",
    "Hear ye, hear ye! {}",
    "Alas and alack! {}",
    "Pray listen, my lord: {}",
    "Ahoy there, matey! {}",
    "Arr! said the captain. {}",
    "In days of old they said: {}",
    "Aye, my lord. {}",
    "Arr, matey. {}",
    "What say ye, matey? {}",
)
EXCLAIMED = ("Wow! {}", "Oh my! {}", "Hurrah! {}", "Look! {}", "Goodness me! {}", "Great news: {}")
COURTEOUS = (
    "Dear friend, {} With kind regards.",
    "If you please: {} Thank you so much.",
    "It is a pleasure to say this. {}",
    "Certainly, madam. {}",
    "Of course, sir. {}",
    "May I tell you something, my friend? {}",
    "Certainly: {} Is that not so, my friend?",
    "Once upon a time an old man said: {}",
    "Once upon a time, long ago. {}",
)
STORY_OPENINGS = (
    "One day {a} walked {place}.",
    "One morning {a} woke up {place}.",
    "Long ago {a} was playing {place}.",
    "On a {weather} day {a} went for a walk {place}.",
)
STORY_MIDDLES = (
    "There it met {name}, the {job}.",
    "It found {thing} and was very happy.",
    "{name} came by and gave it some {food}.",
    "Then it saw {other} and said hello.",
)
STORY_ENDINGS = (
    "They became good friends.",
    "In the evening it went home and slept well.",
    "After that they played until dark.",
    "What a fine day it was.",
)
COPYING: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("Write this in capital letters: {}", str.upper),
    ("Say it loudly: {}", str.upper),
    ("Write this in small letters: {}", str.lower),
    ("Repeat after me: {}", str),
    ("Please say: {}", str),
)
SYLLABLES = world.words("ba ko mi zu ret lan vor xi gru pel sna tok wi dra fen")
