# SPDX-License-Identifier: Apache-2.0
"""The scenes of the downstream tasks: who is asked about, and in which words."""

from __future__ import annotations

from .families import ChoiceFamily, ClaimFamily, split_entries, with_traits
from .tables import BY_NAME, nature, objects, people, social


PEOPLE = split_entries(people.NAMES)
ANIMALS = split_entries(nature.ANIMALS, "kind")
FOODS = split_entries(nature.FOODS, "kind")
MATERIALS = split_entries(objects.THINGS, "material")

OBQA = (
    ChoiceFamily(
        entries=split_entries(objects.TOOLS),
        option="{tool}",
        kind="tool",
        phrasings=(
            "{name} wants to {use}. What should {name} take?",
            "{name} has to {use}. Which thing would help?",
            "What does {name} need to {use}?",
            "To {use}, what would {name} look for?",
            "What should {other} give to {name} to {use}?",
            "{name} told {other}: I have to {use}. What does {name} need?",
            "With which of these could {name} {use}?",
            "{other} helped {name} to {use}. What did they need?",
            "Yesterday {name} had to {use}. What was a help?",
            "{name} would like to {use}. What is not there?",
        ),
        test_phrasings=(
            "Today {name} would like to {use}. What would help {name}?",
            "{other} saw {name} {use}. What did {name} have?",
        ),
        clash=objects.SIMILAR_TOOLS,
    ),
    ChoiceFamily(
        entries=split_entries(people.PROBLEMS),
        option="{helper:a}",
        kind="helper",
        phrasings=(
            "{name} needs help with {problem}. Whom should {name} call?",
            "{name} wondered what to do about {problem}. Who can help?",
            "{other} told {name} whom to call about {problem}. Who was it?",
            "Because of {problem}, {name} looks for help. Who knows what to do?",
            "{name} has to do something about {problem}. Who would help?",
            "{other} saw that {name} needs help with {problem}. Whom should {other} call?",
            "Who could have told {name} what to do about {problem}?",
            "Yesterday {name} asked for help with {problem}. Who was asked?",
        ),
        test_phrasings=(
            "{name} asked {other} about {problem}. Who can help {name}?",
            "{name} looks for somebody who can help with {problem}. Who should it be?",
        ),
        clash=BY_NAME["helper"].clash,
    ),
    ChoiceFamily(
        entries=with_traits(ANIMALS, nature.ANIMAL_TRAITS, "kind"),
        option="{animal:a}",
        kind="kind",
        phrasings=(
            "Which animal {trait}?",
            "{name} saw an animal that {trait}. What was it?",
            "{name} looks for an animal that {trait}. What could it be?",
            "Which of these animals most likely {trait}?",
            "{other} told {name} about an animal that {trait}. Which one could it be?",
            "Yesterday {name} saw a picture of an animal that {trait}. Which animal did {name} see?",
            "{name} knows an animal that {trait}. What is it?",
            "{name} asked {other}: which animal {trait}?",
        ),
        test_phrasings=(
            "{name} read about an animal that {trait}. Which animal was it?",
            "{other} asked {name} which animal {trait}. What should {name} say?",
        ),
        clash=nature.SIMILAR_ANIMALS,
    ),
    ChoiceFamily(
        entries=with_traits(MATERIALS, objects.MATERIAL_TRAITS, "material"),
        option="{thing}",
        kind="material",
        phrasings=(
            "Which thing is made of a material that {trait}?",
            "{name} needs a thing made of a material that {trait}. What could it be?",
            "The material of which thing {trait}?",
            "{name} has something made of a material that {trait}. What is it?",
            "{other} gave {name} a thing made of a material that {trait}. What did {name} get?",
            "{name} saw a thing made of a material that {trait}. Which thing was it?",
            "Yesterday {name} looked for something made of a material that {trait}. What could it be?",
            "Which of these would {name} choose for a material that {trait}?",
        ),
        test_phrasings=(
            "{name} found a thing made of a material that {trait}. What was it?",
            "{other} asked {name} for something made of a material that {trait}. What should {name} give?",
        ),
        clash=objects.SIMILAR_MATERIALS,
    ),
    ChoiceFamily(
        entries=with_traits(FOODS, nature.FOOD_TRAITS, "kind"),
        option="{food}",
        kind="kind",
        phrasings=(
            "{name} wants something that {trait}. What should {name} choose?",
            "Which food {trait}?",
            "{name} had something for lunch that {trait}. What was it?",
            "Which of these most likely {trait}?",
            "{other} saw {name} take something that {trait}. What was it?",
            "{name} asked {other} for a food that {trait}. What should {other} give?",
            "Yesterday {name} bought something that {trait}. What could it be?",
            "{name} knows a food that {trait}. What is it?",
        ),
        test_phrasings=(
            "{name} looks for a food that {trait}. What should {name} take?",
            "{other} gave {name} something that {trait}. What could it be?",
        ),
        clash=nature.SIMILAR_FOODS,
    ),
)

