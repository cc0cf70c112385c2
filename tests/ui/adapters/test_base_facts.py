"""The card of the loaded base."""

from tests.ui.fake_facts import FACTS
from ui.adapters.base_facts import base_facts


def test_parts_that_no_adapter_changes_are_listed() -> None:
    part = "the vision tower (27 layers, 412 M parameters)"
    facts = FACTS.model_copy(update={"untouched": [part]})

    assert part in str(base_facts(facts))
    assert "Not adapted" not in str(base_facts(FACTS))


def test_a_base_without_a_context_length_says_so() -> None:
    facts = FACTS.model_copy(update={"context_length": 0})

    assert "its configuration names none" in str(base_facts(facts))
