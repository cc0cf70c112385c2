"""A step over a large vocabulary: the loss in parts, against all logits at once as before.

Both are our own step, forward and backward, on the same pack; each is measured in a process of its
own, in the environment of the app's worker. A model of two small layers shows the head alone.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from backend.engine.core import memory
from backend.engine.data.token_arrays import Tokens
from backend.engine.training import chunked_loss, packing, step_loss
from backend.service import allocator
from backend.service.worker_process import process_environment
from benchmarks.interleave import interleaved
from benchmarks.report import Report, flags, read_flags

VOCABULARY, TOKENS = 262_144, 2_048
PEAK, TIME = 0.5, 1.0
STEPS = 3
WIDTH = 256


def main(arguments: list[str] | None = None) -> int:
    """Measure both ways in turns and report."""
    parser = flags(__doc__, repeats="pairs")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens with loss")
    chosen, words = read_flags(parser, arguments, pairs=1, vocabulary=4_096, tokens=256)
    report = Report("large_vocabulary", "A step over a large vocabulary", words)
    case = [chosen.precision, chosen.vocabulary, chosen.tokens]
    found = interleaved(
        lambda: in_process(["parts", *case]), lambda: in_process(["whole", *case]),
        pairs=chosen.pairs,
    )  # fmt: skip
    peak, seconds = (found.ratios(lambda each, key=key: each[key]) for key in ("peak", "seconds"))
    report.add("peak of a step above the model: parts / all at once", f"{peak:.2f}",
               f"<= {PEAK}", peak.median <= PEAK)  # fmt: skip
    report.add("time of a step: parts / all at once", f"{seconds:.2f}",
               f"<= {TIME:.1f}", seconds.median <= TIME)  # fmt: skip
    ours, before = found.ours[-1], found.peer[-1]
    report.notes.append(
        f"Last pair: {ours['peak'] / 1e6:,.0f} and {before['peak'] / 1e6:,.0f} MB, "
        f"{ours['seconds']:.2f} and {before['seconds']:.2f} s; losses per token "
        f"{ours['loss']:.5f} and {before['loss']:.5f}.\n"
    )
    report.facts = {
        "model": f"Llama of 2 layers, width {WIDTH}, vocabulary {chosen.vocabulary:,}",
        "runs": f"{chosen.pairs} pairs; {chosen.tokens:,} tokens with loss, {chosen.precision}; "
        f"the fastest of {STEPS} steps after one that is not counted",
        "threads": torch.get_num_threads(),
    }
    return report.finish(save=chosen.save)


def in_process(case: Sequence[Any]) -> dict[str, float]:
    """Measure one way in a process like the worker's."""
    environment = {**os.environ, **process_environment(allocator.environment())}
    command = [sys.executable, "-m", "benchmarks.large_vocabulary", "--one", *map(str, case)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def one(way: str, precision: str, vocabulary: int, tokens: int) -> dict[str, float]:
    """Make a few steps; return the peak above the model in bytes, seconds, and the loss."""
    model = small_model(vocabulary)
    random = np.random.default_rng(0)
    ids = random.integers(0, vocabulary, tokens + 1).astype(np.int32)
    batch = packing.collate([Tokens(ids, np.ones(len(ids), dtype=bool))])
    if way == "parts":
        chunked_loss.note(model, batch["input_ids"][:, :8])
    cpu = torch.device("cpu")
    seconds, losses = [], []
    memory.reset_peak(cpu)
    before = memory.resident(cpu)
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        loss = step_loss.loss_sum(model, batch, step_loss.autocast(cpu, precision)) / tokens
        loss.backward()
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
        model.zero_grad(set_to_none=True)
    peak = memory.peak(cpu) - before
    return {"peak": peak, "seconds": min(seconds[1:]), "loss": losses[0]}


def small_model(vocabulary: int) -> Any:
    """Return a small Llama with an adapter, without a file."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=vocabulary, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    adapter = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(LlamaForCausalLM(config), adapter).train()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        way, precision, vocabulary, tokens = sys.argv[2:]
        print(json.dumps(one(way, precision, int(vocabulary), int(tokens))))
        raise SystemExit
    raise SystemExit(main())
