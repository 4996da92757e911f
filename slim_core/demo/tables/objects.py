# SPDX-License-Identifier: Apache-2.0
"""Tools and what they are for, things and what they are made of."""

from ..relations import Relation, table


TOOLS = table(
    "tool use",
    """
    a hammer | hit nails; a saw | cut wood; scissors | cut paper; a knife | slice bread; a needle | sew clothes
    a broom | sweep the floor; a shovel | dig holes; a rake | gather leaves; a ladder | reach high places
    a drill | make holes in walls; a screwdriver | turn screws; a wrench | turn bolts; a paintbrush | paint walls
    a ruler | measure length; a scale | measure weight; a clock | tell time; a thermometer | measure heat
    a compass | find north; a map | find the way; a telescope | look at stars; a microscope | look at tiny things
    a lamp | light a room; an umbrella | stay dry in the rain; a towel | dry the body; a comb | tidy hair
    a toothbrush | clean teeth; soap | wash hands; a pen | write letters; an eraser | remove pencil marks
    a fridge | keep food cold; an oven | bake bread; a kettle | boil water; a spoon | eat soup; a cup | drink tea
    a net | catch fish; a key | open locks; a rope | tie up a boat; a bucket | carry water; a vacuum | clean carpets
    a phone | call people; a camera | take photos; a calculator | add numbers; glue | stick paper together
    an axe | chop down trees; a plow | turn the soil; a tent | sleep outdoors; a pillow | rest the head
    a flashlight | see in the dark; a magnet | pick up iron; a sponge | soak up spills; a mirror | see a reflection
    a corkscrew | open wine bottles; a grater | grate cheese; a whisk | beat eggs; a hose | water the garden
    a helmet | protect the head; gloves | warm the hands; a lawnmower | cut grass; a stopwatch | time a race
    a calendar | check the date; a dictionary | look up words; a suitcase | pack clothes for a trip
    a bandage | cover a wound; a sled | slide over snow; a parachute | fall slowly from a plane
    """,
)
# Tools that could do each other's work.
SIMILAR_TOOLS = tuple(
    frozenset(names.split(", "))
    for names in (
        "scissors, a knife, a saw, an axe, a lawnmower, a grater",
        "a broom, a vacuum, a sponge, a towel, soap",
        "a shovel, a drill, a plow, a rake, a screwdriver",
        "a hammer, a wrench, a screwdriver, a drill",
        "a clock, a stopwatch, a calendar, a phone",
        "a lamp, a flashlight",
        "a compass, a map, a phone, a dictionary",
        "a bucket, a hose, a cup, a kettle, a spoon",
        "a cup, a spoon, a whisk, a knife",
        "a phone, a camera, a calculator, a flashlight",
        "a telescope, a microscope, a camera",
        "a kettle, an oven",
        "a paintbrush, a pen",
        "a ruler, a scale, a thermometer",
        "a helmet, a pillow, gloves, a tent",
        "a rope, a ladder, a net",
        "a corkscrew, a knife, a key",
        "a comb, a mirror",
        "a suitcase, a tent",
        "a bandage, glue, a towel",
        "a magnet, a compass",
    )
)

THINGS = table(
    "thing material",
    """
    a window | glass; an aquarium | glass; a lens | glass; a light bulb | glass; a jar | glass; a windshield | glass
    a tire | rubber; a balloon | rubber; a garden hose | rubber; a rubber band | rubber; an inner tube | rubber
    a book | paper; a newspaper | paper; an envelope | paper; a paper bag | paper; a notebook | paper
    a sweater | wool; a mitten | wool; a warm scarf | wool; a winter sock | wool
    a nail | iron; a horseshoe | iron; an anchor | iron; a chain | iron; a cannonball | iron
    a log | wood; a plank | wood; a matchstick | wood; a violin | wood; a canoe paddle | wood; a toothpick | wood
    a brick | clay; a flower pot | clay; a roof tile | clay
    a saddle | leather; a belt | leather; a wallet | leather; a boot | leather
    a shirt | cotton; a pillowcase | cotton; a bedsheet | cotton; a pair of jeans | cotton
    a candle | wax; a crayon | wax; a honeycomb | wax
    a castle | stone; a pyramid | stone; a gravestone | stone; a millstone | stone
    a toy brick | plastic; a credit card | plastic; a shampoo bottle | plastic; a shopping bag | plastic
    a snowman | snow; an igloo | snow; a snowball | snow
    """,
)

