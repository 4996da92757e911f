# SPDX-License-Identifier: Apache-2.0
"""Pages that are loaded again, and those that nobody comes back to."""

import gc

from slim_core.webui.state.session import Session
from slim_core.webui.state.visits import Visits


def test_a_ticket_finds_its_session_and_nothing_else_does():
    visits, session, other = Visits(), Session(), Session()
    for one in (session, other):
        visits.arrive(one)
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