SIQA = (
    ChoiceFamily(
        entries=split_entries(social.FEELINGS, "feeling"),
        option="{feeling}",
        kind="feeling",
        phrasings=(
            "{name} {did}. How would {name} feel afterwards?",
            "{name} {did} and told {other} about it. How did {name} feel?",
            "Yesterday {name} {did}. How would you describe the feeling of {name}?",
            "{other} was away while {name} {did}. How does {name} feel now?",
            "A week before, {name} {did}. What did {name} feel?",
            "{other} saw that {name} {did}. What does {name} feel now?",
            "After {name} {did}, {other} asked how {name} felt. What did {name} say?",
            "{name} {did}. Which word describes how {name} felt then?",
        ),
        test_phrasings=(
            "{name} {did} last week. What would {name} feel then?",
            "{other} heard that {name} {did}. How did {name} feel after this?",
        ),
        clash=social.SIMILAR_FEELINGS,
        common=True,
    ),
    ChoiceFamily(
        entries=split_entries(social.TRAITS, "trait"),
        option="{trait}",
        kind="trait",
        phrasings=(
            "{name} {did}. How would you describe {name}?",
            "{name} {did} and {other} saw it. What is {name} like?",
            "Yesterday {name} {did}. What does {other} think of {name}?",
            "{name} {did}. What would people call {name}?",
            "A week before, {name} {did}. What is {name} like?",
            "{other} was away while {name} {did}. Which word would {other} choose for {name}?",
            "{name} {did}. What did {other} say about {name}?",
            "After {name} {did}, {other} told people about it. How did {other} describe {name}?",
        ),
        test_phrasings=(
            "{other} heard that {name} {did}. How would {other} describe {name}?",
            "{name} {did} last week. Which word describes {name}?",
        ),
        clash=social.SIMILAR_TRAITS,
        common=True,
    ),
    ChoiceFamily(
        entries=split_entries(social.REASONS),
        option="{reason}",
        kind="reason",
        phrasings=(
            "{name} {did}. Why did {name} do this?",
            "Yesterday {name} {did}. What was the reason?",
            "{other} saw that {name} {did}. Why would {name} do it?",
            "{name} {did} while {other} was away. What did {name} want?",
            "A week before, {name} {did}. What was it for?",
            "{other} asked {name}, who {did}, for the reason. What was it?",
            "After {name} {did}, {other} heard about it. Why did {name} do it?",
            "{name} {did}. What could be the reason?",
        ),
        test_phrasings=(
            "{other} wondered why {name} {did}. What would {name} say?",
            "{name} {did} last week. What reason would {name} give?",
        ),
        clash=BY_NAME["reason"].clash,
    ),
    ChoiceFamily(
        entries=split_entries(social.NEXT),
        option="{next}",
        kind="next",
        phrasings=(
            "{name} {did}. What will {name} want to do next?",
            "{name} {did}. What should {name} do now?",
            "Yesterday {name} {did}. What did {name} do then?",
            "{other} saw that {name} {did}. What did {other} tell {name} to do?",
            "A week before, {name} {did}. What did {name} do next?",
            "{other} asked {name}, who {did}, what comes next. What did {name} say?",
            "After {name} {did}, {other} came home. What should {name} do now?",
            "{name} {did}. What is the next thing to do?",
        ),
        test_phrasings=(
            "{name} {did} while {other} was away. What will {name} do afterwards?",
            "{other} heard that {name} {did}. What should {name} do next?",
        ),
        clash=BY_NAME["next"].clash,
    ),
)

