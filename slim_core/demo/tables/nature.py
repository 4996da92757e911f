# SPDX-License-Identifier: Apache-2.0
"""Animals, food, colors, and the traits that tell their kinds apart."""

from ..relations import Relation, table


_SPECIES = {
    "mammal": (
        "dog cat horse cow pig sheep goat lion tiger bear wolf fox rabbit mouse rat elephant whale dolphin monkey "
        "kangaroo deer bat giraffe zebra camel squirrel hedgehog otter seal beaver mole donkey buffalo moose panda "
        "koala sloth leopard cheetah gorilla walrus hippo badger"
    ),
    "bird": (
        "eagle hen duck goose owl swan pigeon crow penguin ostrich parrot robin sparrow turkey hawk falcon stork "
        "flamingo peacock hummingbird pelican seagull woodpecker swallow raven rooster"
    ),
    "fish": (
        "salmon trout tuna cod shark herring carp goldfish sardine pike eel swordfish catfish piranha haddock "
        "mackerel perch seahorse"
    ),
    "insect": (
        "ant bee fly mosquito butterfly beetle grasshopper wasp moth ladybug cricket dragonfly cockroach termite flea "
        "hornet locust"
    ),
    "reptile": (
        "snake lizard turtle tortoise crocodile alligator gecko iguana chameleon cobra python viper rattlesnake skink"
    ),
    "amphibian": "frog toad salamander newt",
}
ANIMALS = table(
    "animal kind", ";".join(f"{name} | {kind}" for kind, names in _SPECIES.items() for name in names.split())
)

ANIMAL_TRAITS = table(
    "trait kind",
    """
    feeds its young with milk | mammal; drinks milk from its mother when it is young | mammal
    has feathers | bird; has a beak, wings and feathers | bird
    breathes with gills all its life | fish; has fins and gills | fish
    has six legs | insect; has six legs and three body parts | insect
    has dry skin with scales | reptile; breathes with lungs and is covered with dry scales | reptile
    has wet skin and lays soft eggs in water | amphibian; lives in water first and later on land | amphibian
    """,
)

# Kinds that a trait could be said of as well.
SIMILAR_ANIMALS = (frozenset({"amphibian", "fish"}), frozenset({"amphibian", "insect"}))

YOUNG = table(
    "animal young",
    """
    dog | puppy; cat | kitten; horse | foal; cow | calf; pig | piglet; sheep | lamb; goat | kid; lion | cub; bear | cub
    tiger | cub; elephant | calf; whale | calf; dolphin | calf; kangaroo | joey; koala | joey; deer | fawn; hen | chick
    duck | duckling; goose | gosling; eagle | eaglet; owl | owlet; swan | cygnet; frog | tadpole; zebra | foal
    giraffe | calf; leopard | cub; cheetah | cub; butterfly | caterpillar; donkey | foal; penguin | chick
    """,
)

SOUNDS = table(
    "animal sound",
    """
    dog | bark; cat | meow; horse | neigh; cow | moo; pig | oink; sheep | bleat; lion | roar; wolf | howl
    mouse | squeak; elephant | trumpet; donkey | bray; hen | cluck; duck | quack; goose | honk; owl | hoot
    pigeon | coo; crow | caw; sparrow | chirp; turkey | gobble; bee | buzz; snake | hiss; frog | croak
    """,
)

HOMES = table(
    "animal home",
    """
    bee | hive; spider | web; dog | kennel; horse | stable; pig | sty; rabbit | burrow; ant | anthill; bird | nest
    lion | den; hen | coop; beaver | lodge; badger | sett; cow | barn; snail | shell; sheep | fold; eagle | eyrie
    """,
)

GROUPS = table(
    "animals group",
    """
    lions | pride; wolves | pack; fish | school; bees | swarm; sheep | flock; cows | herd; ants | colony; whales | pod
    """,
)

