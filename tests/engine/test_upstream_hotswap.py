"""Faults of PEFT's own hot-swap that our slot is built around; a failure here is good news.

Each test states what PEFT 0.21.2 and Transformers 5.23 do wrong. When one fails, upstream mended
it: say so in the module it names, and see whether our own way can become simpler.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

from tests.engine.tiny import fresh, lora, write_adapter, write_base

IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def write(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write an adapter of the base and return its folder."""

    def make(name: str, config: LoraConfig, seed: int = 0) -> Path:
        return write_adapter(tmp_path / name, base, config, seed=seed)

    return make


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS, use_cache=False).logits
    return found


def load(base: Path, folder: Path, name: str = "default") -> PeftModel:
    return PeftModel.from_pretrained(fresh(base), folder, adapter_name=name).eval()


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


def test_an_unpatterned_swap_is_exact_so_the_oracle_can_be_trusted(
    base: Path, write: Callable[..., Path]
) -> None:
    first, second = write("one", lora(r=8)), write("two", lora(r=4, lora_alpha=32), 1)
    model = load(base, first)
    prepare_model_for_compiled_hotswap(model, target_rank=8)

    hotswap_adapter(model, str(second), "default", torch_device="cpu")

    assert distance(logits(model), logits(load(base, second))) < 1e-4


def test_a_swap_zeroes_another_adapter_whose_name_contains_the_slots(
    base: Path, write: Callable[..., Path]
) -> None:
    """slot_layers.py"""
    formal, other = write("formal", lora(r=4)), write("other", lora(r=4), 1)
    model = load(base, other, "en")
    model.load_adapter(formal, "en_formal")
    model.set_adapter("en_formal")
    before = logits(model)
    model.set_adapter("en")

    hotswap_adapter(model, str(other), "en", torch_device="cpu")

    model.set_adapter("en_formal")
    assert distance(logits(model), before) > 1e-2
    assert distance(logits(model), logits(fresh(base))) < 1e-5


def test_a_swap_ignores_patterns(base: Path, write: Callable[..., Path]) -> None:
    """slot_layers.py: `read_parts` takes each layer's scaling from a plain load."""
    config = lora(
        r=8, lora_alpha=8, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 32, "v_proj": 1}
    )
    patterned = write("patterned", config)
    model = load(base, patterned)
    before = logits(model)

    hotswap_adapter(model, str(patterned), "default", torch_device="cpu")

    assert distance(logits(model), before) > 1e-2


def test_a_swap_leaves_the_old_configuration(base: Path, write: Callable[..., Path]) -> None:
    """slot.py: the slot has no configuration of PEFT's."""
    model = load(base, write("old", lora(r=8, lora_alpha=8)))

    hotswap_adapter(
        model, str(write("new", lora(r=4, lora_alpha=32), 1)), "default", torch_device="cpu"
    )

    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha) == (8, 8)


def test_a_prepared_adapter_is_saved_wrong(
    base: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    """hotswap.py: `save_copy` copies the adapter's own files."""
    model = load(base, write("small", lora(r=4, lora_alpha=8)))
    before = logits(model)
    prepare_model_for_compiled_hotswap(model, target_rank=16, config=model.peft_config)

    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)

    assert distance(logits(load(base, tmp_path / "saved")), before) > 1e-2


def test_a_strength_after_a_swap_takes_the_old_scaling(
    base: Path, write: Callable[..., Path]
) -> None:
    """slot.py: the strength multiplies the scalings in the slot."""
    second = write("strong", lora(r=8, lora_alpha=64), 1)
    model = load(base, write("weak", lora(r=8, lora_alpha=8)))
    hotswap_adapter(model, str(second), "default", torch_device="cpu")

    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 1.0)

    assert distance(logits(model), logits(load(base, second))) > 1e-2


def test_a_pissa_adapter_is_swapped_in_wrong(base: Path, write: Callable[..., Path]) -> None:
    """hotswap.py: such adapters are refused, and plain_lora.py is the way out."""
    pissa = write("pissa", lora(r=8, init_lora_weights="pissa"))
    model = load(base, write("plain", lora(r=8)))

    hotswap_adapter(model, str(pissa), "default", torch_device="cpu")

    assert distance(logits(model), logits(load(base, pissa))) > 1e-2


def test_another_dropout_is_refused_though_answers_do_not_depend_on_it(
    base: Path, write: Callable[..., Path]
) -> None:
    """slot_layers.py: the slot has no dropout."""
    model = load(base, write("dry", lora(r=8)))

    with pytest.raises(ValueError, match="lora_dropout"):
        hotswap_adapter(model, str(write("wet", lora(r=8, lora_dropout=0.1))), "default")


def test_dora_and_rslora_cannot_take_turns_with_lora(
    base: Path, write: Callable[..., Path]
) -> None:
    """hotswap.py: rsLoRA can, by its scaling; DoRA is converted."""
    for option in ("use_rslora", "use_dora"):
        model = load(base, write(f"plain {option}", lora(r=8)))
        with pytest.raises(ValueError, match=option):
            hotswap_adapter(model, str(write(option, lora(r=8, **{option: True}))), "default")


def test_generate_does_not_use_what_a_compiled_peft_model_compiled(
    base: Path, write: Callable[..., Path]
) -> None:
    """compiling.py: the inner base model's call is compiled."""
    model = load(base, write("any", lora(r=8)))
    compiled: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> object:
        compiled.append(graph)
        return graph.forward

    for call in (model, torch.compile(model, backend=count)):
        if call is model:
            model.compile(backend=count)
        call.generate(
            input_ids=IDS,
            attention_mask=torch.ones_like(IDS),
            max_new_tokens=2,
            do_sample=False,
            pad_token_id=0,
        )
        model._compiled_call_impl = None

    assert compiled == []
