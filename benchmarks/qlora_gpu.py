"""QLoRA of a random 8 B Llama on an NVIDIA GPU beside plain PEFT. Needs about 40 GB of disk."""

import gc
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from backend import requests as rq
from benchmarks.models import STARTER_MODEL
from benchmarks.our_training import OurTraining, documents, plan, train_request
from benchmarks.plain_script import BATCH, train_plainly
from benchmarks.report import Report, flags, read_flags
from benchmarks.skewed_data import write_skewed
from benchmarks.speed import Speed

LENGTH, RANK = 2048, 16
LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip
"""The shape of Llama 3 8B; the number of layers is a flag."""
SMALL = {
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 2816, "max_position_embeddings": 8192,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Train a few steps on the GPU and report; without one, say so and stop."""
    parser = flags(__doc__)
    parser.add_argument("--layers", type=int, default=32, help="layers of the model (default 32)")
    parser.add_argument(
        "--batch", type=int, default=BATCH, help=f"examples a step of the script (default {BATCH})"
    )
    parser.add_argument("--rows", type=int, default=2000, help="examples (default 2000)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a run (default 20)")
    chosen, words = read_flags(parser, arguments, layers=1, batch=2, rows=20, steps=3)
    there = torch.cuda.is_available()
    if not there and not chosen.quick:
        print("No NVIDIA GPU here: nothing was measured.")
        return 0
    report = Report("qlora_gpu", "QLoRA of an 8 B model on a GPU", words)
    with tempfile.TemporaryDirectory() as folder, OurTraining("inline") as ours:
        device = torch.device("cuda" if there else "cpu")
        model = random_llama(
            Path(folder) / "model", chosen.layers, device, **(SMALL if chosen.quick else LLAMA_8B)
        )
        data = write_skewed(Path(folder) / "skewed.jsonl", chosen.rows)
        ours.fields = {"quantization": "nf4", "double_quant": True, "device": device.type}
        train = train_request(
            data, budget=LENGTH, max_steps=chosen.steps, adapter=rq.Lora(rank=RANK),
            gradient_checkpointing=True, max_length=LENGTH,
        )  # fmt: skip
        examples = documents(train, model)
        packs = [sum(len(examples[n]) for n in pack) for pack in plan(train, examples)]
        mine = measured(report, "ours", lambda: ours.run(model, train, packs))
        ours.service.start(rq.UnloadModel()).result(60)
        script = measured(
            report,
            "script",
            lambda: train_plainly(
                model,
                train,
                examples,
                "bf16",
                read=partial(read_qlora, device=device),
                batch=chosen.batch,
                on_gpu=there,
            ),
        )
        report.add("ours / script, tokens a second", f"{mine.steps / script.steps:.2f}")
        report.add("the same by the clock on the wall", f"{mine.wall / script.wall:.2f}")
        report.facts = {
            "device": torch.cuda.get_device_name(0) if there else "processor",
            "bitsandbytes": version("bitsandbytes"),
            "model": f"Llama 3 8B in shape, {chosen.layers} layers, random weights",
            "settings": f"nf4, double quantisation, rank {RANK}, length {LENGTH}, checkpointing",
            "script": f"PEFT's QLoRA example with Trainer, bf16, batches of {chosen.batch}",
        }
    return report.finish(save=chosen.save)


def measured(report: Report, side: str, train: Callable[[], Speed]) -> Speed:
    """Train once, and report speed and, on a GPU, peak memory of that alone."""
    gc.collect()
    there = torch.cuda.is_available()
    if there:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    speed = train()
    report.add(f"{side}: tokens a second", f"{speed.steps:,.0f}")
    if there:
        report.add(f"{side}: peak memory", f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    report.add(f"{side}: loss, first and last", f"{speed.first_loss:.3f}, {speed.last_loss:.3f}")
    return speed


def read_qlora(folder: Path, device: torch.device) -> Any:
    """Read the script's model as PEFT's own QLoRA example does."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=config, device_map={"": device}
    )
    with warnings.catch_warnings():
        # PEFT 0.21.2 calls by a name that Transformers 5.23 replaced.
        warnings.filterwarnings("ignore", "`gradient_checkpointing_enable`", FutureWarning)
        return prepare_model_for_kbit_training(model)


def random_llama(folder: Path, layers: int, device: torch.device, **sizes: int) -> Path:
    """Write a Llama with random weights in bf16 and the starter's tokenizer."""
    config = LlamaConfig(num_hidden_layers=layers, tie_word_embeddings=False, **sizes)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    AutoTokenizer.from_pretrained(STARTER_MODEL).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