BOOLQ = (
    ClaimFamily(
        relation="animal kind",
        entries=ANIMALS,
        phrasings=(
            "is {animal:a} {kind:a}?",
            "is {animal:a} a kind of {kind}?",
            "does {animal:a} belong to the class {kind}?",
            "{name} saw {animal:a}. did {name} see {kind:a}?",
            "is it true that {animal:a} is {kind:a}?",
            "{name} told {other} about {animal:a}. was it {kind:a}?",
            "would you call {animal:a} {kind:a}?",
            "{other} gave {name} a picture of {animal:a}. is this a picture of {kind:a}?",
        ),
        test_phrasings=(
            "could {animal:a} be {kind:a}?",
            "{name} looks for {animal:a}. does {name} look for {kind:a}?",
        ),
    ),
    ClaimFamily(
        relation="food kind",
        entries=FOODS,
        phrasings=(
            "is {food} a kind of {kind}?",
            "does {food} belong to the food group {kind}?",
            "{name} had {food} for lunch. did {name} have a kind of {kind}?",
            "{name} takes {food}. is this a kind of {kind}?",
            "is it true that {food} is a kind of {kind}?",
            "would you call {food} a kind of {kind}?",
            "{other} gave {name} {food}. did {name} get a kind of {kind}?",
            "{name} asked for {food}. is that a kind of {kind}?",
        ),
        test_phrasings=(
            "could {food} be a kind of {kind}?",
            "{name} bought {food}. did {name} buy a kind of {kind}?",
        ),
    ),
    ClaimFamily(
        relation="continent",
        entries=split_entries(BY_NAME["continent"].facts, "continent"),
        phrasings=(
            "is {country} in {continent}?",
            "does {country} belong to {continent}?",
            "is {country} a country in {continent}?",
            "{name} went to {country}. did {name} go to {continent}?",
            "is it true that {country} is in {continent}?",
            "would you find {country} in {continent}?",
            "{other} saw {name} in {country}. was {name} in {continent}?",
            "{name} wants to see {country}. should {name} go to {continent}?",
        ),
        test_phrasings=("is {country} part of {continent}?", "{name} is in {country}. is {name} in {continent}?"),
    ),
    ClaimFamily(
        relation="material",
        entries=MATERIALS,
        phrasings=(
            "is {thing} made of {material}?",
            "is {material} the material of {thing}?",
            "{name} has {thing}. is it made of {material}?",
            "is it true that {thing} is made of {material}?",
            "would people use {material} for {thing}?",
            "{other} gave {name} {thing}. is the material {material}?",
            "{name} looks for {thing}. should it be made of {material}?",
        ),
        test_phrasings=("do people make {thing} of {material}?", "{name} saw {thing}. was it made of {material}?"),
    ),
    ClaimFamily(
        relation="workplace",
        entries=split_entries(people.JOBS),
        phrasings=(
            "does {job:a} work in {place:a}?",
            "is {place:a} the workplace of {job:a}?",
            "{name} is {job:a}. does {name} work in {place:a}?",
            "is it true that {job:a} works in {place:a}?",
            "could {job:a} have a workplace like {place:a}?",
            "{other} saw {name}, {job:a}, at work. was it in {place:a}?",
            "{name} wants to be {job:a}. will {name} work in {place:a}?",
        ),
        test_phrasings=(
            "would you find {job:a} at work in {place:a}?",
            "{name} is at work as {job:a}. is {name} in {place:a}?",
        ),
    ),
)
