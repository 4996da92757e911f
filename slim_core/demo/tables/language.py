# SPDX-License-Identifier: Apache-2.0
"""Words about words: opposites, synonyms, plurals and past tenses."""

from ..relations import Relation, table


_PAIRS = table(
    "word opposite",
    """
    hot | cold; big | small; fast | slow; old | young; open | closed; day | night; up | down; left | right
    bright | dark; heavy | light; happy | sad; rich | poor; strong | weak; wet | dry; clean | dirty; full | empty
    hard | soft; loud | quiet; early | late; first | last; high | low; inside | outside; long | short; love | hate
    win | lose; push | pull; give | take; buy | sell; start | stop; begin | end; remember | forget; laugh | cry
    asleep | awake; alive | dead; deep | shallow; wide | narrow; thick | thin; near | far; before | after
    above | below; always | never; more | less; many | few; north | south; east | west; summer | winter
    black | white; boy | girl; man | woman; king | queen; mother | father; brother | sister; son | daughter
    uncle | aunt; husband | wife; friend | enemy; question | answer; safe | dangerous; easy | difficult
    cheap | expensive; smooth | rough; sharp | blunt; polite | rude; kind | cruel; lucky | unlucky
    possible | impossible; visible | invisible; same | different; beautiful | ugly; arrive | leave; float | sink
    freeze | melt; lead | follow; whisper | shout; build | destroy; accept | refuse; success | failure; peace | war
    front | back; top | bottom; sunrise | sunset; guest | host; increase | decrease; modern | ancient
    guilty | innocent; public | private; lazy | hardworking; honest | dishonest; patient | impatient
    selfish | generous; tidy | messy; careful | careless; male | female; plus | minus; yes | no; true | false
    correct | wrong; something | nothing; everybody | nobody
    """,
)
OPPOSITES = tuple(
    {"word": row[one], "opposite": row[other]}
    for row in _PAIRS
    for one, other in (("word", "opposite"), ("opposite", "word"))
)

SYNONYMS = table(
    "word synonym",
    """
    large | big; quick | fast; glad | happy; commence | begin; select | choose; reply | answer; shut | close
    ill | sick; smart | clever; gift | present; street | road; sofa | couch; taxi | cab; error | mistake
    afraid | scared; tiny | small; mad | angry; rock | stone; leap | jump; assist | help; finish | end; bunny | rabbit
    wealthy | rich; silent | quiet; mend | repair; journey | trip; infant | baby; purchase | buy; ocean | sea
    """,
)

PLURALS = table(
    "one many",
    """
    mouse | mice; child | children; tooth | teeth; foot | feet; goose | geese; man | men; woman | women; ox | oxen
    leaf | leaves; wolf | wolves; knife | knives; wife | wives; loaf | loaves; half | halves; shelf | shelves
    thief | thieves; city | cities; baby | babies; box | boxes
    """,
)

PAST = table(
    "verb past",
    """
    go | went; see | saw; eat | ate; drink | drank; run | ran; swim | swam; sing | sang; write | wrote; give | gave
    take | took; come | came; buy | bought; bring | brought; think | thought; teach | taught; catch | caught
    find | found; lose | lost; win | won; make | made; sleep | slept; feel | felt; keep | kept; leave | left
    meet | met; speak | spoke; break | broke; drive | drove; ride | rode; fly | flew; grow | grew; know | knew
    throw | threw; fall | fell; hold | held; build | built; send | sent; spend | spent; sell | sold; tell | told
    say | said; stand | stood; forget | forgot; begin | began; wake | woke; wear | wore; choose | chose; hide | hid
    draw | drew; steal | stole
    """,
)

RELATIONS = (
    Relation(
        name="opposite",
        rows=OPPOSITES,
        answer="opposite",
        questions=(
            "What is the opposite of {word}?",
            "Which word is the opposite of {word}?",
            "Name the opposite of {word}.",
            "What do we call the opposite of {word}?",
            "Opposite of {word}?",
            "Please tell me the opposite of {word}.",
        ),
        statement="The opposite of {word} is {opposite}.",
        checks=("Is {opposite} the opposite of {word}?",),
    ),
    Relation(
        name="synonym",
        rows=SYNONYMS,
        answer="synonym",
        questions=(
            "Which word means the same as {word}?",
            "What is another word for {word}?",
            "Name a word that means {word}.",
            "What does {word} mean?",
            "Another word for {word}?",
        ),
        statement="Another word for {word} is {synonym}.",
        checks=("Does {word} mean {synonym}?",),
    ),
    Relation(
        name="plural",
        rows=PLURALS,
        answer="many",
        questions=(
            "What is the plural of {one}?",
            "One {one}, two what?",
            "Name the plural of {one}.",
            "Which word is the plural of {one}?",
        ),
        statement="The plural of {one} is {many}.",
        checks=("Is {many} the plural of {one}?",),
    ),
    Relation(
        name="past tense",
        rows=PAST,
        answer="past",
        questions=(
            "What is the past tense of {verb}?",
            "How do you say {verb} in the past?",
            "Name the past tense of {verb}.",
            "Today I {verb}. Which word do I use for yesterday?",
            "Past tense of {verb}?",
        ),
        statement="The past tense of {verb} is {past}.",
        checks=("Is {past} the past tense of {verb}?",),
    ),
)
