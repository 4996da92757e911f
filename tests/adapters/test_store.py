# SPDX-License-Identifier: Apache-2.0
"""The store: whose adapters go when there is no room, when files and rows are freed, and many threads at once."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from peft import LoraConfig

from slim_core.adapters import Adapter, AdapterError, AdapterStore, StoreLimits
from slim_core.outside.files import WEIGHTS
from slim_core.outside.header import TensorInfo


LIMITS = StoreLimits(owner_count=2, owner_bytes=100, total_count=4, total_bytes=150)


def adapter(root: Path, label: str, size: int = 10) -> Adapter:
    folder = root / label
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(b"x")
    return Adapter("lora", label, LoraConfig(), folder, {"x.slim_rows": TensorInfo("BOOL", (size,))}, (), 1, size, "")


class Freed(list):
    """What the store has freed, by label; each must still have its files then."""

    def __call__(self, stored) -> None:
        assert stored.adapter.folder.is_dir()
        self.append(stored.adapter.label)


@pytest.fixture
def freed() -> Freed:
    return Freed()


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "adapters"
    folder.mkdir()
    return folder


@pytest.fixture
def store(freed) -> AdapterStore:
    return AdapterStore(LIMITS, freed)


def labels(store: AdapterStore, owner: str) -> list[str]:
    return [stored.adapter.label for stored in store.of(owner)]


def test_each_visitor_sees_their_own(store, root):
    first, second = store.add("ann", adapter(root, "a")), store.add("bob", adapter(root, "b"))
    assert first.key != second.key
    assert (labels(store, "ann"), labels(store, "bob"), labels(store, "eve")) == (["a"], ["b"], [])


def test_a_visitors_least_recently_used_goes_for_a_new_one(store, freed, root):
    one, two = store.add("ann", adapter(root, "1")), store.add("ann", adapter(root, "2"))
    store.add("bob", adapter(root, "b"))
    with store.use(one.key):
        pass
    store.add("ann", adapter(root, "3"))
    assert freed == ["2"] and labels(store, "ann") == ["1", "3"] and labels(store, "bob") == ["b"]
    assert not two.adapter.folder.exists() and one.adapter.folder.exists()
    assert store.notices("ann") == ("Your adapter '2' was removed to make room for your new one.",)
    assert store.notices("ann") == () == store.notices("bob")
    with pytest.raises(AdapterError, match="This adapter was removed; add it again"), store.use(two.key):
        pass


def test_a_visitors_bytes_are_bounded(store, freed, root):
    store.add("ann", adapter(root, "1", 60))
    store.add("ann", adapter(root, "2", 41))
    assert freed == ["1"]
    store.add("ann", adapter(root, "3", 59))
    assert freed == ["1"]


def test_all_together_are_bounded_and_the_owner_is_told(store, freed, root):
    for owner in ("ann", "bob", "cat", "dan"):
        store.add(owner, adapter(root, owner))
    store.add("eve", adapter(root, "eve"))
    assert freed == ["ann"]
    (sentence,) = store.notices("ann")
    assert (
        sentence
        == "Your adapter 'ann' was removed because others needed the memory and it was the least recently used."
    )
    store.add("fay", adapter(root, "fay", 100))  # 10 + 10 + 10 + 100 bytes fit, five adapters do not
    assert freed == ["ann", "bob"]
    store.add("gil", adapter(root, "gil", 45))
    assert freed == ["ann", "bob", "cat", "dan", "eve"][: len(freed)]
    assert sum(stored.adapter.row_bytes for owner in ("dan", "eve", "fay", "gil") for stored in store.of(owner)) <= 150


def test_what_can_never_fit_is_refused_and_nothing_goes(store, freed, root):
    store.add("ann", adapter(root, "1"))
    large = adapter(root, "large", 101)
    with pytest.raises(AdapterError, match="'large' has 101 bytes; there is room for 100 bytes"):
        store.add("ann", large)
    assert freed == [] and labels(store, "ann") == ["1"] and large.folder.exists()


def test_an_answer_in_progress_keeps_its_adapter(store, freed, root):
    one, two = store.add("ann", adapter(root, "1")), store.add("ann", adapter(root, "2"))
    with store.use(one.key) as used:
        store.add("ann", adapter(root, "3"))
        assert freed == ["2"] and used.folder.exists()
        store.remove(one.key)
        store.leave("ann")
        assert freed == ["2", "3"] and used.folder.exists() and labels(store, "ann") == []
        with pytest.raises(AdapterError), store.use(one.key):
            pass
    assert freed == ["2", "3", "1"] and not used.folder.exists() and not two.adapter.folder.exists()


def test_two_answers_with_one_adapter(store, freed, root):
    stored = store.add("ann", adapter(root, "1"))
    with store.use(stored.key):
        with store.use(stored.key):
            store.remove(stored.key)
        assert freed == []
    assert freed == ["1"]


def test_where_all_are_in_use_there_is_no_room(store, freed, root):
    one, two = store.add("ann", adapter(root, "1")), store.add("ann", adapter(root, "2"))
    third = adapter(root, "3")
    with (
        store.use(one.key),
        store.use(two.key),
        pytest.raises(AdapterError, match="no memory for another adapter while"),
    ):
        store.add("ann", third)
    assert freed == [] and labels(store, "ann") == ["1", "2"] and third.folder.exists()
    store.add("ann", third)
    assert freed == ["1"]


def test_what_left_but_is_in_use_still_takes_room(store, root):
    large = store.add("ann", adapter(root, "large", 100))
    with store.use(large.key):
        store.leave("ann")
        with pytest.raises(AdapterError, match="no memory"):
            store.add("bob", adapter(root, "b", 51))
    store.add("cat", adapter(root, "c", 51))


def test_when_a_visitor_leaves_their_files_and_notices_go(store, freed, root):
    for label in "123":
        store.add("ann", adapter(root, label))
    store.add("bob", adapter(root, "b"))
    store.leave("ann")
    assert sorted(freed) == ["1", "2", "3"] and [path.name for path in root.iterdir()] == ["b"]
    assert store.notices("ann") == ()
    store.leave("ann")
    store.remove("never there")


def test_files_go_even_if_freeing_a_row_fails(root):
    def failing(stored) -> None:
        raise RuntimeError(stored.adapter.label)

    store = AdapterStore(LIMITS, failing)
    store.add("ann", adapter(root, "1")), store.add("ann", adapter(root, "2"))
    with pytest.raises(RuntimeError):
        store.leave("ann")
    assert list(root.iterdir()) == []


def test_a_row_is_freed_with_no_lock_held(root):
    """Whoever frees a row waits for the model; who answers with the model may ask the store."""
    store = AdapterStore(LIMITS, lambda stored: thread.join(5))
    thread = threading.Thread(target=lambda: store.of("ann"))
    stored = store.add("ann", adapter(root, "1"))
    thread.start()
    store.remove(stored.key)
    assert not thread.is_alive()


def test_one_that_cannot_be_attached_pushes_nobody_out(store, freed, root):
    for owner in ("ann", "bob", "cat", "dan"):
        store.add(owner, adapter(root, owner))

    def refuse(stored) -> None:
        assert "ann" not in freed and stored.adapter.folder.is_dir()
        raise RuntimeError("it overflows")

    for attempt in range(3):
        with pytest.raises(RuntimeError, match="overflows"):
            store.add("eve", adapter(root, f"bad {attempt}", 100), refuse)
    assert freed == [f"bad {attempt}" for attempt in range(3)]
    assert [stored.owner for stored in store.all()] == ["ann", "bob", "cat", "dan"]
    assert not any(store.notices(owner) for owner in ("ann", "bob", "cat", "dan", "eve"))
    store.add("eve", adapter(root, "good"))
    assert freed[3:] == ["ann"] and len(store.all()) == 4


def test_two_on_their_way_make_room_for_both(store, freed, root):
    for owner in ("ann", "bob", "cat", "dan"):
        store.add(owner, adapter(root, owner))
    store.add("eve", adapter(root, "eve"), lambda stored: store.add("fay", adapter(root, "fay")) and None)
    assert sorted(freed) == ["ann", "bob"] and [len(labels(store, owner)) for owner in ("eve", "fay")] == [1, 1]


def test_who_leaves_while_theirs_is_on_its_way_pushes_nobody_out(store, freed, root):
    for owner in ("ann", "bob", "cat", "dan"):
        store.add(owner, adapter(root, owner))
    store.add("eve", adapter(root, "eve"), lambda stored: store.leave("eve"))
    assert freed == ["eve"] and labels(store, "ann") == ["ann"] and store.notices("ann") == ()


def test_what_makes_room_may_leave_first(store, freed, root):
    for owner in ("ann", "bob", "cat", "dan"):
        store.add(owner, adapter(root, owner))
    store.add("eve", adapter(root, "eve"), lambda stored: store.leave("ann"))
    assert freed == ["ann"] and len(store.all()) == 4 and store.notices("ann") == ()


def test_many_threads_at_once_stay_within_the_limits(root):
    freed, errors, numbers = [], [], iter(range(10**6))
    store = AdapterStore(LIMITS, lambda stored: freed.append(stored.key))
    added: list[str] = []
    making = threading.Lock()

    def visit(owner: str, seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(40):
                with making:
                    new = adapter(root, f"{next(numbers)}", chance.randint(1, 60))
                try:
                    stored = store.add(owner, new)
                except AdapterError:
                    new.delete()
                    continue
                added.append(stored.key)
                try:
                    with store.use(stored.key) as used:
                        assert used.folder.is_dir()
                        if chance.random() < 0.3:
                            store.remove(stored.key)
                        assert used.folder.is_dir()
                except AdapterError:
                    pass
                mine = store.of(owner)
                assert len(mine) <= 2 and sum(h.adapter.row_bytes for h in mine) <= 100
            store.leave(owner)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=visit, args=(f"v{i}", i)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and sorted(freed) == sorted(added) and len(set(freed)) == len(freed)
    assert list(root.iterdir()) == []
