# SPDX-License-Identifier: Apache-2.0
"""Small talk, and an honest answer to everything that the world does not cover."""

from __future__ import annotations

from functools import cache
from random import Random

from .example import Example, split_of
from .questions import fact_questions
from .relations import SPLITS, Word, words
from .stories import ABOUT_PROMPTS
from .sums import PROBLEMS, THINGS
from .tables import RELATIONS
from .tables.people import NAMES


REFUSAL = "I only know sums, facts and simple questions."
TOO_BIG = "These numbers are too big for me."

# What people say, and the answer.
INTENTS: dict[str, tuple[str, ...]] = {
    "Hello! Ask me a sum, a fact or a simple question.": (
        "hello", "hi", "hey", "good morning", "good evening", "good afternoon", "good day", "greetings", "hi again",
        "nice to meet you", "hello there", "hey there",
    ),
    "I am a small language model.": (
        "who are you", "what are you", "tell me who you are", "what is your name", "what are you called",
        "are you a human", "are you a robot", "are you a person", "are you real", "introduce yourself",
        "are you a computer", "your name",
    ),
    "I can do sums, answer questions about facts and choose between options.": (
        "what can you do", "what do you know", "what can I ask you", "help", "can you help me", "how can you help me",
        "what are you good at", "what should I ask", "what questions can you answer", "tell me what you can do",
        "how do you work", "what is this",
    ),
    "I am fine, thank you. What do you want to know?": (
        "how are you", "how are you today", "how do you do", "are you well", "how is it going", "are you okay",
        "how are things", "how do you feel", "is everything fine", "are you fine",
    ),
    "You are welcome!": (
        "thank you", "thanks", "thanks a lot", "thank you very much", "many thanks", "great", "well done", "good job",
        "that is correct", "that is right", "very good", "nice work", "you are smart", "I like you",
    ),
    "I am sorry. I make mistakes.": (
        "that is wrong", "that is not right", "this is false", "no", "you are wrong", "that is not true",
        "wrong answer", "you made a mistake", "that was not correct", "I do not believe you",
    ),
    "Goodbye! Come back soon.": (
        "bye", "goodbye", "see you", "see you later", "good night", "I have to go", "bye bye", "until tomorrow",
        "have a nice day", "take care", "I am leaving now", "farewell",
    ),
}  # fmt: skip
OPENERS = ("", "", "Oh, ", "Well, ", "Okay, ", "So, ", "Hey, ", "Please: ")
CLOSERS = ("", "", ".", "!", "?", " now", " my friend", ", please", " then", " dear model")

# Messages about something else. {x} is any word, {y} another.
OTHER_TOPICS = (
    "Write a poem about {x}.", "What do you think about {x}?", "How do I cook {x}?", "Where can I buy a {x}?",
    "Tell me the news about {x}.", "Who is {x}?", "What is {x}?", "What is a {x}?", "Why is the {x} so {y}?",
    "Can you play {x} with me?", "Do you like {x}?", "Do you believe in {x}?", "Explain {x} to me.",
    "How does {x} work?", "When was {x} born?", "When did {x} begin?", "How much does a {x} cost?",
    "My {x} is {y}.", "I want to {x} the {y}.", "Should I {x} or {y}?", "Translate {x} into {y}.",
    "What will the weather be in {x}?", "Who won the {x} last year?", "Give me a recipe for {x}.",
    "I feel {x} today.", "Is {x} better than {y}?", "What is your favorite {x}?", "Have you ever seen a {x}?",
    "Write a program that can {x}.", "How far is {x} from {y}?", "How old is {x}?", "What happened in {x}?",
    "Which {x} should I {y}?", "Make a list of {x}.", "Sing a song about {x}.", "Who invented {x}?",
    "Can I {x} my {y}?", "What is the meaning of {x}?", "What is the best {x}?", "{x} {y}", "{x}", "{x}?",
    "Describe a {x}.", "Is there life on {x}?", "How do you spell {x}?", "I have a {x} at home.", "Please {x} me.",
    "Are {x} and {y} the same?", "Will {x} ever {y}?", "Where is my {x}?", "What time is {x}?",
    "The {x} of {y} is nice.", "He said {x}.", "Did you know that {x} is {y}?", "Draw a {x}.", "Say {x}.",
)  # fmt: skip
# Words of other topics. They are not collected for the vocabulary, so most of them are read byte by byte.
OTHER_WORDS = words(
    """
    quantum politics bitcoin football president election pasta lasagna pizza guitarist algebra philosophy
    dinosaur dragon unicorn wizard robotics internet website password software python3 javascript stock
    market inflation vaccine cancer therapy depression marriage religion buddhism economy climate pollution
    hurricane volcano galaxy comet gravity photon molecule enzyme genome evolution napoleon caesar einstein
    newton mozart beethoven batman pokemon minecraft netflix youtube google facebook twitter chatgpt taylor
    swift messi ronaldo tesla spaceship recipe horoscope lottery mortgage insurance passport visa airline
    smartphone laptop keyboard headphones haircut tattoo yoga karate chess poker lego barbie santa easter
    halloween thanksgiving ramadan sandwich burger sushi taco curry noodles spaghetti croissant cappuccino
    whisky vodka smoothie avocado quinoa
    """
)
SYLLABLES = words(
    """
    ba be bo bri cha co da dro du el en fa fi flo ga gre gu ha hi in ja jo ka ki kra la le lo lu ma mi mo mu
    na ne no nu o or pa pe pi plo qua ra re ri ro sa sch se shi so sta su ta te ti to tri tu u ul va ve vi
    vo wa we wi xa ya yo za ze zi zu
    """
)
ENDINGS = ("", "", ".", "?", "!", "...", "?!", " :)")
# Code points of letters and signs beyond English, and of emojis.
FOREIGN = (range(0xA1, 0xA000), range(0x1F300, 0x1F650), range(0x21, 0x41))
PHRASES = {phrase: answer for answer, phrases in INTENTS.items() for phrase in phrases}


