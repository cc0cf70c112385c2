"""A dozen types of every kind through the whole app, each step compared with plain PEFT.

`benchmarks.architectures` does the same for every type that Transformers lists.
"""

import pytest

from tests.architectures.cycle import STEPS, run

DOZEN = (
    "bloom",  # ALiBi
    "deepseek_v3",  # latent attention, experts as parameters
    "falcon",  # linear layers of its own
    "gemma3",  # a text part beside a vision tower
    "gpt_oss",  # attention sinks
    "jamba",  # recurrent layers and attention
    "mamba",  # no attention
    "opt",  # a position table with an offset
    "qwen2_moe",  # a gate of one output
    "qwen3_5",  # linear attention
    "qwen3_moe",  # experts as parameters
    "xglm",  # a position table that is computed
)


@pytest.mark.parametrize("kind", DOZEN)
def test_a_type_is_right_in_the_whole_cycle(kind: str) -> None:
    outcome = run(kind)
    assert outcome.plain == ""
    assert outcome.steps == dict.fromkeys(STEPS, "")
