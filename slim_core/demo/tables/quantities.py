# SPDX-License-Identifier: Apache-2.0
"""Chemical elements, units and counts, the calendar, and number words."""

from ..relations import Relation, table


ELEMENTS = table(
    "element symbol number state",
    """
    hydrogen | H | 1 | gas; helium | He | 2 | gas; lithium | Li | 3 | solid; carbon | C | 6 | solid
    nitrogen | N | 7 | gas; oxygen | O | 8 | gas; fluorine | F | 9 | gas; neon | Ne | 10 | gas
    sodium | Na | 11 | solid; magnesium | Mg | 12 | solid; aluminum | Al | 13 | solid; silicon | Si | 14 | solid
    phosphorus | P | 15 | solid; sulfur | S | 16 | solid; chlorine | Cl | 17 | gas; argon | Ar | 18 | gas
    potassium | K | 19 | solid; calcium | Ca | 20 | solid; titanium | Ti | 22 | solid; chromium | Cr | 24 | solid
    manganese | Mn | 25 | solid; iron | Fe | 26 | solid; cobalt | Co | 27 | solid; nickel | Ni | 28 | solid
    copper | Cu | 29 | solid; zinc | Zn | 30 | solid; arsenic | As | 33 | solid; bromine | Br | 35 | liquid
    krypton | Kr | 36 | gas; silver | Ag | 47 | solid; tin | Sn | 50 | solid; iodine | I | 53 | solid
    xenon | Xe | 54 | gas; tungsten | W | 74 | solid; platinum | Pt | 78 | solid; gold | Au | 79 | solid
    mercury | Hg | 80 | liquid; lead | Pb | 82 | solid; radon | Rn | 86 | gas; uranium | U | 92 | solid
    """,
)

PARTS = table(
    "part whole number",
    """
    seconds | a minute | 60; minutes | an hour | 60; hours | a day | 24; days | a week | 7; months | a year | 12
    days | a common year | 365; years | a decade | 10; years | a century | 100; years | a millennium | 1000
    millimeters | a centimeter | 10; centimeters | a meter | 100; meters | a kilometer | 1000
    milligrams | a gram | 1000; grams | a kilogram | 1000; milliliters | a liter | 1000
    inches | a foot | 12; feet | a yard | 3; ounces | a pound | 16; pints | a quart | 2; quarts | a gallon | 4
    cents | a dollar | 100; quarters | a dollar | 4; things | a dozen | 12; letters | the English alphabet | 26
    planets | the solar system | 8; cards | a full deck | 52; players | a basketball team | 5; zeros | a million | 6
    bones | an adult human body | 206; chambers | the human heart | 4; squares | a chess board | 64
    degrees | a right angle | 90; degrees | a full circle | 360; people | a pair of twins | 2
    singers | a duet | 2; players | a quartet | 4; weeks | a common year | 52; years | half a century | 50
    days | January | 31; days | March | 31; days | April | 30; days | May | 31; days | June | 30; days | July | 31
    days | August | 31; days | September | 30; days | October | 31; days | November | 30; days | December | 31
    """,
)

COUNTS = table(
    "thing part number",
    """
    triangle | sides | 3; square | sides | 4; rectangle | sides | 4; pentagon | sides | 5; hexagon | sides | 6
    octagon | sides | 8; cube | faces | 6; bicycle | wheels | 2; tricycle | wheels | 3; car | wheels | 4
    unicycle | wheels | 1; violin | strings | 4; cello | strings | 4; piano | keys | 88; rainbow | colors | 7
    spider | legs | 8; ant | legs | 6; bee | legs | 6; dog | legs | 4; horse | legs | 4; hen | legs | 2
    octopus | arms | 8; hand | fingers | 5; starfish | arms | 5; crab | legs | 10; human | eyes | 2
    """,
)

DAYS = table(
    "day next",
    """
    Monday | Tuesday; Tuesday | Wednesday; Wednesday | Thursday; Thursday | Friday; Friday | Saturday
    Saturday | Sunday; Sunday | Monday
    """,
)

MONTHS = table(
    "month next",
    """
    January | February; February | March; March | April; April | May; May | June; June | July; July | August
    August | September; September | October; October | November; November | December; December | January
    """,
)

