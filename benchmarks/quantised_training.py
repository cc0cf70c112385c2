"""Training on a quantised base against plain PEFT's own script, and what its layers take."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.autograd._functions import MatMul8bitFp
from peft import prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from backend import requests as rq
from backend.engine.core.job_control import Control
from backend.engine.data.tokenization import Tokens
from backend.engine.models.loading import load
from backend.engine.models.quantization import _forward_8bit
from benchmarks import models
from benchmarks.interleave import interleaved
from benchmarks.our_training import (
    OurTraining,
    as_many_tokens,
    documents,
    plan,
    train_request,
)
from benchmarks.peer import Peer
from benchmarks.plain_script import train_plainly
from benchmarks.report import Report, flags, read_flags
from benchmarks.skewed_data import write_skewed
from benchmarks.speed import Speed

BAR, MEMORY_BAR = 1.0, 0.15
CONFIGS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"load_in_8bit": True},
}


class QuantisedTraining(OurTraining):
    """Our side with a quantised base."""

    def on(self, kind: str, model: Path, train: rq.Train, pack_tokens: list[int]) -> Speed:
        """Train once on the base quantised to `kind`."""
        self.fields = {"quantization": kind}
        return self.run(model, train, pack_tokens)


def main(arguments: list[str] | None = None) -> int:
    """Measure both kinds and the memory of the layers."""
    parser = flags(__doc__, repeats="pairs")
    parser.add_argument("--rows", type=int, default=120, help="examples in the data (default 120)")
    chosen, words = read_flags(parser, arguments, pairs=1, rows=16)
    report = Report("quantised_training", "Training on quantised bases", words)
    with tempfile.TemporaryDirectory() as folder, QuantisedTraining() as ours, Peer() as peer:
        size = models.TINY if chosen.quick else models.LLAMA_32M
        model = models.random_llama(Path(folder) / "llama", size)
        data = write_skewed(Path(folder) / "skewed.jsonl", chosen.rows)
        memory(model, report, judged=not chosen.quick)
        for kind in CONFIGS:
            speed(kind, model, data, ours, peer, chosen, report)
        report.facts = {
            "model": models.describe(model),
            "threads": f"{torch.get_num_threads()} on both sides, each with a process of its own",
            "script": "prepare_model_for_kbit_training without checkpointing, fp32, batches of 8",
        }
    return report.finish(save=chosen.save)


def memory(model: Path, report: Report, *, judged: bool) -> None:
    """Add what nf4 with double quantisation keeps of the layers and of the whole base."""
    request = rq.LoadModel(source=str(model), quantization="nf4", double_quant=True)
    facts = load(request, Control(0, lambda message: None)).facts
    share = facts.quantized_bytes / facts.quantized_full_bytes
    good = share <= MEMORY_BAR if judged else None
    report.add(
        "quantised layers / fp32, nf4 and double quantisation", f"{share:.3f}x", "<= 0.15x", good
    )
    whole = facts.memory_measured_bytes / (4 * facts.parameters)
    report.add("the whole base / fp32", f"{whole:.3f}x")


def speed(
    kind: str, model: Path, data: Path, ours: Any, peer: Peer, chosen: Any, report: Report
) -> None:
    """Measure a kind: both sides in turns, after one run of each that is not counted."""
    train = train_request(data, budget=1024, epochs=1, precision="fp32")
    examples = documents(train, model)
    train = train.model_copy(update={"tokens_per_step": as_many_tokens(examples)})
    pack_tokens = [sum(len(examples[n]) for n in pack) for pack in plan(train, examples)]

    def script() -> Speed:
        return peer.run(train_quantised_plainly, kind, model, train, examples)

    ours.on(kind, model, train, pack_tokens), script()
    found = interleaved(
        lambda: ours.on(kind, model, train, pack_tokens), script, pairs=chosen.pairs
    )
    ratio = found.ratios(lambda side: side.steps)
    good = None if chosen.quick else ratio.median >= BAR
    report.add(f"{kind}: ours / script", f"{ratio:.2f}", ">= 1.0", good)
    report.notes.append(
        f"{kind}: {train.tokens_per_step} useful tokens a step on our side, about as many as 8 "
        f"padded examples hold. Last pair {found.ours[-1].steps:,.0f} and "
        f"{found.peer[-1].steps:,.0f} tokens/s.\n"
    )


def train_quantised_plainly(
    kind: str, model: Path, train: rq.Train, examples: list[Tokens]
) -> Speed:
    """Train once as plain PEFT's own script does on a quantised base."""
    # our guard replaces this for the whole process, and plain PEFT has it as it was
    MatMul8bitFp.forward = staticmethod(_forward_8bit)
    return train_plainly(
        model, train, examples, "fp32", read=lambda folder: read_quantised(folder, kind)
    )


def read_quantised(folder: Path, kind: str) -> Any:
    """Read, quantise and prepare the script's model as plain PEFT's own example does."""
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(**CONFIGS[kind]),
        device_map={"": "cpu"},
    )
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


if __name__ == "__main__":
    raise SystemExit(main())