FOODS = table(
    "food kind",
    """
    an apple | fruit; a banana | fruit; an orange | fruit; a pear | fruit; a grape | fruit; a cherry | fruit
    a peach | fruit; a plum | fruit; a lemon | fruit; a mango | fruit; a pineapple | fruit; a strawberry | fruit
    a kiwi | fruit; a melon | fruit; an apricot | fruit; a papaya | fruit; a raspberry | fruit; a blueberry | fruit
    a lime | fruit; a fig | fruit
    a carrot | vegetable; a potato | vegetable; an onion | vegetable; a cabbage | vegetable; spinach | vegetable
    broccoli | vegetable; a cauliflower | vegetable; lettuce | vegetable; celery | vegetable; a turnip | vegetable
    a radish | vegetable; a leek | vegetable; asparagus | vegetable; kale | vegetable; a parsnip | vegetable
    water | drink; juice | drink; tea | drink; coffee | drink; lemonade | drink; soda | drink; wine | drink
    beer | drink; cider | drink; cocoa | drink
    beef | meat; pork | meat; ham | meat; bacon | meat; veal | meat; mutton | meat; a sausage | meat; a steak | meat
    salami | meat; venison | meat
    wheat | grain; rice | grain; barley | grain; rye | grain; millet | grain; sorghum | grain; spelt | grain
    an almond | nut; a walnut | nut; a hazelnut | nut; a pecan | nut; a cashew | nut; a pistachio | nut
    a chestnut | nut
    cinnamon | spice; saffron | spice; nutmeg | spice; vanilla | spice; turmeric | spice; paprika | spice
    cumin | spice; ginger | spice
    cheese | dairy; butter | dairy; yogurt | dairy; cream | dairy; buttermilk | dairy
    """,
)

# What vegetables have in common is hard to say in a few words, so they have no trait.
FOOD_TRAITS = table(
    "trait kind",
    """
    is sweet and grows from a flower | fruit; helps when you are thirsty | drink; is made from milk | dairy
    comes from the body of an animal | meat; is the seed of a grass and is ground to flour | grain
    has a hard shell and a seed you can eat | nut; gives a meal more taste in tiny amounts | spice
    """,
)

SIMILAR_FOODS = tuple(
    frozenset(names.split(", "))
    for names in (
        "drink, fruit",
        "fruit, nut, vegetable",
        "vegetable, spice",
        "meat, dairy",
        "grain, drink",
        "drink, dairy",
    )
)

PRODUCTS = table(
    "product source",
    """
    cheese | milk; butter | milk; yogurt | milk; wine | grapes; raisins | grapes; cider | apples; flour | grain
    bread | flour; chocolate | cocoa beans; paper | wood; glass | sand; tofu | soybeans; ketchup | tomatoes
    popcorn | corn; pickles | cucumbers; steel | iron; bricks | clay; jam | fruit; an omelet | eggs
    leather | animal skin; charcoal | wood; chips | potatoes; a honeycomb | wax
    """,
)

COLORS = table(
    "item color",
    """
    a banana | yellow; a lemon | yellow; mustard | yellow; a canary | yellow; grass | green; broccoli | green
    a lime | green; an emerald | green; lettuce | green; spinach | green; a cucumber | green; snow | white
    milk | white; salt | white; sugar | white; flour | white; a polar bear | white; chalk | white; coal | black
    a raven | black; charcoal | black; tar | black; a panther | black; blood | red; a tomato | red
    a strawberry | red; a ruby | red; ketchup | red; a fire truck | red; a raspberry | red; the clear sky | blue
    a sapphire | blue; a blueberry | blue; a carrot | orange; a pumpkin | orange; a tangerine | orange
    chocolate | brown; coffee | brown; soil | brown; a chestnut | brown; a flamingo | pink; a pig | pink
    an eggplant | purple; lavender | purple; an amethyst | purple; an elephant | gray; ash | gray; a dolphin | gray
    """,
)

