"""Packing, and what Trainer and Accelerate do to a model that lives on afterwards."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from bitsandbytes.optim import GlobalOptimManager
from peft import PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from tests.engine.tiny import fresh, lora
from tests.engine.upstream.plain_models import IDS, Q, Write, distance, load, logits
from tests.engine.upstream.still import assert_still

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


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
    assert_still(wrong, "packing with a cache", "step_loss.py (forward)", transformers)


def trainer(model: Any, folder: Path, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{"max_steps": 1, "save_strategy": "no", **options},
    )
    data: Any = [{"input_ids": IDS[0], "labels": IDS[0]}] * 32
    return Trainer(model=model, args=arguments, train_dataset=data)


STILL = {"learning_rate": 0.0, "weight_decay": 0.0}
"""A run that changes no weight."""


def test_a_bf16_run_leaves_autocast_behind(base: Path, tmp_path: Path) -> None:
    model = get_peft_model(fresh(base), lora(r=2))
    before = logits(model)
    trainer(model, tmp_path, bf16=True, **STILL).train()
    wrong = distance(logits(model), before) > 1e-4
    assert_still(
        wrong, "Trainer(bf16=True)", "trainer.py (AdapterTrainer.compute_loss)", transformers
    )


def test_a_bf16_run_after_another_computes_in_fp32(base: Path, tmp_path: Path) -> None:
    """The first run marks the model as prepared (`_is_accelerate_prepared`), and so it stays."""

    def in_bf16(model: PeftModel) -> bool:
        seen = []
        layer = model.get_submodule(Q)
        hook = layer.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        trainer(model, tmp_path, bf16=True, **STILL).train()
        hook.remove()
        assert seen
        return all(seen)

    assert in_bf16(get_peft_model(fresh(base), lora(r=2)))
    model = get_peft_model(fresh(base), lora(r=2))
    trainer(model, tmp_path, **STILL).train()
    wrong = not in_bf16(model)
    assert_still(
        wrong, "a second run's bf16", "trainer.py (AdapterTrainer.compute_loss)", accelerate
    )


def test_resuming_brings_other_adapters_back(base: Path, write: Write, tmp_path: Path) -> None:
    """And undoes what became of them; under another name, the run's own stays behind."""
    model = load(base, write("beside", lora(r=2), 1), "beside")
    model.add_adapter("mine", lora(r=2))
    model.set_adapter("mine")
    saving = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer(model, tmp_path / "run", **saving).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-1")

    model.get_submodule(Q).lora_B["beside"].weight.data.zero_()
    trainer(model, tmp_path / "again", **saving).train(resume_from_checkpoint=checkpoint)
    overwritten = bool(model.get_submodule(Q).lora_B["beside"].weight.any())

    other = get_peft_model(fresh(base), lora(r=2), adapter_name="renamed")
    trainer(other, tmp_path / "other", **saving).train(resume_from_checkpoint=checkpoint)
    brought = {"beside", "mine"} <= other.peft_config.keys()
    down = other.get_submodule(Q).lora_A
    forgotten = distance(down["renamed"].weight, down["mine"].weight) > 1e-2

    wrong = overwritten and brought and forgotten
    what = "resuming with several adapters"
    assert_still(wrong, what, "trainer.py (AdapterTrainer._load_from_checkpoint)", transformers)


def test_one_process_takes_every_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    wrong = TrainingArguments(output_dir=str(tmp_path), report_to=[]).n_gpu == 4
    what = "one process on a machine with several GPUs"
    assert_still(wrong, what, "trainer_arguments.py (OneDeviceArguments.n_gpu)", transformers)


def test_bitsandbytes_keeps_the_embeddings_of_a_trained_model(base: Path, tmp_path: Path) -> None:
    kept = GlobalOptimManager.get_instance().module_weight_config_triple
    model = get_peft_model(fresh(base), lora(r=2))
    trainer(model, tmp_path, optim="adamw_bnb_8bit").train()
    wrong = any(each[0] is model.get_input_embeddings() for each in kept)
    kept.clear()
    what = "a base that was trained with an 8-bit optimiser"
    assert_still(wrong, what, "trainer_arguments.py (forget_base)", transformers)


ONE_OF_HOW_MANY = "import accelerate; print(accelerate.PartialState(cpu=True).num_processes)"


@pytest.mark.slow
def test_two_processes_asked_of_accelerate_are_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ONE_OF_HOW_MANY)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run(
        [*launch, str(script)], capture_output=True, text=True, check=True, timeout=300
    )
    wrong = done.stdout.split() == ["1"]  # so processes are counted by what really runs
    what = "`launch --cpu --num_processes 2`"
    assert_still(wrong, what, "launch_commands.py (arguments)", accelerate)
