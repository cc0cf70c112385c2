"""Faults of PEFT's own hot-swap, and of Transformers', that our slot is built around."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

from tests.engine.tiny import fresh, lora
from tests.engine.upstream.plain_models import IDS, Write, distance, load, logits, set_strength
from tests.engine.upstream.still import assert_still

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def test_an_unpatterned_swap_is_exact_so_the_oracle_can_be_trusted(
    base: Path, write: Write
) -> None:
    first, second = write("one", lora(r=8)), write("two", lora(r=4, lora_alpha=32), 1)
    model = load(base, first)
    prepare_model_for_compiled_hotswap(model, target_rank=8)

    hotswap_adapter(model, str(second), "default", torch_device="cpu")

    assert distance(logits(model), logits(load(base, second))) < 1e-4


def test_a_swap_zeroes_another_adapter_whose_name_contains_the_slots(
    base: Path, write: Write
) -> None:
    formal, other = write("formal", lora(r=4)), write("other", lora(r=4), 1)
    model = load(base, other, "en")
    model.load_adapter(formal, "en_formal")
    model.set_adapter("en_formal")
    before = logits(model)
    model.set_adapter("en")

    hotswap_adapter(model, str(other), "en", torch_device="cpu")

    model.set_adapter("en_formal")
    wrong = distance(logits(model), before) > 1e-2
    wrong &= distance(logits(model), logits(fresh(base))) < 1e-5
    assert_still(wrong, "swaps beside adapters of a longer name", "slot_layers.py (SlotLayer)")


def test_a_swap_ignores_patterns(base: Path, write: Write) -> None:
    config = lora(
        r=8, lora_alpha=8, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 32, "v_proj": 1}
    )
    patterned = write("patterned", config)
    model = load(base, patterned)
    before = logits(model)

    hotswap_adapter(model, str(patterned), "default", torch_device="cpu")

    wrong = distance(logits(model), before) > 1e-2
    assert_still(wrong, "swaps with patterns (issue 3738)", "slot_layers.py (read_parts)")


def test_a_swap_leaves_the_old_configuration_and_is_saved_with_it(
    base: Path, write: Write, tmp_path: Path
) -> None:
    model = load(base, write("old", lora(r=8, lora_alpha=8)))
    new = write("new", lora(r=4, lora_alpha=32), 1)
    hotswap_adapter(model, str(new), "default", torch_device="cpu")
    config = model.peft_config["default"]
    stale = (config.r, config.lora_alpha) == (8, 8)

    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)

    wrong = stale and distance(logits(load(base, tmp_path / "saved")), logits(model)) > 1e-2
    assert_still(wrong, "configurations after a swap (issue 3581)", "prepare.py (save_copy)")


def test_a_prepared_adapter_is_saved_wrong(base: Path, write: Write, tmp_path: Path) -> None:
    model = load(base, write("small", lora(r=4, lora_alpha=8)))
    before = logits(model)
    prepare_model_for_compiled_hotswap(model, target_rank=16, config=model.peft_config)

    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)

    wrong = distance(logits(load(base, tmp_path / "saved")), before) > 1e-2
    assert_still(wrong, "saving of prepared adapters", "prepare.py (save_copy)")


def test_a_strength_after_a_swap_takes_the_old_scaling(base: Path, write: Write) -> None:
    second = write("strong", lora(r=8, lora_alpha=64), 1)
    model = load(base, write("weak", lora(r=8, lora_alpha=8)))
    hotswap_adapter(model, str(second), "default", torch_device="cpu")

    set_strength(model, 1.0)

    wrong = distance(logits(model), logits(load(base, second))) > 1e-2
    assert_still(wrong, "set_scale after a swap", "slot.py (Slot.swap)")


def test_a_pissa_adapter_is_swapped_in_wrong(base: Path, write: Write) -> None:
    pissa = write("pissa", lora(r=8, init_lora_weights="pissa"))
    model = load(base, write("plain", lora(r=8)))

    hotswap_adapter(model, str(pissa), "default", torch_device="cpu")

    wrong = distance(logits(model), logits(load(base, pissa))) > 1e-2
    assert_still(wrong, "swaps of PiSSA", "prepare.py (_require_fit)")


def refuses(model: PeftModel, folder: Path, word: str) -> bool:
    try:
        hotswap_adapter(model, str(folder), "default")
    except ValueError as error:
        return word in str(error)
    return False


def test_another_dropout_is_refused_though_answers_do_not_depend_on_it(
    base: Path, write: Write
) -> None:
    model = load(base, write("dry", lora(r=8)))

    wrong = refuses(model, write("wet", lora(r=8, lora_dropout=0.1)), "lora_dropout")
    assert_still(wrong, "swaps with another dropout", "slot_layers.py (SlotLayer)")


def test_dora_and_rslora_cannot_take_turns_with_lora(base: Path, write: Write) -> None:
    """In our slot rsLoRA can, by its scaling; DoRA is converted."""
    for option in ("use_rslora", "use_dora"):
        model = load(base, write(f"plain {option}", lora(r=8)))
        wrong = refuses(model, write(option, lora(r=8, **{option: True})), option)
        assert_still(wrong, f"swaps with {option}", "prepare.py (_require_fit)")


def test_generate_does_not_use_what_a_compiled_peft_model_compiled(
    base: Path, write: Write
) -> None:
    model = load(base, write("any", lora(r=8)))
    compiled: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> object:
        compiled.append(graph)
        return graph.forward

    def answer(call: Any) -> None:
        call.generate(
            input_ids=IDS,
            attention_mask=torch.ones_like(IDS),
            max_new_tokens=2,
            do_sample=False,
            pad_token_id=0,
        )

    answer(torch.compile(model, backend=count))
    model.compile(backend=count)
    answer(model)
    model._compiled_call_impl = None
    unused = not compiled
    model.get_base_model().compile(backend=count)
    answer(model)

    assert compiled  # counting works, where what is compiled is used
    assert_still(unused, "compiling for generate", "compiling.py (install)")


def test_swaps_by_transformers_keep_the_old_scaling(base: Path, write: Write) -> None:
    """Where ranks differ, they fail with an error; a repair is proposed (PR 45682)."""
    weak, strong = write("weak", lora(r=4, lora_alpha=4)), write("strong", lora(r=4), 1)
    model = fresh(base)
    model.load_adapter(str(weak), adapter_name="slot")
    model.load_adapter(str(strong), adapter_name="slot", hotswap=True)
    moved = distance(logits(model), logits(load(base, weak)))

    wrong = moved > 1e-2 and distance(logits(model), logits(load(base, strong))) > 1e-2
    assert_still(wrong, "hot-swaps", "slot.py (Slot.swap)", transformers)
