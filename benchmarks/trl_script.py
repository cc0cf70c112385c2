"""A peer: the TRL script that most people would write, `SFTTrainer` with packing.

One pack of as many tokens as ours a step. Its examples are tokenised beforehand by ours, with the
label -100 where ours have no loss, so both train on the same tokens; TRL packs them itself. Where
no FlashAttention is installed, TRL warns and Transformers keeps documents apart with a mask.
Its loss never holds all logits at once (TRL 1.16), as is TRL's default.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers import AutoTokenizer, PrinterCallback

from backend import requests as rq
from backend.engine.data.tokenization import Tokens
from benchmarks.plain_script import StepClock, as_row, lora_of, read_in_full, script_settings
from benchmarks.speed import Speed


def train_with_trl(
    model_folder: Path,
    train: rq.Train,
    examples: list[Tokens],
    precision: str,
    *,
    read: Callable[[Path], Any] = read_in_full,
    on_gpu: bool = False,
) -> Speed:
    """Train once and tell how fast it went, in unpadded tokens; `precision` is fp32 or bf16."""
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    clock = StepClock(precision)
    rows = [as_row(example) for example in examples]
    with tempfile.TemporaryDirectory() as folder:
        settings = script_settings(folder, train, precision, batch=1, on_gpu=on_gpu)
        trainer = SFTTrainer(
            model=read(model_folder),
            args=SFTConfig(
                **settings,
                gradient_checkpointing=train.gradient_checkpointing,  # TRL's default is True
                packing=True,
                max_length=train.tokens_per_step,
            ),
            train_dataset=Dataset.from_list(rows).remove_columns("attention_mask"),
            processing_class=AutoTokenizer.from_pretrained(model_folder),
            peft_config=lora_of(train),
            callbacks=[clock],
        )
        trainer.data_collator = _counted(trainer.data_collator, clock)
        trainer.remove_callback(PrinterCallback)
        output = trainer.train()
    clock.log.losses.append(output.training_loss)
    return clock.log.speed()


def _counted(collate: Callable[[list[Any]], Any], clock: StepClock) -> Callable[[list[Any]], Any]:
    """Note how many tokens each step has; a pack has no padding."""

    def counted(rows: list[Any]) -> Any:
        clock.log.tokens.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    return counted
