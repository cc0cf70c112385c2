"""The invented world of the starter kit as tables: who and what there is, one row each.

Pure data and the functions that read it. Knows nothing about questions, models or tokenizers.
"""


def words(text: str) -> tuple[str, ...]:
    """Split a text at its spaces."""
    return tuple(text.split())


# name; colour; where it is; eats; says; lives; likes; legs
ANIMALS = """
cat;grey;on the mat;fish;meow;in the cottage;sleeping;four
dog;brown;under the table;bones;woof;in the kennel;running;four
fox;red;behind the hill;berries;yip;in the forest;digging;four
bear;brown;by the river;honey;grr;in the cave;fishing;four
wolf;grey;on the rock;meat;howl;in the mountains;singing;four
hen;white;in the yard;corn;cluck;in the barn;scratching;two
cow;black;in the meadow;grass;moo;in the shed;resting;four
horse;brown;by the fence;oats;neigh;in the stable;racing;four
pig;pink;in the mud;apples;oink;in the sty;rolling;four
sheep;white;on the hill;clover;baa;in the fold;walking;four
goat;white;on the roof;leaves;meh;in the valley;climbing;four
duck;green;on the pond;bread;quack;by the lake;swimming;two
goose;white;by the gate;weeds;honk;on the farm;marching;two
frog;green;on the stone;flies;croak;in the pond;jumping;four
owl;brown;in the oak;mice;hoot;in the tower;watching;two
crow;black;on the wall;seeds;caw;in the elm;flying;two
mouse;grey;behind the door;cheese;squeak;in the hole;hiding;four
rabbit;white;in the garden;carrots;nothing;in the burrow;hopping;four
deer;brown;under the tree;bark;nothing;in the woods;dancing;four
bee;yellow;on the flower;pollen;buzz;in the hive;working;six
whale;blue;near the ship;plankton;nothing;in the sea;splashing;no
swan;white;on the lake;weeds;hiss;on the island;gliding;two
robin;red;on the twig;worms;tweet;in the hedge;singing;two
donkey;grey;at the mill;hay;hee-haw;in the village;standing;four
otter;brown;in the stream;fish;nothing;by the river;playing;four
squirrel;red;in the pine;nuts;nothing;in the park;climbing;four
spider;black;on the ceiling;flies;nothing;in the cellar;spinning;eight
bat;black;in the attic;moths;nothing;in the cave;flying;two
parrot;green;in the cage;seeds;hello;in the shop;talking;two
tortoise;green;by the well;lettuce;nothing;in the garden;resting;four
lamb;white;in the field;milk;baa;on the farm;jumping;four
pigeon;grey;on the bridge;crumbs;coo;in the tower;flying;two
lion;yellow;in the grass;meat;roar;in the desert;sleeping;four
elephant;grey;by the water;leaves;toot;in the jungle;bathing;four
monkey;brown;in the tree;bananas;chatter;in the jungle;swinging;four
penguin;black;on the snow;fish;squawk;on the ice;sliding;two
""".strip()

# name; job; house; favourite food; pet; friend; hobby; colour of the coat; carries
PEOPLE = """
Anna;baker;red;soup;cat;Ben;singing;blue;basket
Ben;farmer;blue;pie;dog;Clara;fishing;brown;bucket
Clara;teacher;green;cake;parrot;Daniel;reading;green;book
Daniel;doctor;white;rice;horse;Emma;chess;white;bag
Emma;painter;yellow;salad;rabbit;Felix;dancing;yellow;brush
Felix;sailor;black;stew;frog;Grace;swimming;black;rope
Grace;tailor;pink;jam;swan;Henry;sewing;pink;ribbon
Henry;smith;brown;bacon;donkey;Ida;boxing;grey;hammer
Ida;gardener;orange;beans;tortoise;Jack;hiking;orange;spade
Jack;miller;purple;porridge;pigeon;Kate;whistling;white;sack
Kate;nurse;grey;toast;hen;Leo;running;red;lamp
Leo;cook;old;noodles;goose;Mary;tasting;purple;spoon
Mary;weaver;new;pancakes;sheep;Nora;knitting;green;blanket
Nora;judge;tall;fish;owl;Oscar;thinking;black;letter
Oscar;carpenter;wooden;sausages;squirrel;Paul;carving;brown;saw
Paul;hunter;stone;meat;wolf;Rosa;walking;green;horn
Rosa;florist;small;honey;bee;Sam;dreaming;red;rose
Sam;driver;round;eggs;goat;Tom;racing;blue;map
Tom;fisherman;narrow;potatoes;otter;Uma;sleeping;yellow;net
Uma;writer;quiet;tea;crow;Vera;writing;purple;pen
Vera;singer;bright;ice cream;robin;Will;music;orange;flute
Will;builder;big;cheese;mouse;Zoe;digging;grey;brick
Zoe;pilot;high;pizza;bat;Alice;flying;black;compass
Alice;shepherd;far;bread;lamb;Anna;counting;brown;stick
""".strip()

