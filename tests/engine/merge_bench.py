"""A small base on disk with random adapters for it, and plain PEFT as the oracle of merging."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from backend import requests as rq
from backend import results as rs
from backend.engine.core.job_control import Control
from backend.engine.merging import merge
from backend.engine.models import loading
from backend.library import Library, new_adapter_id
from backend.settings import STARTER

SILENT = Control(0, lambda message: None)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "wide": {"r": 8, "lora_alpha": 4, "target_modules": "all-linear"},
    "rslora": {"r": 8, "use_rslora": True, "target_modules": ["q_proj", "gate_proj"]},
    "dora": {"r": 4, "use_dora": True, "target_modules": ["q_proj", "o_proj", "up_proj"]},
    "dora2": {"r": 2, "use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 6},
        "alpha_pattern": {"k_proj": 32},
    },
}


class Bench:
    """A small base on disk, loaded facts, and a library of random adapters made for it."""

    def __init__(self, root: Path, *, tied: bool = True, precision: str = "fp32") -> None:
        self.root = root
        self.folder = small_llama(root / "base", tied=tied)
        self.library = Library(root / "adapters")
        self.precision = precision
        self.facts = self.load()

    def load(self) -> rs.ModelFacts:
        request = rq.LoadModel(source=str(self.folder), precision=self.precision)
        return loading.load(request, SILENT).facts

    def add(self, name: str, **changes: Any) -> rs.AdapterInfo:
        config = LoraConfig(**{**ADAPTERS.get(name, ADAPTERS["lora"]), "task_type": "CAUSAL_LM"})
        id = new_adapter_id()
        base = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        model = get_peft_model(base, config, adapter_name=id)
        torch.manual_seed(sum(name.encode()))
        for key, parameter in model.named_parameters():
            if ".lora_B." in key:
                parameter.data.normal_(0, 0.05)
            if "magnitude" in key:
                parameter.data.mul_(1 + 0.2 * torch.rand_like(parameter))
        model.save_pretrained(str(self.root / "saved"), save_embedding_layers=False)
        self.library.root.mkdir(exist_ok=True)
        (self.root / "saved" / id).rename(self.library.folder(id))
        fields = {
            "id": id, "name": name, "colour": "#000000", "method": "LoRA", "rank": config.r,
            "parameters": 100, "base_name": "base", "created": time.time(),
            "base_fingerprint": self.facts.fingerprint,
        }  # fmt: skip
        info = rs.AdapterInfo(**{**fields, **changes})
        self.library.write_sidecar(self.library.folder(id), info)
        return info

    def merge(self, *variant: str | tuple[str, float], to: str = "merged", **fields: Any) -> Any:
        pairs = [(each, 1.0) if isinstance(each, str) else each for each in variant]
        request = rq.Merge(variant=pairs, destination=str(self.root / to), **fields)
        control = fields.pop("control", SILENT)
        return merge.merge(request, control, library=self.library, base=self.facts)

    def left_behind(self) -> list[str]:
        known = {"base", "adapters", "saved"}
        return sorted(path.name for path in self.root.iterdir() if path.name not in known)


def small_llama(folder: Path, *, tied: bool) -> Path:
    """Write a Llama with random weights and the starter's tokenizer."""
    torch.manual_seed(1)
    config = json.loads((STARTER / "model" / "config.json").read_text(encoding="utf-8"))
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=config["vocab_size"],
            max_position_embeddings=128,
            tie_word_embeddings=tied,
        )
    )
    model.save_pretrained(folder, max_shard_size="150KB")
    for name in TOKENIZER:
        shutil.copyfile(STARTER / "model" / name, folder / name)
    return folder


def plain_peft(
    bench: Bench, variant: list[tuple[str, float]], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Merge with PEFT alone on a fresh model: the oracle."""
    model = AutoModelForCausalLM.from_pretrained(bench.folder, dtype=dtype)
    ids = [bench.library.get(name).id for name, _ in variant]
    peft = PeftModel.from_pretrained(model, bench.library.folder(ids[0]), adapter_name=ids[0])
    for id in ids[1:]:
        peft.load_adapter(bench.library.folder(id), adapter_name=id)
    peft.base_model.set_adapter(ids)
    for layer in peft.modules():
        if isinstance(layer, LoraLayer):
            for id, (_, strength) in zip(ids, variant, strict=True):
                layer.set_scale(id, strength)
    state: dict[str, torch.Tensor] = peft.merge_and_unload().state_dict()
    return state


def written(folder: str | Path) -> dict[str, torch.Tensor]:
    files = sorted(Path(folder).glob("*.safetensors"))
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    missing = expected.keys() - found.keys()
    assert missing <= {"lm_head.weight"}  # tied: stored once, as in the source
    for key, tensor in found.items():
        assert tensor.dtype == expected[key].dtype, key
        assert torch.equal(tensor, expected[key]), key