RELATIONS = (
    Relation(
        name="animal kind",
        rows=ANIMALS,
        answer="kind",
        questions=(
            "What kind of animal is {animal:a}?",
            "Which class of animals does {animal:a} belong to?",
            "What type of animal is {animal:a}?",
            "{animal:ac} is what kind of animal?",
            "Name the class of animals of {animal:a}.",
            "Among animals, what is {animal:a}?",
        ),
        statement="{animal:ac} is a kind of {kind}.",
        which=(
            "Which of these is {kind:a}?",
            "Which animal is {kind:a}?",
            "Find the {kind}.",
            "Which one belongs to the class {kind}?",
        ),
        entry="animal",
    ),
    Relation(
        name="animal trait",
        rows=ANIMAL_TRAITS,
        answer="kind",
        questions=(
            "What kind of animal {trait}?",
            "Which class of animals {trait}?",
            "Name a kind of animal that {trait}.",
            "Which type of animal {trait}?",
        ),
        statement="{kind:ac} {trait}.",
        clash=SIMILAR_ANIMALS,
    ),
    Relation(
        name="young",
        rows=YOUNG,
        answer="young",
        questions=(
            "What is a young {animal} called?",
            "What do we call a baby {animal}?",
            "What is the name for a young {animal}?",
            "A baby {animal} is called what?",
            "Name the young of {animal:a}.",
        ),
        statement="The young of {animal:a} is called {young:a}.",
        checks=("Is a baby {animal} called {young:a}?",),
        clash=tuple(frozenset({"chick", young}) for young in ("duckling", "gosling", "eaglet", "owlet", "cygnet")),
    ),
    Relation(
        name="sound",
        rows=SOUNDS,
        answer="sound",
        questions=(
            "What sound does {animal:a} make?",
            "Which sound do we hear from {animal:a}?",
            "Name the sound of {animal:a}.",
            "What is the sound of {animal:a} called?",
            "{animal:ac} makes which sound?",
        ),
        statement="The sound of {animal:a} is called {sound}.",
        checks=("Is the sound of {animal:a} called {sound}?",),
        clash=(frozenset({"oink", "squeak"}), frozenset({"quack", "honk"}), frozenset({"chirp", "coo", "caw"})),
    ),
    Relation(
        name="sound of",
        rows=SOUNDS,
        answer="animal",
        questions=(
            "Which animal makes the sound {sound}?",
            "What animal do we hear when we hear {sound:a}?",
            "Name the animal with the sound {sound}.",
            "Of which animal is {sound} the sound?",
        ),
        clash=(frozenset({"pig", "mouse"}), frozenset({"duck", "goose"}), frozenset({"sparrow", "pigeon", "crow"})),
    ),
    Relation(
        name="home",
        rows=HOMES,
        answer="home",
        questions=(
            "What is the home of {animal:a} called?",
            "Where does {animal:a} live?",
            "What do we call the home of {animal:a}?",
            "Name the home of {animal:a}.",
            "In what does {animal:a} sleep?",
        ),
        statement="The home of {animal:a} is called {home:a}.",
        clash=(
            frozenset({"barn", "stable", "sty", "coop", "fold"}),
            frozenset({"nest", "eyrie"}),
            frozenset({"den", "sett", "burrow"}),
            frozenset({"hive", "nest", "anthill"}),
        ),
    ),
    Relation(
        name="group",
        rows=GROUPS,
        answer="group",
        questions=(
            "What is a group of {animals} called?",
            "What do we call many {animals} together?",
            "Name the word for a group of {animals}.",
            "Which word means a group of {animals}?",
        ),
        clash=(frozenset({"flock", "herd", "pack"}), frozenset({"swarm", "colony"}), frozenset({"school", "pod"})),
    ),
    Relation(
        name="food kind",
        rows=FOODS,
        answer="kind",
        questions=(
            "What kind of food is {food}?",
            "Which food group does {food} belong to?",
            "What type of food is {food}?",
            "We call {food} what kind of food?",
            "Name the food group of {food}.",
            "Among foods, what is {food}?",
        ),
        statement="As a food, {food} is a kind of {kind}.",
        which=(
            "Which of these is a kind of {kind}?",
            "Which food is a kind of {kind}?",
            "Which one belongs to the food group {kind}?",
            "Which of these foods would you call {kind}?",
        ),
        entry="food",
    ),
    Relation(
        name="food trait",
        rows=FOOD_TRAITS,
        answer="kind",
        questions=(
            "What kind of food {trait}?",
            "Which food group {trait}?",
            "Name a kind of food that {trait}.",
            "Which type of food {trait}?",
        ),
        statement="The kind of food that {trait} is called {kind}.",
        clash=SIMILAR_FOODS,
    ),
    Relation(
        name="source",
        rows=PRODUCTS,
        answer="source",
        questions=(
            "From what do people make {product}?",
            "What do people use to make {product}?",
            "What is needed to make {product}?",
            "To make {product}, what do you need?",
        ),
        statement="People make {product} from {source}.",
        checks=("Do people make {product} from {source}?",),
        clash=(
            frozenset({"grain", "flour", "corn"}),
            frozenset({"grapes", "apples", "fruit"}),
            frozenset({"eggs", "milk"}),
        ),
    ),
    Relation(
        name="color",
        rows=COLORS,
        answer="color",
        questions=(
            "What color is {item}?",
            "Which color does {item} have?",
            "What is the color of {item}?",
            "Name the color of {item}.",
            "We know that {item} has which color?",
        ),
        statement="The color of {item} is {color}.",
        checks=("Is the color of {item} {color}?", "Does {item} have the color {color}?"),
        clash=(frozenset({"gray", "white"}), frozenset({"pink", "red", "purple"}), frozenset({"blue", "purple"})),
    ),
)
