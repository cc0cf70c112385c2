"""What the form says about a base before it is loaded."""

from typing import Any

from backend import results as rs
from tests.ui.fake_facts import FACTS
from ui.adapters.base_facts import base_facts
from ui.adapters.quantization_table import quantization_table

NOTE = "x.gguf (Q4_K, 4 GB) will be converted once, into a folder of 14 GB in bf16."


def words(node: Any) -> str:
    """Return all text of a tree."""
    return node if isinstance(node, str) else " ".join(words(child) for child in node[2])


def table(note: str) -> rs.QuantizationTable:
    choice = rs.QuantizationChoice(
        quantization="none",
        title="full precision",
        memory_bytes=1,
        run_bytes=1,
        relative_seconds=1.0,
        fits=True,
        summary="",
        can="",
        cannot="",
    )
    return rs.QuantizationTable(
        source="x.gguf",
        precision="bf16",
        device="cpu",
        parameters=1,
        free_bytes=1,
        choices=[choice],
        recommended="none",
        reason="It fits.",
        speed_from="measured",
        note=note,
    )


def test_a_conversion_is_announced_before_the_recommendation() -> None:
    shown = words(quantization_table(table(NOTE), "none"))

    assert NOTE in shown
    assert shown.index(NOTE) < shown.index("Recommended")
    assert "converted" not in words(quantization_table(table(""), "none"))


def test_a_refusal_stands_beside_the_format_and_the_kind_of_the_files_is_chosen() -> None:
    found = table("")
    other = found.choices[0].model_copy(
        update={"quantization": "int8", "title": "8-bit", "blocker": "They are already in nf4."}
    )
    found = found.model_copy(update={"choices": [found.choices[0], other]})

    shown = quantization_table(found, "nf4")
    text = words(shown)

    assert text.count("Chosen") == 1
    assert "8-bit They are already in nf4. 1 bytes" in text
    assert text == words(quantization_table(found, "none"))


def test_the_facts_name_the_file() -> None:
    origin = "converted from x.gguf (Q4_K)"

    assert origin in words(base_facts(FACTS.model_copy(update={"origin": origin})))
    assert "Origin" not in words(base_facts(FACTS))
