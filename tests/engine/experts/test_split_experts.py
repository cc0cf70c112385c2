"""Adapters of Transformers 4, with factors for each expert, against weights merged by hand."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from backend import requests as rq
from backend.errors import ModelError, Unsupported
from tests.architectures.tiny_models import write_model
from tests.engine import tiny

RANK, ALPHA = 2, 5
V4 = {"mixtral": ("w1", "w3", "w2")}
V5 = ("gate_proj", "up_proj", "down_proj")
Tensors = dict[str, torch.Tensor]


def made(folder: Path, base: Path, kind: str) -> list[float]:
    """Write an adapter as Transformers 4 had it; return the scores of the base with it merged."""
    model, generator = tiny.fresh(base), torch.Generator().manual_seed(0)
    tensors: Tensors = {}

    def change(path: str, outputs: int, inputs: int) -> torch.Tensor:
        down = 0.1 * torch.randn(RANK, inputs, generator=generator)
        up = 0.1 * torch.randn(outputs, RANK, generator=generator)
        tensors[f"base_model.model.{path}.lora_A.weight"] = down
        tensors[f"base_model.model.{path}.lora_B.weight"] = up
        return ALPHA / RANK * up @ down

    gate, up, down = V4.get(kind, V5)
    with torch.no_grad():
        for path, module in model.named_modules():
            if path.endswith("mlp.experts"):
                old = path.replace("mlp", "block_sparse_moe") if kind in V4 else path
                inner = module.gate_up_proj.shape[1] // 2
                for n, (joined, out) in enumerate(
                    zip(module.gate_up_proj, module.down_proj, strict=True)
                ):
                    joined[:inner] += change(f"{old}.{n}.{gate}", inner, joined.shape[1])
                    joined[inner:] += change(f"{old}.{n}.{up}", inner, joined.shape[1])
                    out += change(f"{old}.{n}.{down}", *out.shape)
            elif isinstance(module, torch.nn.Linear) and path != "lm_head":
                module.weight += change(path, *module.weight.shape)
    write(folder, tensors)
    merged = shutil.copytree(base, folder.parent / "merged")
    model.save_pretrained(merged)
    return tiny.plain_scores(merged, None)


def write(folder: Path, tensors: Tensors) -> None:
    leaves = sorted({key.split(".lora_")[0].rsplit(".", 1)[-1] for key in tensors})
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.05, target_modules=leaves, task_type="CAUSAL_LM"
    )
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_they_compute_as_merged_by_hand(tmp_path: Path, kind: str) -> None:
    """On DeepSeek-V3, PEFT 0.21.2 would drop the shared experts without a word."""
    base = write_model(tmp_path / "base", kind)
    expected = made(tmp_path / "old", base, kind)
    with tiny.start_service(tmp_path / "workspace", base) as service:
        loaded = service.start(rq.LoadAdapter(source=str(tmp_path / "old"), name="old"))
        notes = loaded.result(timeout=60).notes
        request = rq.Score(texts=list(tiny.TEXTS), variants=[[("old", 1.0)]])
        found = service.start(request).result(timeout=60).scores[0]

    assert found == pytest.approx(expected, rel=1e-6)
    assert notes[0].startswith("It has factors for each expert, as Transformers 4 had them;")


def test_a_part_of_each_expert_alone_is_refused_as_such(tmp_path: Path) -> None:
    """PEFT 0.21.2 loads gate and up alone without a word, and computes something else."""
    base = write_model(tmp_path / "base", "qwen3_moe")
    made(tmp_path / "old", base, "qwen3_moe")
    tensors = load_file(tmp_path / "old" / "adapter_model.safetensors")
    with tiny.start_service(tmp_path / "workspace", base) as service:
        for left_out in ("down_proj", "up_proj"):
            write(tmp_path / left_out, {k: t for k, t in tensors.items() if left_out not in k})
            with pytest.raises(Unsupported, match="changes only some of the parts of each expert"):
                service.start(rq.LoadAdapter(source=str(tmp_path / left_out))).result(timeout=60)
        assert service.snapshot().adapters == []


def test_an_expert_without_one_of_its_factors_is_refused(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", "qwen3_moe")
    made(tmp_path / "old", base, "qwen3_moe")
    tensors = load_file(tmp_path / "old" / "adapter_model.safetensors")
    write(tmp_path / "cut", {k: t for k, t in tensors.items() if "experts.1.up_proj" not in k})
    with tiny.start_service(tmp_path / "workspace", base) as service:
        with pytest.raises(ModelError, match="factors of the experts in cut do not fit together"):
            service.start(rq.LoadAdapter(source=str(tmp_path / "cut"))).result(timeout=60)
        assert service.snapshot().adapters == []


def test_experts_are_refused_on_a_dense_base_without_internal_names(tmp_path: Path) -> None:
    mixture = write_model(tmp_path / "mixture", "qwen3_moe")
    both = ["experts.gate_up_proj", "experts.down_proj"]
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=[], target_parameters=both)
    made_there = tiny.write_adapter(tmp_path / "there", mixture, config)
    dense = write_model(tmp_path / "dense", "qwen3")
    with tiny.start_service(tmp_path / "workspace", dense) as service:
        report = service.start(rq.InspectAdapter(source=str(made_there))).result(timeout=60)
        with pytest.raises(ModelError, match="parameters that this base does not have") as caught:
            service.start(rq.LoadAdapter(source=str(made_there))).result(timeout=60)

    assert report.reasons[0].what == caught.value.what
    assert "base_layer" not in str(caught.value)
