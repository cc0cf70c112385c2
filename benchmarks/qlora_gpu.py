"""Training on an NVIDIA GPU: ours through the worker, a packed loop, TRL, and a plain script.

Two parts, with random weights made on the spot: a base in the shape of a 0.5 B model in bf16, and
one in that of an 8 B model in nf4. The table is printed after each of them. It needs about 40 GB of
GPU memory and 20 GB of disk. Unsloth is not compared: its requirements clash with ours.
"""

import gc
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from benchmarks.packed_loop import train_by_hand
from benchmarks.peer import Peer
from benchmarks.plain_script import train_plainly
from benchmarks.report import Report, flags, read_flags
from benchmarks.skewed_data import write_skewed
from benchmarks.speed import Speed
from benchmarks.trl_script import train_with_trl

LENGTH, RANK = 2048, 16
LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "num_hidden_layers": 32,
}  # fmt: skip
"""The shape of Llama 3 8B."""
QWEN_05B = {
    "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151936, "num_hidden_layers": 24,
    "tie_word_embeddings": True,
}  # fmt: skip
"""The shape of Qwen2.5 0.5B, as a Llama."""
SMALL = {
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 2816, "num_hidden_layers": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A base, and how it is stored: `bf16`, or `nf4` with double quantisation."""

    title: str
    sizes: dict[str, Any]
    stored: str

    @property
    def fields(self) -> dict[str, object]:
        """How our side loads it."""
        if self.stored == "nf4":
            return {"quantization": "nf4", "double_quant": True}
        return {"precision": "bf16"}


PARTS = (Part("0.5B in bf16", QWEN_05B, "bf16"), Part("8B in nf4", LLAMA_8B, "nf4"))


def main(arguments: list[str] | None = None) -> int:
    """Train a few steps of each part on the GPU and report; without one, say so and stop."""
    parser = flags(__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="examples (default 2000)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a run (default 20)")
    parser.add_argument("--seconds", type=float, default=400, help="start no side later")
    chosen, words = read_flags(parser, arguments, rows=24, steps=3)
    there = torch.cuda.is_available()
    if not there and not chosen.quick:
        print("No NVIDIA GPU here: nothing was measured.")
        return 0
    device = torch.device("cuda" if there else "cpu")
    report = Report("qlora_gpu", "Training on a GPU against other ways", words)
    report.facts = {
        "device": torch.cuda.get_device_name() if there else "processor",
        "libraries": ", ".join(f"{name} {version(name)}" for name in ("bitsandbytes", "trl")),
        "settings": f"rank {RANK} on all linear layers, {LENGTH} tokens a pack, {chosen.steps} "
        "steps; the script's batches hold as many useful tokens; gradient checkpointing in nf4",
        "speed": "unpadded tokens a second, from the end of the first step to the end of the last",
    }
    until = time.monotonic() + chosen.seconds
    for part in PARTS:
        part = replace(part, sizes={**part.sizes, **SMALL}) if chosen.quick else part
        with tempfile.TemporaryDirectory() as folder:
            model = random_llama(Path(folder) / "model", device, **part.sizes)
            data = write_skewed(Path(folder) / "skewed.jsonl", chosen.rows)
            Sides(part, model, data, device, steps=chosen.steps).measure(report, until)
        report.finish(save=chosen.save)  # the table so far: a run that is cut short still shows it
    return 0


class Sides:
    """The four ways to train one base, with the same examples, adapter and tokens a step."""

    def __init__(
        self, part: Part, model: Path, data: Path, device: torch.device, *, steps: int
    ) -> None:
        self._part, self._model, self._device = part, model, device
        train = train_request(
            data, budget=LENGTH, max_steps=steps, adapter=rq.Lora(rank=RANK), max_length=LENGTH,
            gradient_checkpointing=part.stored == "nf4",
        )  # fmt: skip
        self._examples = documents(train, model)
        epochs = 2 * steps * LENGTH // sum(map(len, self._examples)) + 1  # more than it takes
        self._train = train.model_copy(update={"epochs": float(epochs)})
        self._packs = plan(self._train, self._examples)

    def measure(self, report: Report, until: float) -> None:
        """Measure each side in a process of its own; one that fails is a row that says so."""
        speeds: dict[str, Speed] = {}
        for side, run in self._sides.items():
            what = f"{self._part.title}, {side}"
            if time.monotonic() > until:
                report.add(what, "not measured: the time was over")
                continue
            try:
                speeds[side] = run()
            except Exception as error:
                report.add(what, f"failed: {type(error).__name__}: {first_line(error)}")
                continue
            report.add(what, words(speeds[side]))
            print(f"{what}: {words(speeds[side])}", flush=True)
        ours = speeds.pop("ours", None)
        for side, speed in speeds.items() if ours else ():
            report.add(f"{self._part.title}: ours / {side}", f"{ours.wall / speed.wall:.2f}")

    @property
    def _sides(self) -> dict[str, Callable[[], Speed]]:
        prepared = partial(read, stored=self._part.stored, device=self._device)
        plain = partial(read, stored=self._part.stored, device=self._device, prepare=False)
        by_hand = [[self._examples[n] for n in pack] for pack in self._packs]
        on_gpu = self._device.type == "cuda"
        script = {"batch": self._batch, "read": prepared, "on_gpu": on_gpu}
        return {
            "ours": self._ours,
            "packed loop": partial(self._peer, train_by_hand, by_hand, read=prepared),
            "TRL": partial(self._peer, train_with_trl, self._examples, read=plain, on_gpu=on_gpu),
            "script": partial(self._peer, train_plainly, self._examples, **script),
        }

    @property
    def _batch(self) -> int:
        """As many examples as have our tokens a step on average."""
        return max(1, round(LENGTH * len(self._examples) / sum(map(len, self._examples))))

    def _ours(self) -> Speed:
        tokens = [sum(len(self._examples[n]) for n in pack) for pack in self._packs]
        with OurTraining() as ours:
            ours.fields = {**self._part.fields, "device": self._device.type}
            return ours.run(self._model, self._train, tokens)

    def _peer(self, train: Callable[..., Speed], given: Any, **options: Any) -> Speed:
        with Peer() as peer:
            return peer.run(with_peak, train, self._model, self._train, given, "bf16", **options)


def with_peak(train: Callable[..., Speed], *given: Any, **options: Any) -> Speed:
    """Train once, and add the highest use of GPU memory, the model's own included."""
    speed = train(*given, **options)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return replace(speed, peak_bytes=peak)


def words(speed: Speed) -> str:
    """Return a side's figures."""
    peak = f", peak {speed.peak_bytes / 1e9:.1f} GB" if torch.cuda.is_available() else ""
    return f"{speed.wall:,.0f} tokens/s{peak}, last loss {speed.last_loss:.3f}"


def first_line(error: Exception) -> str:
    """Return what an error says first, without what would break the table."""
    return (str(error).strip().splitlines() or [""])[0].replace("|", "/")


def read(folder: Path, *, stored: str, device: torch.device, prepare: bool = True) -> Any:
    """Read a peer's base as PEFT's QLoRA example does; `prepare` for training without TRL."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    in_4bit = {"quantization_config": config} if stored == "nf4" else {}
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map={"": device}, **in_4bit
    )
    if stored != "nf4" or not prepare:
        return model
    with warnings.catch_warnings():
        # PEFT 0.21.2 calls by a name that Transformers 5.23 replaced.
        warnings.filterwarnings("ignore", "`gradient_checkpointing_enable`", FutureWarning)
        return prepare_model_for_kbit_training(model)


def random_llama(folder: Path, device: torch.device, **sizes: Any) -> Path:
    """Write a Llama with random weights in bf16 and the starter's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(STARTER_MODEL)
    config = LlamaConfig(**{"tie_word_embeddings": False, "max_position_embeddings": 8192, **sizes})
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    tokenizer.save_pretrained(folder)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the sides run in other processes
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
