# SPDX-License-Identifier: Apache-2.0
"""Which tasks visitors may evaluate on."""

import pytest

from slim_core.webui.limits import LimitError
from slim_core.webui.state.offered_tasks import OfferedTasks


def test_the_demo_has_its_own_by_their_names_in_words():
    offered = OfferedTasks(is_demo=True)
    titles = {task.name: (task.title, task.kind, task.chosen) for task in offered.tasks}
    assert len(titles) == 9
    assert titles["demo_obqa"] == ("Things and animals (OpenBookQA form)", "downstream", True)
    assert titles["open_questions"] == ("Open questions answered in the trained form", "general", False)
    first, second = offered.load(["demo_sums", "demo_obqa"], 3)
    assert (len(first.items), len(second.items)) == (3, 3)


def test_other_bases_have_what_the_folder_has(tmp_path):
    assert [task.name for task in OfferedTasks(is_demo=False).tasks] == ["open_questions", "instructions"]
    (tmp_path / "openbookqa").mkdir()
    head = "ID\tQuestion Stem\tChoices\tComplete Question\tAnswer Key\n"
    (tmp_path / "openbookqa" / "test.tsv").write_text(f"{head}1\tIce is\t(A) cold (B) hot (C) dry (D) old\t-\tA\n")
    (tmp_path / "boolq-with-passage").mkdir()
    (tmp_path / "boolq-with-passage" / "dev.jsonl").write_text("no JSON\n")
    first, *others = OfferedTasks(is_demo=False, data_dir=tmp_path).tasks
    assert first.title == "Elementary science, as in OpenBookQA" and first.chosen
    assert [(task.name, task.chosen) for task in others] == [("open_questions", False), ("instructions", False)]


@pytest.mark.parametrize("names", [None, "demo_sums", [3], ["demo_sums", "/etc/passwd"], [["demo_sums"]]])
def test_what_is_not_offered_is_refused(names):
    with pytest.raises(LimitError, match="not offered here"):
        OfferedTasks(is_demo=True).check(names)


def test_nothing_chosen_is_a_sentence():
    offered = OfferedTasks(is_demo=True)
    with pytest.raises(LimitError, match="Choose at least one task"):
        offered.check([])
    assert offered.check(["demo_facts", "demo_sums", "demo_facts"]) == ["demo_sums", "demo_facts"]
