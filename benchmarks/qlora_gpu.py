"""QLoRA of a random 8 B Llama on an NVIDIA GPU: memory and speed. Needs about 40 GB of disk."""

import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from backend import requests as rq
from benchmarks.models import STARTER_MODEL
from benchmarks.our_training import OurTraining, documents, plan, train_request
from benchmarks.report import Report, flags, read_flags
from benchmarks.skewed_data import write_skewed

LENGTH, RANK = 2048, 16


def main(arguments: list[str] | None = None) -> int:
    """Train a few steps on the GPU and report; without one, say so and stop."""
    parser = flags(__doc__)
    parser.add_argument("--layers", type=int, default=32, help="layers of the model (default 32)")
    chosen, words = read_flags(parser, arguments)
    if not torch.cuda.is_available():
        print("No NVIDIA GPU here: nothing was measured.")
        return 0
    report = Report("qlora_gpu", "QLoRA of an 8 B model on a GPU", words)
    with tempfile.TemporaryDirectory() as folder, OurTraining() as ours:
        model = random_8b(Path(folder) / "model", chosen.layers)
        data = write_skewed(Path(folder) / "skewed.jsonl", 2000)
        ours.fields = {"quantization": "nf4", "double_quant": True, "device": "cuda"}
        train = train_request(
            data, budget=LENGTH, max_steps=20, adapter=rq.Lora(rank=RANK),
            gradient_checkpointing=True, max_length=LENGTH,
        )  # fmt: skip
        examples = documents(train, model)
        packs = [sum(len(examples[n]) for n in pack) for pack in plan(train, examples)]
        speed = ours.run(model, train, packs)
        report.add("tokens a second", f"{speed.steps:,.0f}")
        report.add("peak memory", f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
        report.facts = {"device": torch.cuda.get_device_name(0)}
    return report.finish(save=chosen.save)


def random_8b(folder: Path, layers: int) -> Path:
    """Write a Llama 3 8B in shape, with random weights and the starter's tokenizer."""
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, vocab_size=128256,
        max_position_embeddings=8192, tie_word_embeddings=False,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    AutoTokenizer.from_pretrained(STARTER_MODEL).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
