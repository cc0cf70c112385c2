"""Which precision a run computes in: measured once per base, machine and kind of step.

The measured times are kept in the workspace, so the same settings give the same precision, and with
the same seed the same adapter, however busy the machine happens to be.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

from backend.engine import steps
from backend.engine.base_model import Base
from backend.engine.packing import Packs
from backend.methods import method_of
from backend.requests import Train
from backend.results import ModelFacts
from backend.storage import write_text

ROUNDS = 3
HOW = "each-length"
"""How times were measured; those of another way are not taken for these."""
WORTH_IT = 0.8
"""How fast bf16 has to be to be taken: it computes a little less exactly, and on a processor oneDNN
compiles a kernel for each new length and keeps it (torch 2.13: 0.4 to 2 GB in 40 steps)."""


@dataclass(frozen=True)
class StepTimes:
    """Seconds per token of a training step in each precision."""

    fp32: float
    bf16: float

    @property
    def faster(self) -> str:
        return "bf16" if self.bf16 < WORTH_IT * self.fp32 else "fp32"


class Timings:
    """The step times that were measured on this machine."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def get(self, train: Train, facts: ModelFacts) -> StepTimes | None:
        """Return what was measured for such steps on a base, if anything was."""
        found = self._read().get(_key(train, facts))
        return StepTimes(*found) if found else None

    def measure(self, train: Train, base: Base, peft: PeftModel, packs: Packs) -> StepTimes:
        """Return what was measured for such steps, measuring it now if nothing was.

        The adapter must be trainable. Precisions take turns, so that a busy moment meets both, and
        each step is of another length, as in a run: what is compiled for a length is not there yet.
        """
        known = self.get(train, base.facts)
        if known is not None:
            return known
        per_token = {"fp32": float("inf"), "bf16": float("inf")}
        peft.train()
        for number in range(ROUNDS + 1):  # the best of some rounds; the first one warms up
            pack = number % len(packs)
            for precision in per_token:
                taken = steps.time_step(peft, packs[pack], base.device, precision)
                if number:
                    per_token[precision] = min(per_token[precision], taken / packs.tokens(pack))
        times = StepTimes(per_token["fp32"], per_token["bf16"])
        content = {**self._read(), _key(train, base.facts): [times.fp32, times.bf16]}
        write_text(self._file, json.dumps(content, indent=1))
        return times

    def choose(self, train: Train, base: Base, peft: PeftModel, packs: Packs) -> tuple[str, str]:
        """Return the compute precision of a run and why."""
        if base.dtype != torch.float32:
            return base.facts.precision, f"the weights are stored in {base.facts.precision}"
        if train.precision != "auto":
            return train.precision, "as chosen"
        times = self.measure(train, base, peft, packs)
        budget = train.tokens_per_step
        return times.faster, (
            f"a step of {budget} tokens takes {times.fp32 * budget * 1000:.0f} ms in fp32 "
            f"and {times.bf16 * budget * 1000:.0f} ms in bf16 on this machine"
        )

    def _read(self) -> dict[str, list[float]]:
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def _key(train: Train, facts: ModelFacts) -> str:
    """Name the kind of step: what decides which precision is faster, and little else."""
    budget = 1 << (train.tokens_per_step - 1).bit_length()
    checkpointing = "-checkpointing" if train.gradient_checkpointing else ""
    quantized = "" if facts.quantization == "none" else f"-{facts.quantization}"
    return (
        f"{facts.fingerprint}{quantized}-{facts.device}-{torch.get_num_threads()}threads-"
        f"{method_of(train.adapter).id}-rank{train.adapter.rank}-{budget}tokens{checkpointing}-{HOW}"
    )
