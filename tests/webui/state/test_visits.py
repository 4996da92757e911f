# SPDX-License-Identifier: Apache-2.0
"""Pages that are loaded again, and those that nobody comes back to."""

import gc
import threading

import pytest

from slim_core.webui.state import visits as module
from slim_core.webui.state.session import Session
from slim_core.webui.state.visits import Visits


def test_a_ticket_finds_its_session_and_nothing_else_does():
    visits, session, other = Visits(), Session(), Session()
    for each in (session, other):
        visits.arrive(each)
    assert visits.find(session.ticket, None) is session
    assert visits.find(other.ticket, None) is other
    assert session.ticket != other.ticket and len(session.ticket) > 30
    for nothing in ("", "guess", None, 5, [session.ticket]):
        assert visits.find(nothing, None) is None


def test_a_ticket_of_somebody_who_signed_in_is_theirs_alone():
    visits, session = Visits(), Session()
    session.user = "ada"
    visits.arrive(session)
    assert visits.find(session.ticket, "ada") is session
    assert visits.find(session.ticket, "eve") is None
    assert visits.find(session.ticket, None) is None


def test_a_session_goes_with_the_last_page_that_showed_it():
    visits, session = Visits(), Session()
    visits.arrive(session)
    visits.arrive(session)
    assert not visits.leave(session)
    assert visits.leave(session)


def test_a_session_that_gradio_has_forgotten_is_not_kept_here():
    visits, session = Visits(), Session()
    visits.arrive(session)
    ticket = session.ticket
    del session
    gc.collect()
    assert visits.find(ticket, None) is None


@pytest.fixture
def timers(monkeypatch):
    """Timers that go off when a test says so."""
    begun = []

    class Timer:
        def __init__(self, seconds, call, arguments):
            self.seconds, self.go = seconds, lambda: call(*arguments)

        def start(self):
            begun.append(self)

    monkeypatch.setattr(threading, "Timer", Timer)
    return begun


def shown(visits, session, page):
    session.page, session.owner = page, session.ticket
    visits.arrive(session)


def test_who_has_left_for_a_while_has_left(timers):
    left = []
    visits, session, other = Visits(left.append), Session(), Session()
    shown(visits, session, "one"), shown(visits, other, "two")
    visits.close("one")
    assert left == [] and timers[0].seconds == module.PATIENCE == 60
    timers[0].go()
    assert left == [session.owner]
    visits.close("one"), visits.close("never opened")
    assert len(timers) == 1


@pytest.mark.parametrize("first", ["closes", "opens"])
def test_who_loads_the_page_again_has_not_left(first, timers):
    left = []
    visits, session = Visits(left.append), Session()
    shown(visits, session, "one")
    if first == "closes":
        visits.close("one")
    shown(visits, session, "one, again")
    if first == "opens":
        visits.close("one")
    timers[0].go()
    assert left == []
    visits.close("one, again")
    timers[1].go()
    assert left == [session.owner]


def test_a_session_that_is_gone_is_left_to_gradio(timers):
    left = []
    visits, session = Visits(left.append), Session()
    shown(visits, session, "one")
    visits.close("one")
    del session
    gc.collect()
    timers[0].go()
    assert left == []
