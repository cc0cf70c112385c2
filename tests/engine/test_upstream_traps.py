"""Faults of PEFT and Transformers that give wrong results without an error; a failure is good news.

Each test asserts what PEFT 0.21.2 does wrong and names the guard that may go once it is mended.
Further ones stand beside what they guard: test_upstream_hotswap, test_combine (rsLoRA blends),
test_quantization (bitsandbytes) and test_batch (hooks).
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, convert_to_lora, get_peft_model
from peft.tuners import tuners_utils
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from tests.engine.tiny import fresh, lora, write_adapter, write_base

IDS = torch.arange(5, 25)[None]
WEIGHTS = "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj"
Write = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def still(wrong: bool, what: str, guard: str, library: Any = peft) -> None:
    """Assert that upstream is still wrong."""
    name = "PEFT" if library is peft else library.__name__.capitalize()
    assert wrong, f"{name} {library.__version__} mended {what}: the guard in {guard} may go."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), layers=2)


@pytest.fixture
def write(base: Path, tmp_path: Path) -> Write:
    """Write an adapter of the base and return its folder."""

    def make(name: str, config: LoraConfig, seed: int = 0) -> Path:
        return write_adapter(tmp_path / name, base, config, seed=seed)

    return make


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS, use_cache=False).logits
    return found


def load(base: Path, folder: Path, name: str = "default") -> PeftModel:
    return PeftModel.from_pretrained(fresh(base), folder, adapter_name=name).eval()


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


def changes(model: PeftModel, name: str) -> dict[str, torch.Tensor]:
    layers = ((key, part) for key, part in model.named_modules() if isinstance(part, LoraLayer))
    return {key: layer.get_delta_weight(name).detach() for key, layer in layers}


def gap(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    return max(distance(left[key], right[key]) for key in right)


# -- loading -------------------------------------------------------------------------------------


def test_base_weights_in_an_adapter_overwrite_the_base(base: Path, write: Write) -> None:
    folder = write("carrier", lora(r=2, target_modules=["q_proj"]))
    tensors = load_file(folder / WEIGHTS)
    tensors[f"{Q}.base_layer.weight"] = torch.zeros(64, 64)
    tensors["base_model.model.lm_head.weight"] = torch.zeros(
        fresh(base).lm_head.weight.shape  # the head decides every answer
    )
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    model = load(base, folder)

    with model.disable_adapter():
        zeroed = not logits(model).any()
    layer = model.get_submodule(Q).get_base_layer()
    still(zeroed and not layer.weight.any(), "base weights in adapters", "scan.py (_layer_names)")


def test_numbers_that_are_not_finite_load_in_silence(base: Path, write: Write) -> None:
    folder = write("broken", lora(r=2))
    tensors = load_file(folder / WEIGHTS)
    tensors[f"{Q}.lora_B.weight"].fill_(float("nan"))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    wrong = bool(logits(load(base, folder)).isnan().any())
    still(wrong, "NaN in adapters", "scan.py (scan)")


def test_a_foreign_regular_expression_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """`(([a-z0-9_.])+)+!` runs for ever; here it is enough that one would be run."""
    run = []

    def fullmatch(pattern: str, text: str) -> None:
        run.append(pattern)

    monkeypatch.setattr(re, "fullmatch", fullmatch)
    tuners_utils.check_target_module_exists(lora(target_modules="a+"), "model.q_proj")
    still(bool(run), "regular expressions as targets", "scan.py (_plain_targets)")


def test_loading_into_a_name_keeps_the_old_configuration(base: Path, write: Write) -> None:
    weak = write("weak", lora(r=4, lora_alpha=4))
    strong = write("strong", lora(r=4, lora_alpha=64), 1)
    model = load(base, weak, "one")
    model.load_adapter(strong, "one")
    wrong = distance(logits(model), logits(load(base, strong))) > 1e-2
    still(wrong, "load_adapter into an existing name", "lifecycle.py (an id for each adapter)")


def test_a_failed_load_leaves_half_an_adapter(base: Path, write: Write, tmp_path: Path) -> None:
    model = load(base, write("good", lora(r=2)), "one")
    other = LlamaForCausalLM(LlamaConfig.from_pretrained(base, hidden_size=32, head_dim=8))
    get_peft_model(other, lora(r=2)).save_pretrained(tmp_path / "bad", save_embedding_layers=False)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(tmp_path / "bad", "two")
    still("two" in model.peft_config, "half-made adapters", "adapters.py (load_plainly)")


def test_an_adapter_of_fewer_layers_loads_with_empty_ones(base: Path, write: Write) -> None:
    folder = write("short", lora(r=2))
    tensors = {k: t for k, t in load_file(folder / WEIGHTS).items() if "layers.0." in k}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    layer = load(base, folder).get_submodule(Q.replace("layers.0", "layers.1"))
    wrong = "default" in layer.lora_A and not layer.lora_B["default"].weight.any()
    still(wrong, "adapters of fewer layers", "scan.py (_require_same_layers)")


def test_pissa_changes_the_base_under_the_others(base: Path, write: Write) -> None:
    plain, pissa = write("plain", lora(r=4)), write("pissa", lora(r=4, init_lora_weights="pissa"))
    model = load(base, plain, "plain")
    before = logits(model)
    model.load_adapter(pissa, "pissa")
    still(distance(logits(model), before) > 1e-2, "PiSSA beside others", "lifecycle.py (_baked)")


# -- names and switching -------------------------------------------------------------------------


def test_an_adapter_called_like_a_module_spoils_the_saving_of_another(
    base: Path, write: Write, tmp_path: Path
) -> None:
    folder = write("good", lora(r=2))
    model = load(base, folder, "good")
    model.load_adapter(folder, "self_attn")
    model.save_pretrained(tmp_path / "out", save_embedding_layers=False)
    saved = load_file(tmp_path / "out" / "good" / WEIGHTS)
    wrong = saved.keys() != load_file(folder / WEIGHTS).keys()
    still(wrong, "names of modules (issue 3584)", "library.py (new_adapter_id)")


def test_a_misspelt_adapter_switches_all_off(base: Path, write: Write) -> None:
    model = load(base, write("good", lora(r=2)), "good")
    model.base_model.set_adapter(["god"])
    wrong = distance(logits(model), logits(fresh(base))) < 1e-6
    still(wrong, "unknown names in set_adapter", "session.py (resolve)")


def test_switching_makes_an_adapter_learn(base: Path, write: Write) -> None:
    model = load(base, write("good", lora(r=2)), "good")
    model.set_adapter("good")
    wrong = any(parameter.requires_grad for parameter in model.parameters())
    still(wrong, "set_adapter for inference", "session.py (activate)")


def test_deleting_the_last_adapter_breaks_the_model(base: Path, write: Write) -> None:
    model = load(base, write("good", lora(r=2)), "good")
    model.delete_adapter("good")
    try:
        logits(model)
        wrong = False
    except KeyError:
        wrong = True
    still(wrong, "the last adapter's deletion", "session.py (drop)")


def test_dora_without_strength_is_not_the_base(base: Path, write: Write) -> None:
    model = load(base, write("dora", lora(r=4, use_dora=True)))
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("default", 0.0)
    wrong = distance(logits(model), logits(fresh(base))) > 1e-2
    still(wrong, "DoRA's strength", "session.py (_require_strength)")


def test_whole_layers_of_an_adapter_do_not_scale(base: Path, tmp_path: Path) -> None:
    model = get_peft_model(
        fresh(base), lora(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    )
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data.mul_(1.5)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("default", 0.0)
    wrong = distance(logits(model), logits(fresh(base))) > 1e-2
    still(wrong, "the strength of modules_to_save", "scan.py (_REFUSED)")


def test_saving_writes_every_adapter(base: Path, write: Write, tmp_path: Path) -> None:
    """What a checkpoint of Trainer therefore does, and what resuming brings back."""
    model = load(base, write("one", lora(r=2)), "one")
    model.load_adapter(write("two", lora(r=2), 1), "two")
    model.save_pretrained(tmp_path / "out", save_embedding_layers=False)
    wrong = (tmp_path / "out" / "two" / WEIGHTS).exists()
    still(wrong, "checkpoints of several adapters", "trainer.py")


# -- blending ------------------------------------------------------------------------------------


def test_a_blend_forgets_dora_magnitudes(base: Path, write: Write) -> None:
    model = load(base, write("dora", lora(r=4, use_dora=True)), "dora")
    before = logits(model)
    model.add_weighted_adapter(["dora"], [1.0], "blend", combination_type="cat")
    model.base_model.set_adapter("blend")
    layers = [part for part in model.modules() if isinstance(part, LoraLayer)]
    wrong = any("blend" not in layer.lora_magnitude_vector for layer in layers) or (
        distance(logits(model), before) > 1e-3
    )
    still(wrong, "blends of DoRA", "factors.py")


def test_a_failed_blend_leaves_an_empty_adapter_that_a_retry_takes_for_done(
    base: Path, write: Write
) -> None:
    model = load(base, write("one", lora(r=2)), "one")
    model.load_adapter(write("two", lora(r=2), 1), "two")
    ties = {"adapters": ["one", "two"], "weights": [1.0, 1.0], "combination_type": "ties"}
    with pytest.raises(TypeError):
        model.add_weighted_adapter(**ties, adapter_name="blend", density=None)
    wrong = "blend" in model.peft_config
    model.add_weighted_adapter(**ties, adapter_name="blend", density=0.5)
    wrong &= not any(change.any() for change in changes(model, "blend").values())
    still(wrong, "failed blends", "combine.py")


def test_a_blend_with_pissa_changes_the_base(base: Path, write: Write) -> None:
    model = load(base, write("pissa", lora(r=4, init_lora_weights="pissa")), "pissa")
    before = logits(model)
    model.add_weighted_adapter(["pissa"], [1.0], "blend", combination_type="cat")
    model.set_adapter("pissa")
    still(distance(logits(model), before) > 1e-2, "blends of PiSSA", "lifecycle.py (_baked)")


def test_linear_blends_are_not_the_weighted_sum(base: Path, write: Write) -> None:
    model = load(base, write("one", lora(r=2)), "one")
    model.load_adapter(write("two", lora(r=2), 1), "two")
    model.add_weighted_adapter(["one", "two"], [0.7, 0.3], "blend", combination_type="linear")
    one, two = changes(model, "one"), changes(model, "two")
    wanted = {key: 0.7 * one[key] + 0.3 * two[key] for key in one}
    wrong = gap(changes(model, "blend"), wanted) > 1e-2
    still(wrong, "cross terms of linear blends (issue 3004)", "blends.py")


def test_a_list_of_weights_that_is_too_short_is_cut_off(base: Path, write: Write) -> None:
    model = load(base, write("one", lora(r=2)), "one")
    model.load_adapter(write("two", lora(r=2), 1), "two")
    model.add_weighted_adapter(["one", "two"], [1.0], "blend", combination_type="cat")
    wrong = gap(changes(model, "blend"), changes(model, "one")) < 1e-5
    still(wrong, "weights that are missing", "requests/blending.py")


def test_converting_dora_drops_its_magnitudes(base: Path, write: Write) -> None:
    model = load(base, write("dora", lora(r=4, use_dora=True, target_modules=["q_proj"])))
    before = logits(model)
    config, tensors = convert_to_lora(model, 64)
    plain = get_peft_model(fresh(base), config)
    peft.set_peft_model_state_dict(plain, tensors)
    still(distance(logits(plain), before) > 1e-3, "convert_to_lora of DoRA", "conversion.py")


# -- merging -------------------------------------------------------------------------------------


def test_unloading_a_merged_model_keeps_the_change(base: Path, write: Write) -> None:
    model = load(base, write("good", lora(r=2)))
    model.merge_adapter()
    wrong = distance(logits(model.unload()), logits(fresh(base))) > 1e-2
    still(wrong, "unload() while merged", "merge.py (never merges in the session)")


def test_a_merge_that_fails_half_way_leaves_a_half_merged_base(base: Path, write: Write) -> None:
    model = load(base, write("broken", lora(r=2)))
    last = model.get_submodule(Q.replace("layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"))
    last.lora_B["default"].weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)
    wrong = distance(logits(model.unload()), logits(fresh(base))) > 1e-2
    still(wrong, "merges that fail", "merge.py (never merges in the session)")


def test_a_misspelt_adapter_is_not_merged_in_silence(base: Path, write: Write) -> None:
    model = load(base, write("good", lora(r=2)), "good")
    merged = model.merge_and_unload(adapter_names=["god"])
    wrong = distance(logits(merged), logits(fresh(base))) < 1e-6
    still(wrong, "unknown names in merge_and_unload", "merging.py (check_variant)")


def test_strength_between_merge_and_unmerge_spoils_the_base(base: Path, write: Write) -> None:
    model = load(base, write("good", lora(r=2)))
    model.merge_adapter()
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("default", 0.3)
    model.unmerge_adapter()
    wrong = distance(logits(model.unload()), logits(fresh(base))) > 1e-2
    still(wrong, "set_scale while merged", "merge.py (never merges in the session)")


def test_repeated_layers_merge_wrongly(base: Path) -> None:
    torch.manual_seed(0)
    config = lora(r=2, layer_replication=[[0, 2], [1, 2]], init_lora_weights=False)
    model = get_peft_model(fresh(base), config)
    before = logits(model)
    wrong = distance(logits(model.merge_and_unload()), before) > 1e-3
    still(wrong, "merges of layer_replication", "scan.py (_REFUSED)")


def test_a_merge_into_tied_embeddings_is_wrong(base: Path) -> None:
    torch.manual_seed(0)
    tied = LlamaForCausalLM(LlamaConfig.from_pretrained(base, tie_word_embeddings=True))
    config = lora(r=2, target_modules=["embed_tokens"], init_lora_weights=False)
    model = get_peft_model(tied, config)
    before = logits(model)
    wrong = distance(logits(model.merge_and_unload()), before) > 1e-3
    still(wrong, "merges into tied embeddings", "scan.py (_require_same_layers)")


# -- training ------------------------------------------------------------------------------------


def test_packed_documents_see_each_other_by_default(base: Path) -> None:
    model = fresh(base)
    packed = torch.cat([IDS, IDS.flip(1)], 1)
    places = torch.cat([torch.arange(20), torch.arange(20)])[None]

    def second(**options: Any) -> torch.Tensor:
        with torch.no_grad():
            found = model(packed, position_ids=places, **options).logits
        return found[:, 20:]

    with torch.no_grad():
        alone = model(IDS.flip(1), use_cache=False).logits
    assert distance(second(use_cache=False), alone) < 1e-4
    wrong = distance(second(use_cache=True), alone) > 1e-2
    still(wrong, "packing with a cache", "attention.py and steps.py", transformers)


def test_a_bf16_run_leaves_autocast_behind(base: Path, tmp_path: Path) -> None:
    model = get_peft_model(fresh(base), lora(r=2))
    before = logits(model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        bf16=True,
        use_cpu=True,
        max_steps=1,
        learning_rate=0.0,
        weight_decay=0.0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data: Any = [{"input_ids": IDS[0], "labels": IDS[0]}] * 8
    Trainer(model=model, args=arguments, train_dataset=data).train()
    wrong = distance(logits(model), before) > 1e-4
    still(wrong, "Trainer(bf16=True)", "trainer.py (autocast of our own)", transformers)