NUMBER_WORDS = table(
    "word digits",
    """
    zero | 0; one | 1; two | 2; three | 3; four | 4; five | 5; six | 6; seven | 7; eight | 8; nine | 9; ten | 10
    eleven | 11; twelve | 12; thirteen | 13; fourteen | 14; fifteen | 15; sixteen | 16; seventeen | 17
    eighteen | 18; nineteen | 19; twenty | 20; thirty | 30; forty | 40; fifty | 50; sixty | 60; seventy | 70
    eighty | 80; ninety | 90
    """,
)


def _order(kind: str, rows: tuple) -> tuple[Relation, Relation]:
    """What comes after and before a day or a month."""
    after = Relation(
        name=f"{kind} after",
        rows=rows,
        answer="next",
        questions=(
            f"What {kind} comes after {{{kind}}}?",
            f"Which {kind} follows {{{kind}}}?",
            f"What is the next {kind} after {{{kind}}}?",
            f"Name the {kind} after {{{kind}}}.",
            f"After {{{kind}}} comes which {kind}?",
        ),
        statement=f"After {{{kind}}} comes {{next}}.",
        checks=(f"Does {{next}} come after {{{kind}}}?",),
    )
    before = Relation(
        name=f"{kind} before",
        rows=rows,
        answer=kind,
        questions=(
            f"What {kind} comes before {{next}}?",
            f"Which {kind} is right before {{next}}?",
            f"Name the {kind} before {{next}}.",
            f"Before {{next}} comes which {kind}?",
        ),
    )
    return after, before


RELATIONS = (
    Relation(
        name="symbol",
        rows=ELEMENTS,
        answer="symbol",
        questions=(
            "What is the chemical symbol of {element}?",
            "What is the symbol for {element}?",
            "Which symbol does {element} have?",
            "How do chemists write {element}?",
            "Name the symbol of {element}.",
            "Chemical symbol of {element}?",
        ),
        statement="The symbol of {element} is {symbol}.",
        checks=("Is {symbol} the symbol of {element}?",),
    ),
    Relation(
        name="element of symbol",
        rows=ELEMENTS,
        answer="element",
        questions=(
            "Which element has the symbol {symbol}?",
            "What element is written {symbol}?",
            "Which chemical element does {symbol} stand for?",
            "The symbol {symbol} stands for which element?",
            "Name the element with the symbol {symbol}.",
        ),
    ),
    Relation(
        name="atomic number",
        rows=ELEMENTS,
        answer="number",
        questions=(
            "What is the atomic number of {element}?",
            "Which atomic number does {element} have?",
            "How many protons are in an atom of {element}?",
            "Name the atomic number of {element}.",
            "Atomic number of {element}?",
        ),
        statement="The atomic number of {element} is {number}.",
    ),
    Relation(
        name="state",
        rows=ELEMENTS,
        answer="state",
        questions=(
            "Is {element} a solid, a liquid or a gas at room temperature?",
            "In which state is {element} at room temperature?",
            "What state of matter is {element} at room temperature?",
            "At room temperature, {element} is in which state?",
        ),
        statement="At room temperature {element} is a {state}.",
    ),
    Relation(
        name="parts",
        rows=PARTS,
        answer="number",
        questions=(
            "How many {part} are in {whole}?",
            "How many {part} are there in {whole}?",
            "Please tell me how many {part} are in {whole}.",
            "What is the number of {part} in {whole}?",
            "Do you know how many {part} are in {whole}?",
        ),
        statement="There are {number} {part} in {whole}.",
        checks=("Are there {number} {part} in {whole}?",),
    ),
    Relation(
        name="counts",
        rows=COUNTS,
        answer="number",
        questions=(
            "How many {part} does {thing:a} have?",
            "How many {part} has {thing:a}?",
            "What is the number of {part} of {thing:a}?",
            "Please tell me how many {part} {thing:a} has.",
            "Do you know how many {part} {thing:a} has?",
        ),
        statement="{thing:ac} has {number} {part}.",
    ),
    *_order("day", DAYS),
    *_order("month", MONTHS),
    Relation(
        name="number word",
        rows=NUMBER_WORDS,
        answer="digits",
        questions=(
            "How do you write {word} in digits?",
            "Write {word} as a number.",
            "Which number is {word}?",
            "What is {word} in digits?",
        ),
    ),
)
