"""The sorts of fact in the invented world: how each is told, recorded and asked for.

Standard library only. A block of TABLE is one kind: its name, the two keys of its record and its
answer, then one question a line. {s} is the subject, {a} the subject with 'a' or 'an', {v}
the value.
"""

from dataclasses import dataclass

TABLE = """
animal colour [who colour] the {s} is {v}.
  what colour is the {s}?
  which colour does the {s} have?
  tell me the colour of the {s}.
  what is the colour of the {s}?
  do you know the colour of the {s}?
animal place [who where] the {s} is {v}.
  where is the {s}?
  where can I find the {s}?
  do you know where the {s} is?
  tell me where the {s} is.
  where did the {s} go?
  I am looking for the {s}. Where is it?
animal food [who eats] the {s} eats {v}.
  what does the {s} eat?
  what food does the {s} like?
  tell me what the {s} eats.
  what do you feed the {s}?
  what does {a} eat?
  the {s} is hungry. What does it eat?
animal sound [who says] the {s} says {v}.
  what does the {s} say?
  what sound does the {s} make?
  tell me what the {s} says.
  what does {a} say?
  which noise does the {s} make?
animal home [who home] the {s} lives {v}.
  where does the {s} live?
  where is the home of the {s}?
  tell me where the {s} lives.
  do you know where the {s} lives?
  where does {a} live?
  in which place does the {s} live?
animal joy [who likes] the {s} likes {v}.
  what does the {s} like?
  what does the {s} like doing?
  what does the {s} do for fun?
  tell me what the {s} likes.
  what does {a} like?
  what makes the {s} happy?
animal legs [who legs] the {s} has {v} legs.
  how many legs does the {s} have?
  tell me how many legs the {s} has.
  count the legs of the {s}.
  how many legs does {a} have?
person job [who job] {s} is the {v}.
  what is the job of {s}?
  what does {s} do?
  what work does {s} do?
  tell me the job of {s}.
  who is {s}?
  do you know {s}?
person house [who house] {s} lives in the {v} house.
  where does {s} live?
  in which house does {s} live?
  tell me where {s} lives.
  which house is the home of {s}?
person dish [who loves] {s} loves {v}.
  what does {s} like to eat?
  what is the favourite food of {s}?
  which food does {s} love?
  tell me what {s} eats.
  what does {s} eat?
person pet [who pet] {s} has a {v}.
  which animal does {s} have?
  what pet does {s} have?
  what is the pet of {s}?
  tell me the pet of {s}.
person friend [who friend] the friend of {s} is {v}.
  who is the friend of {s}?
  who is the best friend of {s}?
  tell me the friend of {s}.
  which friend does {s} have?
person hobby [who hobby] {s} enjoys {v}.
  what does {s} enjoy?
  what is the hobby of {s}?
  what does {s} do for fun?
  tell me the hobby of {s}.
  what does {s} do on Sunday?
person coat [who coat] the coat of {s} is {v}.
  what colour is the coat of {s}?
  which coat does {s} wear?
  tell me the colour of the coat of {s}.
  what does {s} wear?
person load [who carries] {s} carries the {v}.
  what does {s} carry?
  what is in the hand of {s}?
  tell me what {s} carries.
  what does {s} hold?
job holder [job name] the {s} is {v}.
  who is the {s}?
  what is the name of the {s}?
  tell me the name of the {s}.
  do you know the {s}?
house owner [house name] in the {s} house lives {v}.
  who lives in the {s} house?
  whose home is the {s} house?
  tell me who lives in the {s} house.
  who is in the {s} house?
pet owner [pet name] the owner of the {s} is {v}.
  who has a {s}?
  whose pet is the {s}?
  tell me who has the {s}.
  who is the owner of the {s}?
job work [job does] the {s} {v}.
  what does the {s} do?
  what work does the {s} do?
  tell me what the {s} does.
  what is the work of the {s}?
  what does {a} do?
job place [job where] the {s} works in the {v}.
  where does the {s} work?
  where is the {s} at work?
  tell me where the {s} works.
  where does {a} work?
job tool [job tool] the {s} uses the {v}.
  what does the {s} use?
  which tool does the {s} use?
  what is the tool of the {s}?
  tell me the tool of the {s}.
job dress [job wears] the {s} wears the {v}.
  what does the {s} wear?
  how is the {s} dressed?
  tell me what the {s} wears.
  what does {a} wear?
job product [job makes] the {s} makes {v}.
  what does the {s} make?
  what does {a} make?
  tell me what the {s} makes.
  which thing does the {s} make?
thing colour [what colour] the {s} is {v}.
  what colour is the {s}?
  which colour does the {s} have?
  tell me the colour of the {s}.
  what is the colour of the {s}?
  do you know the colour of the {s}?
thing place [what where] the {s} is {v}.
  where is the {s}?
  where can I find the {s}?
  do you know where the {s} is?
  tell me where the {s} is.
  I am looking for the {s}. Where is it?
thing stuff [what material] the {s} is made of {v}.
  what is the {s} made of?
  of what is the {s} made?
  tell me what the {s} is made of.
  which material is the {s} made of?
thing use [what for] the {s} is for {v}.
  what is the {s} for?
  what do you use the {s} for?
  why do people need the {s}?
  what is {a} for?
  tell me what the {s} is for.
thing look [what how] the {s} is very {v}.
  what is the {s} like?
  what sort of {s} is it?
  describe the {s} in one word.
place sight [where see] {s} I see {v}.
  what do you see {s}?
  what can I see {s}?
  what is there {s}?
  tell me what you see {s}.
  what is {s}?
place smell [where smell] {s} it smells of {v}.
  what does it smell of {s}?
  what can you smell {s}?
  tell me the smell {s}.
  which smell is there {s}?
place weather [where weather] {s} it is {v}.
  how is the weather {s}?
  what is the weather like {s}?
  tell me the weather {s}.
  which weather is there {s}?
food taste [food taste] the {s} tastes {v}.
  how does the {s} taste?
  what is the taste of the {s}?
  what does the {s} taste like?
  tell me how the {s} tastes.
food colour [food colour] the {s} looks {v}.
  what colour has the {s}?
  what is the colour of the {s} on the plate?
  tell me which colour the {s} has.
food source [food from] the {s} comes from {v}.
  where does the {s} come from?
  from where do we get the {s}?
  tell me where the {s} comes from.
  where do people find the {s}?
food time [food meal] the {s} is for {v}.
  when do we eat the {s}?
  for which meal is the {s}?
  tell me when we eat the {s}.
  which meal is the {s} for?
sort [what sort] {a} is {v}.
  what is {a}?
  what sort of thing is {a}?
  what kind of thing is {a}?
  is {a} an animal or a thing?
opposite [word opposite] the opposite of {s} is {v}.
  what is the opposite of {s}?
  tell me the opposite of {s}.
  which word is the opposite of {s}?
  give me the opposite of {s}.
  opposite of {s}?
weather need [when need] when {s} you need {v}.
  what do I need when {s}?
  what is useful when {s}?
  tell me what I need when {s}.
  which thing do I need when {s}?
weather plan [when do] when {s} people {v}.
  what do people do when {s}?
  what should I do when {s}?
  tell me what people do when {s}.
  what is a good plan when {s}?
young [animal young] a young {s} is called {v}.
  what is a young {s} called?
  what is the name of a young {s}?
  what do you call a young {s}?
  tell me the name for a young {s}.
after [after comes] after {s} comes {v}.
  what comes after {s}?
  what follows {s}?
  tell me what comes after {s}.
  which one comes next after {s}?
before [before comes] before {s} comes {v}.
  what comes before {s}?
  tell me what comes before {s}.
  which one comes just before {s}?
season [month season] {s} is in the {v}.
  in which season is {s}?
  which season is {s} in?
  tell me the season of {s}.
  to which season does {s} belong?
sum [sum is] {s} is {v}.
  what is {s}?
  how much is {s}?
  tell me what {s} is.
  please count {s}.
  can you add {s}?
difference [sum is] {s} is {v}.
  what is {s}?
  how much is {s}?
  tell me what {s} is.
  please count {s}.
digits [sum is] {s} = {v}.
  what is {s}?
  how much is {s}?
  {s}?
  {s} =
""".strip()


@dataclass(frozen=True)
class Kind:
    """One sort of fact: how it is asked, how it is told, and its two keys as a record."""

    name: str
    questions: tuple[str, ...]
    answer: str
    keys: tuple[str, str]


def read_kinds(table: str) -> dict[str, Kind]:
    """Read the blocks of a table, by name."""
    blocks: list[list[str]] = []
    for line in table.splitlines():
        if line.startswith("  "):
            blocks[-1].append(line.strip())
        else:
            blocks.append([line])
    return {kind.name: kind for kind in map(read_kind, blocks)}


def read_kind(block: list[str]) -> Kind:
    """Read a heading such as 'animal colour [who colour] the {s} is {v}.' and its questions."""
    heading, *questions = block
    name, _, rest = heading.partition(" [")
    keys, _, answer = rest.partition("] ")
    subject_key, value_key = keys.split()
    return Kind(name, tuple(questions), answer, (subject_key, value_key))


KINDS = read_kinds(TABLE)
