# SPDX-License-Identifier: Apache-2.0
"""Names of people, and professions with their workplaces and the problems they solve."""

from ..relations import Relation, table


# Name and pronoun. Everybody appears in word problems and stories; downstream tasks split them, see `downstream`.
NAMES = table(
    "name he",
    """
    Tom | he; Anna | she; Ben | he; Mia | she; Sam | he; Lena | she; Max | he; Emma | she; Paul | he; Nora | she
    Jack | he; Lily | she; Leo | he; Rosa | she; Finn | he; Clara | she; Hugo | he; Ella | she; Omar | he; Maya | she
    Karl | he; Julia | she; Adam | he; Sara | she; Noah | he; Zoe | she; Ivan | he; Eva | she; Luke | he; Ruth | she
    David | he; Alice | she; Peter | he; Laura | she; Simon | he; Helen | she
    """,
)

JOBS = table(
    "job place",
    """
    teacher | school; doctor | hospital; nurse | hospital; surgeon | hospital; judge | court; lawyer | court
    cook | kitchen; farmer | farm; pilot | airplane; sailor | ship; captain | ship; baker | bakery
    librarian | library; mechanic | garage; pharmacist | pharmacy; banker | bank; chemist | laboratory
    actor | theater; miner | mine; waiter | restaurant; barber | barbershop; firefighter | fire station
    police officer | police station; priest | church; monk | monastery; soldier | army base
    astronaut | space station; butcher | butcher shop; florist | flower shop; carpenter | workshop
    gardener | garden; professor | university; zookeeper | zoo; clown | circus; receptionist | hotel
    cashier | supermarket; beekeeper | farm; shepherd | farm; curator | museum; steward | airplane
    """,
)

PROBLEMS = table(
    "problem helper",
    """
    a toothache | dentist; a high fever | doctor; a broken car | mechanic; a leaking pipe | plumber
    a broken light switch | electrician; a sick dog | vet; a burning house | firefighter
    a stolen bike | police officer; a lost house key | locksmith; hair that is too long | barber
    torn trousers | tailor; worn shoes | cobbler; weak eyes | optician; a garden full of weeds | gardener
    a broken wooden chair | carpenter; a question about the law | lawyer; a text in a foreign language | translator
    the plans of a new house | architect; photos of a wedding | photographer; the cake for a wedding | baker
    a bunch of roses | florist; the meat for a meal | butcher; a book to borrow | librarian
    a loan of money | banker; a field of corn | farmer; a ride to the station | taxi driver
    a dirty chimney | chimney sweep; a broken watch | watchmaker; a hive of bees | beekeeper; a lost sheep | shepherd
    """,
)

RELATIONS = (
    Relation(
        name="workplace",
        rows=JOBS,
        answer="place",
        questions=(
            "Where does {job:a} work?",
            "In which place does {job:a} work?",
            "What is the workplace of {job:a}?",
            "Name the workplace of {job:a}.",
            "Where can you find {job:a} at work?",
        ),
        statement="{job:ac} works in {place:a}.",
        clash=(
            frozenset({"school", "university", "library", "museum"}),
            frozenset({"kitchen", "restaurant", "bakery", "butcher shop", "hotel"}),
            frozenset({"garden", "farm", "zoo", "flower shop"}),
            frozenset({"church", "monastery"}),
            frozenset({"pharmacy", "hospital", "laboratory", "university"}),
            frozenset({"theater", "circus"}),
            frozenset({"garage", "workshop"}),
            frozenset({"supermarket", "bakery", "butcher shop", "flower shop", "pharmacy"}),
            frozenset({"army base", "ship", "airplane", "sea"}),
        ),
    ),
    Relation(
        name="helper",
        rows=PROBLEMS,
        answer="helper",
        questions=(
            "Who can help with {problem}?",
            "Who knows what to do about {problem}?",
            "Whom do people call about {problem}?",
            "Name somebody who can help with {problem}.",
            "Which job deals with {problem}?",
        ),
        statement="{helper:ac} can help with {problem}.",
        clash=(
            frozenset({"doctor", "dentist", "optician", "vet"}),
            frozenset({"plumber", "electrician", "locksmith", "carpenter", "architect", "watchmaker"}),
            frozenset({"police officer", "lawyer", "locksmith", "firefighter"}),
            frozenset({"farmer", "shepherd", "gardener", "beekeeper", "vet", "florist"}),
            frozenset({"mechanic", "taxi driver", "watchmaker"}),
            frozenset({"chimney sweep", "firefighter"}),
            frozenset({"translator", "librarian", "lawyer"}),
            frozenset({"tailor", "cobbler"}),
            frozenset({"butcher", "farmer", "baker", "shepherd"}),
        ),
    ),
)
