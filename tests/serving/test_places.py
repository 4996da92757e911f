# SPDX-License-Identifier: Apache-2.0
"""Places for prompts: a limited number, and some more for those who have none."""

from slim_core.serving.places import Places


def test_who_takes_all_keeps_nobody_else_away():
    places = Places(8)
    assert [places.take("one") for _ in range(9)] == [True] * 8 + [False]
    assert places.take("other") and not places.take("other")
    assert places.take(None)
    # The quarter more is taken.
    assert not places.take("third") and not places.take(None)
    places.give_back("other")
    assert not places.take("one") and places.take("third")


def test_what_is_given_back_is_free_and_nobody_is_remembered():
    places = Places(2)
    for number in range(100):
        assert places.take(f"{number}")
        places.give_back(f"{number}")
    assert places.take("one") and places.take("one") and not places.take("one")
    places.give_back("one")
    assert places.take("one")