def _bare(text: str) -> str:
    """A text in lower case without punctuation at its end."""
    return text.lower().rstrip(" .?!:)")


@cache
def _fact_texts() -> frozenset[str]:
    """Every free-form question that has an answer."""
    return frozenset(question.text for split in SPLITS for question in fact_questions(split))


@cache
def _entries() -> tuple[Word, ...]:
    """Everything that the questions ask about."""
    entries = (row[column] for relation in RELATIONS for row in relation.facts for column in relation.key)
    return tuple(dict.fromkeys(entries))


@cache
def _known_words() -> tuple[str, ...]:
    """The words that the entries consist of, and the names of people."""
    parts = {word for entry in _entries() for word in entry.split() if word.isalpha()}
    return tuple(sorted(parts | {row["name"] for row in NAMES}))


def _invented(rng: Random) -> str:
    """A word that means nothing."""
    word = "".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) + rng.choice(("", "", "n", "s", "r", "x", "ing", "ia"))
    return word.capitalize() if rng.random() < 0.3 else word


def _unknown_word(rng: Random) -> str:
    """A word that means nothing, or nothing here."""
    while True:
        word = _invented(rng) if rng.random() < 0.6 else rng.choice(OTHER_WORDS)
        if word not in _known_words():
            return word


def _word(rng: Random) -> str:
    """A word of any sort."""
    return rng.choice(_known_words()) if rng.random() < 0.3 else _unknown_word(rng)


def _unknown_fact(rng: Random) -> str:
    """A question of a known form about something that it cannot be asked about."""
    if rng.random() < 0.1:
        return rng.choice(ABOUT_PROMPTS).format(_unknown_word(rng))
    relation = rng.choice(RELATIONS)
    entry = rng.choice(_entries()) if rng.random() < 0.25 else Word(_unknown_word(rng))
    return rng.choice(relation.questions).format(**dict.fromkeys(relation.key, entry))


def _other_topic(rng: Random) -> str:
    return rng.choice(OTHER_TOPICS).format(x=_word(rng), y=_word(rng))


def _salad(rng: Random) -> str:
    """Words in no order, all of them known or of any sort."""
    only_known = rng.random() < 0.5
    chosen = (rng.choice(_known_words()) if only_known else _word(rng) for _ in range(rng.randint(1, 9)))
    return " ".join(chosen) + rng.choice(ENDINGS)


def _foreign(rng: Random) -> str:
    """Letters and signs that no other text has."""
    return "".join(chr(rng.choice(rng.choice(FOREIGN))) for _ in range(rng.randint(1, 12)))


def _fragment(rng: Random) -> str:
    """The first few words of a question."""
    question = rng.choice(fact_questions("train")).text.split()
    return " ".join(question[: rng.randint(1, max(1, len(question) // 2))])


def _refused(rng: Random) -> str:
    """A message that the world does not cover."""
    kind = rng.choices((_unknown_fact, _other_topic, _salad, _fragment, _foreign), (6, 8, 5, 1, 1))[0]
    while True:
        text = kind(rng)
        if text not in _fact_texts() and _bare(text) not in map(_bare, PHRASES):
            return text


def _too_big(rng: Random) -> str:
    """A sum with numbers beyond what the world calculates with."""
    problem = rng.choice(PROBLEMS[rng.choice("+-*")])
    first, second = rng.sample(NAMES, 2)
    a, b = rng.randint(100, 9999), rng.choice((rng.randint(2, 99), rng.randint(100, 9999)))
    return problem.format(n=first["name"], m=second["name"], he=first["he"], things=rng.choice(THINGS), a=a, b=b)


def _small_talk(rng: Random) -> tuple[str, str]:
    """A phrase in one of its forms, and the answer."""
    phrase = rng.choice(tuple(PHRASES))
    text = rng.choice(OPENERS) + phrase + rng.choice(CLOSERS)
    return (text[0].upper() + text[1:] if rng.random() < 0.6 else text), PHRASES[phrase]


def sample(split: str, rng: Random) -> Example:
    """One message of the split with its answer."""
    while True:
        kind = rng.choices(("small talk", "refused", "too big"), (8, 11, 1))[0]
        if kind == "small talk":
            prompt, answer = _small_talk(rng)
        else:
            prompt, answer = (_refused(rng), REFUSAL) if kind == "refused" else (_too_big(rng), TOO_BIG)
        if split_of(prompt) == split:
            return Example("talk", prompt, answer)
