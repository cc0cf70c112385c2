"""Lean layers: what PEFT's own layers compute, and nothing of a model is left changed."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from backend.engine.steps.lean_layers import LeanLayers

GRADIENTS_FP32, GRADIENTS_BF16 = 1e-5, 0.1
LOSS_BF16 = 5e-3
IDS = torch.arange(3, 43)[None] % 90


def model_of(**options: object) -> PeftModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=96, attention_bias=True,
    )  # fmt: skip
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, **options}
    return get_peft_model(LlamaForCausalLM(config), LoraConfig(task_type="CAUSAL_LM", **settings))


@pytest.fixture(params=[{}, {"use_rslora": True}, {"target_modules": ["q_proj", "lm_head"]}])
def model(request: pytest.FixtureRequest) -> PeftModel:
    return model_of(**request.param)


def step(model: PeftModel, *, half: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of one step, and the gradients by parameter."""
    model.train()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), grads


def apart(ours: dict[str, torch.Tensor], plain: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == plain.keys()
    return max(float((ours[n] - plain[n]).norm() / plain[n].norm()) for n in plain)


def _require_same_as_peft(model: PeftModel) -> None:
    loss, plain = step(model)
    lean = LeanLayers(model, keeps=True)
    found, ours = step(model)
    lean.leave()

    assert found == pytest.approx(loss, rel=1e-6)
    assert apart(ours, plain) < GRADIENTS_FP32


def test_losses_and_gradients_are_those_of_peft(model: PeftModel) -> None:
    _require_same_as_peft(model)


@pytest.mark.parametrize("keeps", [True, False])
def test_in_bf16_they_are_as_near_to_fp32_as_those_of_peft(model: PeftModel, keeps: bool) -> None:
    exact, grads = step(model)
    _, plain = step(model, half=True)
    lean = LeanLayers(model, keeps=keeps)
    found, ours = step(model, half=True)
    lean.leave()

    assert found == pytest.approx(exact, rel=LOSS_BF16)
    assert apart(ours, grads) < max(GRADIENTS_BF16, 1.5 * apart(plain, grads))


def test_inputs_are_cast_once_for_the_layers_that_share_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of()
    lean = LeanLayers(model, keeps=True)
    step(model, half=True)
    casts: list[tuple[int, ...]] = []
    original = torch.Tensor.to

    def counted(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        if args == (torch.bfloat16,) and self.ndim == 3:
            casts.append(tuple(self.shape))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", counted)
    step(model, half=True)
    lean.leave()

    # Each layer has the input of q, k and v, and that of gate and up, and the head has one.
    assert 2 * 2 + 1 <= len(casts) <= 2 * 4 + 1


def test_dropout_reaches_the_adapter_alone() -> None:
    """One layer, compared with PEFT's own under the same mask; the base's part is never dropped."""
    model = model_of(lora_dropout=0.5).train()
    layer = model.base_model.model.model.layers[0].mlp.down_proj

    def one_pass() -> list[torch.Tensor]:
        torch.manual_seed(3)
        x = torch.linspace(-1, 1, 7 * 96).reshape(1, 7, 96).requires_grad_()
        weights = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        out = layer(x)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *weights])]

    plain = one_pass()
    lean = LeanLayers(model, keeps=True)
    ours = one_pass()
    lean.leave()

    for found, expected in zip(ours, plain, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_other_kinds_of_adapters_stay_with_peft() -> None:
    model = model_of(use_dora=True)
    _require_same_as_peft(model)


def test_two_active_adapters_stay_with_peft() -> None:
    model = model_of()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])
    _require_same_as_peft(model)


def test_an_adapter_that_changes_is_never_kept() -> None:
    """A frozen adapter is no frozen weight: it may be trained, and answer, in the same steps."""
    model = model_of()
    model.requires_grad_(False)
    lean = LeanLayers(model, keeps=True)
    before = _score(model)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.mul_(3)
    after = _score(model)
    lean.leave()

    assert not torch.equal(before, after)
    assert torch.allclose(after, _score(model), atol=0.05)


def _score(model: PeftModel) -> torch.Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=IDS).logits.float()


def test_layers_are_given_back_and_hooks_respected() -> None:
    model = model_of()
    watched = model.base_model.model.model.layers[0].self_attn.q_proj
    calls: list[int] = []
    handle = watched.register_forward_hook(lambda *_: calls.append(1))
    lean = LeanLayers(model, keeps=True)
    step(model)
    lean.leave()
    handle.remove()

    assert calls == [1]
    assert not [each for each in model.modules() if "forward" in vars(each)]
