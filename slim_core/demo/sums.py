# SPDX-License-Identifier: Apache-2.0
"""Word problems with the calculation spelled out: the shape of GSM8K with small numbers.

The first two numbers of a calculation decide the split: no training problem computes with a held-out pair.
Multiplication is a table to know by heart, so there only the whole problem is held out.
"""

from __future__ import annotations

from random import Random

from .example import Example, split_of
from .relations import words
from .tables.people import NAMES


THINGS = words(
    """
    apples books coins pens cards shells balls stamps cookies eggs flowers stickers marbles stones nuts toys
    cups hats keys candies pencils oranges tickets buttons
    """
)

# {a}, {b} and {c} are the numbers in the order of the calculation, {n} and {m} two people, {he} stands for {n}.
PROBLEMS: dict[str, tuple[str, ...]] = {
    "+": (
        "{n} had {a} {things} and got {b} more. How many {things} does {n} have now?",
        "{n} has {a} {things}. {m} has {b} {things}. How many {things} do they have together?",
        "There are {a} {things} on the table and {b} {things} in the box. How many {things} are there in all?",
        "{n} bought {a} {things} on Monday and {b} {things} on Friday. How many {things} did {he} buy in all?",
        "{n} found {a} {things}. Then {he} found {b} more {things}. How many {things} did {n} find?",
        "{m} gave {b} {things} to {n}, who had {a} {things} before. How many {things} does {n} have now?",
        "A shop sold {a} {things} in the morning and {b} {things} in the evening. How many {things} did it sell?",
        "{n} is {a} years old. How old will {he} be in {b} years?",
        "What is {a} + {b}?",
        "{a} + {b} = ?",
        "How much is {a} plus {b}?",
    ),
    "-": (
        "{n} had {a} {things} and lost {b} of them. How many {things} are left?",
        "{n} had {a} {things} and gave {b} to {m}. How many {things} does {n} have now?",
        "There were {a} {things} in the box. {n} took {b} of them. How many {things} are left in the box?",
        "{n} has {a} {things} and {m} has {b}. How many more {things} does {n} have?",
        "A shop had {a} {things} and sold {b} of them. How many {things} are left?",
        "{n} needs {a} {things} and has {b}. How many more {things} does {he} need?",
        "{n} read {b} of the {a} pages of a book. How many pages are left?",
        "{n} is {a} years old. How old was {he} {b} years before?",
        "What is {a} - {b}?",
        "{a} - {b} = ?",
        "How much is {a} minus {b}?",
    ),
    "*": (
        "{n} has {a} boxes with {b} {things} in each. How many {things} does {n} have?",
        "There are {a} tables with {b} {things} on each. How many {things} are there in all?",
        "{n} buys {b} {things} on each of {a} days. How many {things} does {he} buy?",
        "Each of {a} friends has {b} {things}. How many {things} do they have together?",
        "What is {a} * {b}?",
        "{a} * {b} = ?",
        "How much is {a} times {b}?",
    ),
    "+-": (
        "{n} had {a} {things}, got {b} more and gave {c} to {m}. How many {things} does {n} have now?",
        "{n} found {a} {things} and {m} found {b}. They lost {c} of them. How many {things} are left?",
        "A shop had {a} {things}. It bought {b} more and sold {c}. How many {things} are left?",
    ),
    "-+": (
        "{n} had {a} {things}, lost {b} of them and found {c} others. How many {things} does {n} have now?",
        "There were {a} {things} in the box. {n} took {b} and {m} put in {c}. How many {things} are in the box?",
    ),
}
WEIGHTS = {"+": 4, "-": 4, "*": 2, "+-": 1, "-+": 1}


def _second(op: str, a: int, rng: Random) -> int:
    """A number to combine with `a` so that the result is between 1 and 99."""
    highest = {"+": min(50, 99 - a), "-": min(50, a - 1), "*": 9}[op]
    return rng.randint(2, highest)


def compute(op: str, a: int, b: int) -> int:
    """The result of one step."""
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def solve(ops: str, numbers: tuple[int, ...]) -> str:
    """The calculation step by step, and the final answer."""
    result, steps = numbers[0], []
    for op, number in zip(ops, numbers[1:], strict=True):
        steps.append(f"{result} {op} {number} = {compute(op, result, number)}.")
        result = compute(op, result, number)
    return " ".join([*steps, f"The answer is {result}."])


def _numbers(ops: str, rng: Random) -> tuple[int, ...]:
    """The numbers of a calculation: none of them below 2, and every result at least 1 and at most 99."""
    first = {"+": (2, 50), "-": (4, 50), "*": (2, 9)}[ops[0]]
    result = rng.randint(*first)
    numbers = [result]
    for op in ops:
        if not 4 <= result <= 97:
            return _numbers(ops, rng)
        numbers.append(_second(op, result, rng))
        result = compute(op, result, numbers[-1])
    return tuple(numbers)


def pair_splits(ops: str, numbers: tuple[int, ...]) -> list[str]:
    """The split of the pair of numbers of each step."""
    result, splits = numbers[0], []
    for op, number in zip(ops, numbers[1:], strict=True):
        splits.append(split_of(f"{result} {op} {number}"))
        result = compute(op, result, number)
    return splits


def _belongs(split: str, ops: str, numbers: tuple[int, ...], prompt: str) -> bool:
    if ops == "*":
        return split_of(prompt) == split
    splits = pair_splits(ops, numbers)
    return set(splits) == {"train"} if split == "train" else splits[0] == split


def sample(split: str, rng: Random) -> Example:
    """One problem of the split."""
    while True:
        ops = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        numbers = _numbers(ops, rng)
        first, second = rng.sample(NAMES, 2)
        prompt = rng.choice(PROBLEMS[ops]).format(
            n=first["name"],
            m=second["name"],
            he=first["he"],
            things=rng.choice(THINGS),
            **dict(zip("abc", numbers, strict=False)),
        )
        if _belongs(split, ops, numbers, prompt):
            return Example("sums", prompt, solve(ops, numbers))