MATERIAL_TRAITS = table(
    "trait material",
    """
    lets light through | glass; breaks into sharp pieces | glass; stretches and bounces | rubber
    tears easily and is good to write on | paper; comes from sheep | wool; is pulled by a magnet | iron
    rusts in the rain | iron; is cut from trees with a saw | wood; is soft and then baked hard in an oven | clay
    comes from the skin of an animal | leather; grows as white fluff on a plant | cotton
    melts in the heat of a flame and runs down | wax; is cut from a mountain | stone; is made from oil | plastic
    falls from the sky in winter | snow
    """,
)
SIMILAR_MATERIALS = tuple(
    frozenset(names.split(", "))
    for names in (
        "wood, paper",
        "wax, snow, plastic",
        "stone, clay, glass",
        "glass, sand",
        "rubber, plastic",
        "wool, cotton, leather",
        "leather, animal skin",
        "stone, iron",
    )
)

BODY = table(
    "action organ",
    """
    see | eyes; hear | ears; smell | nose; taste | tongue; chew | teeth; breathe | lungs; pump blood | heart
    think | brain; clean the blood | kidneys; walk | legs; hold things | hands; feel touch | skin
    """,
)

RELATIONS = (
    Relation(
        name="tool for",
        rows=TOOLS,
        answer="tool",
        questions=(
            "What do you use to {use}?",
            "Which tool do people use to {use}?",
            "What do you need to {use}?",
            "With what do people {use}?",
            "Name a thing people use to {use}.",
        ),
        statement="People use {tool} to {use}.",
        clash=SIMILAR_TOOLS,
    ),
    Relation(
        name="use of",
        rows=TOOLS,
        answer="use",
        questions=(
            "What can you do with {tool}?",
            "What do people do with {tool}?",
            "For what do people need {tool}?",
            "What is the use of {tool}?",
        ),
        options=False,
    ),
    Relation(
        name="material",
        rows=THINGS,
        answer="material",
        questions=(
            "What is {thing} usually made of?",
            "Which material is {thing} made of?",
            "From which material is {thing} usually made?",
            "Of what material is {thing}?",
            "Name the material of {thing}.",
        ),
        statement="We know that {thing} is made of {material}.",
        which=(
            "Which of these is made of {material}?",
            "Which thing is usually made of {material}?",
            "Find the thing made of {material}.",
            "Which one is made of {material}?",
        ),
        entry="thing",
        clash=SIMILAR_MATERIALS,
    ),
    Relation(
        name="material trait",
        rows=MATERIAL_TRAITS,
        answer="material",
        questions=(
            "What material {trait}?",
            "Which material {trait}?",
            "Name a material that {trait}.",
            "What is the material that {trait}?",
        ),
        statement="The material {material} {trait}.",
        clash=SIMILAR_MATERIALS,
    ),
    Relation(
        name="organ",
        rows=BODY,
        answer="organ",
        questions=(
            "What do we use to {action}?",
            "Which part of the body do we use to {action}?",
            "With which part of the body do we {action}?",
            "Which organ do people need to {action}?",
        ),
        statement="We {action} with the {organ}.",
        checks=("Do we {action} with the {organ}?",),
        clash=(
            frozenset({"hands", "skin"}),
            frozenset({"legs", "feet"}),
            frozenset({"tongue", "teeth"}),
            frozenset({"heart", "kidneys", "lungs"}),
        ),
    ),
)
