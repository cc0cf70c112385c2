"""What a new adapter trains: layers are named as PEFT reads them, left out, or refused."""

from functools import lru_cache

import pytest

from backend import requests as rq
from backend.engine.methods import peft_io
from backend.engine.methods.adaptable import adaptable, places, require_unchanged
from backend.engine.methods.coexistence import require_placed
from backend.engine.methods.target_choice import choose
from backend.engine.methods.targets import count_trainable, matched
from backend.engine.models.linear_layers import Target
from backend.errors import InvalidRequest
from tests.architectures.tiny_models import tiny_model

MIXTURES = ["deepseek_v3", "glm4_moe", "mixtral", "qwen2_moe", "gpt_oss", "granitemoe", "jetmoe"]


@lru_cache(2)
def targets_of(kind: str) -> list[Target]:
    return adaptable(tiny_model(kind))


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("kind", MIXTURES)
def test_peft_adapts_what_was_chosen_and_nothing_else(kind: str, experts: bool) -> None:
    model = tiny_model(kind)
    model.name_or_path = kind
    targets = adaptable(model)
    config = peft_io.configure(rq.Lora(rank=2, experts=experts), targets, kind)
    wanted = matched(config, targets)

    require_unchanged(config, model)
    peft = peft_io.apply(model, None, config, "ad_test")

    require_placed(peft_io.adapted_layers(model), config, targets, "ad_test")
    trained = sum(p.numel() for name, p in peft.named_parameters() if ".lora_" in name)
    assert trained == count_trainable(config, wanted)
    assert {each.kind for each in wanted} >= ({"layer", "experts"} if experts else {"layer"})
    assert adaptable(model) == targets  # also with an adapter on it


def test_names_that_peft_takes_for_experts_are_left_out_with_a_note() -> None:
    chosen = choose(rq.Lora(rank=2), targets_of("deepseek_v3"))

    assert not {"gate_proj", "up_proj", "down_proj"} & set(chosen.modules)
    assert chosen.notes == [
        "6 layers, whose names PEFT takes for those of experts, are left out: gate_proj, up_proj, "
        "down_proj. Train the experts, too, to reach them."
    ]


def test_with_experts_they_are_reached_as_parameters() -> None:
    chosen = choose(rq.Lora(rank=2, experts=True), targets_of("deepseek_v3"))

    assert {"experts.gate_up_proj", "experts.down_proj", "gate_proj.weight"} <= set(
        chosen.parameters
    )
    assert chosen.notes == []


def test_a_name_that_peft_takes_for_an_expert_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose(rq.Lora(rank=2, targets=["q_a_proj", "gate_proj"]), targets_of("deepseek_v3"))

    assert str(caught.value) == (
        "PEFT takes gate_proj of this base for names of its experts. "
        "Leave out these names, or turn on: Train the experts, too."
    )


def test_a_layer_that_is_too_narrow_is_left_out_with_a_note() -> None:
    chosen = choose(rq.Lora(rank=8), targets_of("qwen2_moe"))

    assert "shared_expert_gate" not in chosen.modules
    assert chosen.notes == ["2 layers too narrow for rank 8 are left out: shared_expert_gate."]


def test_a_narrow_layer_by_name_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose(rq.Lora(rank=8, targets=["q_proj", "shared_expert_gate"]), targets_of("qwen2_moe"))

    assert str(caught.value) == (
        "Rank 8 is larger than the smallest target layer allows (1). "
        "Choose a rank up to 1, or leave out shared_expert_gate."
    )


@pytest.mark.parametrize(
    ("targets", "cure"),
    [
        ("all-linear", "Choose a rank up to 32."),
        (
            ["q_proj", "shared_expert_gate"],
            "Choose a rank up to 1, or up to 32 without shared_expert_gate.",
        ),
        (["shared_expert_gate"], "Choose a rank up to 1."),
    ],
)
def test_the_largest_rank_that_works_is_named(targets: str | list[str], cure: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose(rq.Lora(rank=64, targets=targets), targets_of("qwen2_moe"))

    assert caught.value.cure == cure


def test_layers_that_peft_does_not_adapt_are_left_out() -> None:
    chosen = choose(rq.Lora(rank=2), targets_of("mamba"))

    assert "out_proj" not in chosen.modules
    assert "2 layers are left out: out_proj. PEFT cannot adapt out_proj in mamba models." in (
        chosen.notes
    )
    with pytest.raises(InvalidRequest, match="PEFT cannot adapt out_proj in mamba models"):
        choose(rq.Lora(rank=2, targets=["out_proj"]), targets_of("mamba"))


@pytest.mark.parametrize(
    ("kind", "request_", "said"),
    [
        ("llama", rq.Lora(experts=True), "This base has no parameters of experts"),
        ("mixtral", rq.Lora(experts=True, use_dora=True), "PEFT cannot train the parameters"),
        ("mixtral", rq.Lora(experts=True, rank=512, targets=["q_proj"]), "Rank 512 is larger"),
    ],
)
def test_what_experts_cannot_do_is_refused(kind: str, request_: rq.Lora, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        choose(request_, targets_of(kind))


def test_dropout_is_off_where_parameters_are_adapted() -> None:
    request = rq.Lora(rank=2, experts=True, dropout=0.1)

    assert peft_io.configure(request, targets_of("mixtral"), "").lora_dropout == 0
    assert choose(request, targets_of("mixtral")).notes == [
        "Dropout is off: PEFT cannot apply it to the parameters of experts."
    ]


def test_a_quantised_base_leaves_out_what_only_a_parameter_reaches() -> None:
    chosen = choose(rq.Lora(rank=2, experts=True), targets_of("deepseek_v3"), quantized=True)

    assert chosen.parameters == ["experts.down_proj", "experts.gate_up_proj"]
    assert chosen.notes == [
        "6 layers that PEFT cannot reach on a quantised base are left out: gate_proj, up_proj, "
        "down_proj."
    ]
    with pytest.raises(InvalidRequest, match="PEFT cannot reach gate_proj of this base while"):
        choose(rq.Lora(rank=2, targets=["gate_proj"]), targets_of("deepseek_v3"), quantized=True)


def test_wrappers_nest_in_the_order_of_the_module() -> None:
    held = [each for each in targets_of("mixtral") if each.kind == "experts"][:2]

    assert list(places(held)) == [
        "model.layers.0.mlp.experts.base_layer",
        "model.layers.0.mlp.experts",
    ]
    assert [each.name.rpartition(".")[2] for each in held] == ["gate_up_proj", "down_proj"]


def test_layers_whose_adapter_peft_cannot_read_back_are_left_out() -> None:
    """Of Laguna, PEFT 0.21.2 renames the tensors of `shared_experts` when it reads an adapter."""
    targets = targets_of("laguna")
    refused = {each.name.split(".")[-2] for each in targets if "read an adapter" in each.refusal}
    assert refused == {"shared_experts"}
    config = peft_io.configure(rq.Lora(rank=2), targets, "laguna")
    names = {each.name for each in matched(config, targets)}
    assert "model.layers.0.mlp.gate_proj" in names
    assert not any("shared_experts" in name for name in names)