# job; makes or does; place of work; tool; wears
JOBS = """
baker;makes bread;bakery;oven;apron
farmer;grows corn;field;plough;boots
teacher;teaches children;school;chalk;glasses
doctor;helps sick people;hospital;needle;coat
painter;paints pictures;studio;brush;smock
sailor;sails ships;harbour;rope;cap
tailor;makes clothes;workshop;scissors;vest
smith;makes swords;forge;hammer;gloves
gardener;plants flowers;garden;spade;hat
miller;grinds wheat;mill;millstone;shirt
nurse;cares for children;clinic;bandage;dress
cook;makes soup;kitchen;spoon;apron
weaver;makes blankets;hall;loom;shawl
judge;settles quarrels;court;gavel;robe
carpenter;makes chairs;yard;saw;belt
hunter;catches deer;forest;bow;cloak
florist;sells roses;flower shop;shears;scarf
driver;drives carts;road;whip;jacket
fisherman;catches fish;lake;net;boots
writer;writes stories;library;pen;slippers
singer;sings songs;theatre;voice;gown
builder;builds houses;street;ladder;helmet
pilot;flies planes;airport;compass;goggles
shepherd;minds sheep;hill;stick;cloak
""".strip()

# name; colour; where it is; made of; is for; size
OBJECTS = """
boat;blue;on the river;wood;sailing;long
ball;red;in the garden;rubber;playing;round
cup;white;on the table;clay;drinking;small
book;green;on the shelf;paper;reading;thick
lamp;yellow;by the bed;brass;lighting;bright
chair;brown;in the kitchen;oak;sitting;low
table;brown;in the hall;pine;eating;wide
bed;white;in the bedroom;wood;sleeping;soft
door;green;at the front;oak;closing;heavy
key;golden;in the drawer;iron;opening;tiny
hat;black;on the hook;felt;wearing;tall
coat;grey;in the wardrobe;wool;keeping warm;long
clock;silver;on the wall;brass;telling time;loud
bell;golden;in the tower;bronze;ringing;loud
kite;orange;in the sky;silk;flying;light
drum;red;on the stage;leather;beating;loud
spoon;silver;in the bowl;silver;stirring;small
knife;grey;on the board;steel;cutting;sharp
pot;black;on the stove;iron;cooking;deep
bucket;grey;by the well;tin;carrying;deep
rope;brown;on the deck;hemp;pulling;strong
wagon;red;on the road;wood;travelling;big
bicycle;purple;at the station;steel;cycling;fast
train;black;at the station;iron;travelling;fast
ship;white;in the harbour;steel;sailing;huge
mirror;silver;in the bathroom;glass;looking;clear
candle;white;in the church;wax;lighting;thin
basket;yellow;under the tree;straw;shopping;light
blanket;green;on the sofa;wool;keeping warm;soft
letter;white;under the door;paper;writing;secret
map;brown;in the bag;paper;finding ways;old
ring;golden;on the finger;gold;marrying;tiny
crown;golden;in the palace;gold;ruling;heavy
flag;red;on the castle;cotton;waving;big
umbrella;black;by the door;cloth;rainy days;wet
hammer;grey;on the bench;steel;hitting nails;heavy
""".strip()

# place with its preposition; two things one sees there; smells of; weather there
PLACES = """
in the garden;a pond and a tree;roses;sunny
in the forest;a fox and a path;pine;foggy
in the kitchen;a stove and a pot;bread;warm
in the village;a mill and a church;smoke;mild
at the market;apples and fish;cheese;cloudy
in the harbour;ships and gulls;salt;windy
on the beach;shells and sand;the sea;hot
on the farm;a barn and a cow;hay;rainy
in the castle;a crown and a flag;dust;cold
in the library;books and lamps;paper;dry
in the school;children and desks;chalk;mild
on the hill;a tower and a sheep;clover;windy
in the park;a bench and a lake;grass;sunny
at the station;a train and a clock;oil;cloudy
in the mountains;snow and rocks;snow;icy
in the sea;a whale and a ship;salt;stormy
in the cellar;bottles and a spider;wine;cool
on the island;a palm and a swan;coconuts;hot
""".strip()

# food; taste; colour; comes from; eaten for
FOODS = """
apple;sweet;red;the orchard;breakfast
lemon;sour;yellow;the lemon tree;tea
honey;sweet;golden;the hive;breakfast
bread;plain;brown;the bakery;breakfast
cheese;salty;yellow;the dairy;supper
milk;mild;white;the cow;breakfast
fish;salty;silver;the lake;dinner
carrot;crisp;orange;the garden;lunch
plum;juicy;purple;the orchard;dessert
cake;sweet;pink;the bakery;dessert
soup;hot;green;the kitchen;supper
egg;soft;white;the hen;breakfast
corn;mild;yellow;the field;lunch
cherry;sweet;red;the orchard;dessert
potato;plain;brown;the field;dinner
tea;bitter;brown;the hills;tea time
""".strip()

OPPOSITES = """
hot cold;big small;old new;tall short;fast slow;happy sad;light dark;loud quiet;wet dry
hard soft;full empty;open closed;early late;near far;high low;rich poor;strong weak
clean dirty;day night;up down;in out;left right;yes no;black white;good bad
sweet bitter;first last;push pull;buy sell
laugh cry;win lose;find hide;friend enemy;morning evening;summer winter
north south;east west;smooth rough;deep shallow;wide narrow
inside outside
over under;before after;ask answer;war peace
"""

# weather; what one needs; what one does
WEATHER = """
it rains;an umbrella;stay inside
it snows;a warm coat;build a snowman
the sun shines;a hat;walk in the park
the wind blows;a scarf;fly a kite
it is cold;gloves;sit by the fire
it is hot;cold water;swim in the lake
it is dark;a lamp;light a candle
there is fog;a bell;walk slowly
there is a storm;strong walls;close the windows
there is ice;good boots;slide on the pond
the night is clear;a telescope;count the stars
the river is high;a boat;move the sheep
""".strip()

YOUNG = """
cat kitten;dog puppy;cow calf;sheep lamb;horse foal;pig piglet;hen chick;duck duckling
goose gosling;bear cub;deer fawn;goat kid;frog tadpole;swan cygnet;owl owlet;lion lion cub
"""

NUMBERS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words(
    "January February March April May June July August September October November December"
)
SEASONS = {"winter": (11, 0, 1), "spring": (2, 3, 4), "summer": (5, 6, 7), "autumn": (8, 9, 10)}


def article(noun: str) -> str:
    """Return the noun with 'a' or 'an' before it."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def rows(table: str) -> list[list[str]]:
    """Split a table into its rows and cells."""
    return [line.split(";") for line in table.splitlines() if line]


def pairs(table: str) -> list[tuple[str, str]]:
    """Split 'hot cold;big small' into word pairs."""
    cells = [cell for row in rows(table.strip()) for cell in row]
    return [(first, second) for first, _, second in (cell.partition(" ") for cell in cells)]


NAMES = tuple(row[0] for row in rows(PEOPLE))
ANIMAL_NAMES = tuple(row[0] for row in rows(ANIMALS))
