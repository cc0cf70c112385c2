"""A run as a stand-alone Python script that repeats it with plain PEFT.

The script is a real file, `engine/export/plain_peft_script.py`, which is checked and tested as it
is. Here its settings are replaced by those of a run, and its packs by rows where the run has them.
A run that it cannot repeat is rejected with a readable error.
"""

import json
import re
from pathlib import Path
from typing import Any

from backend.catalogue.learning_rate import schedule_name
from backend.catalogue.packaged_models import PACKAGED_MODELS
from backend.catalogue.precisions import TORCH_NAMES
from backend.errors import NotFound, Unsupported
from backend.files import damaged_files
from backend.hub_address import gguf_file
from backend.library import Library
from backend.permissions import looks_like_path
from backend.runs import adjustments
from backend.runs.run_store import Run
from backend.settings import STARTER, Settings

TEMPLATE = Path(__file__).parents[1] / "engine" / "export" / "plain_peft_script.py"
ROWS = TEMPLATE.with_name("plain_peft_rows.py")
LAYOUT = re.compile(r"# <layout>\n\n*(.*?)\n*# </layout>\n", re.DOTALL)
SETTINGS = re.compile(r"# <settings>\n.*# </settings>\n", re.DOTALL)
SCRIPT, EXAMPLES, START = "train_again.py", "examples.jsonl", "start_from"


def script_of(run: Run, library: Library, base_path: str = "") -> str:
    """Return the script; raises NotFound or Unsupported if it cannot repeat the run.

    `base_path` is the folder of the base, if it is known.
    """
    values = settings_of(run, library, base_path)
    lines = f"# The settings of the run {run.id}.\n" + "".join(
        f"{name} = {_literal(value)}\n" for name, value in values.items()
    )
    text = TEMPLATE.read_text(encoding="utf-8")
    written, count = SETTINGS.subn(lambda _: lines, text)
    assert count == 1
    written = LAYOUT.sub(lambda _: _layout_part(run) + "\n", written)
    return re.sub(r"  # type: ignore\[.*?\]", "", written)


def _layout_part(run: Run) -> str:
    """Return the part of the script that lays out the examples as the run does."""
    layout = run.status().layout or "packed"
    source = TEMPLATE if layout == "packed" else ROWS
    found = LAYOUT.search(source.read_text(encoding="utf-8"))
    assert found is not None
    return found[1].replace('LAYOUT = "rows"', f'LAYOUT = "{layout}"')


def settings_of(run: Run, library: Library, base_path: str = "") -> dict[str, Any]:
    """Return the settings of a run for the script."""
    train, status = run.request.train, run.status()
    if status.data and status.data.changes:
        raise Unsupported(
            "This run went on with other data than it began with, so no script can repeat it."
        )
    changes = [each for each in adjustments.read(run.folder) if each.changes_rate]
    adapter = _adapter_config(run, library)
    return {
        "BASE": _base(run, base_path),
        "BASE_DTYPE": TORCH_NAMES[status.stored_precision or "fp32"],
        **_quantization(run),
        "COMPUTE_PRECISION": status.precision or "fp32",
        "START_FROM": START if train.start_from is not None else "",
        "TARGET_MODULES": sorted(adapter["target_modules"]),
        "TARGET_PARAMETERS": sorted(adapter.get("target_parameters") or []),
        "RANK": adapter["r"],
        "ALPHA": adapter["lora_alpha"],
        "DROPOUT": adapter["lora_dropout"],
        "USE_RSLORA": adapter["use_rslora"],
        "USE_DORA": adapter["use_dora"],
        "LAYOUT": status.layout or "packed",
        "SEGMENTS": [train.epochs, *status.extra_epochs],
        "MAX_STEPS": train.max_steps,
        "TOKENS_PER_STEP": train.tokens_per_step,
        "ACCUMULATION": train.accumulation,
        "LEARNING_RATE": train.rate,
        "SCHEDULER": schedule_name(train.scheduler),
        "WARMUP": train.warmup,
        "OPTIMIZER": train.optimizer,
        "WEIGHT_DECAY": train.weight_decay,
        "CHANGES": [(each.step, each.learning_rate, each.total_steps) for each in changes],
        "GRADIENT_CHECKPOINTING": train.gradient_checkpointing,
        "SEED": train.seed,
    }


def _quantization(run: Run) -> dict[str, Any]:
    """Return how the run's base was quantised."""
    kind, asked = run.status().quantization, run.request.base
    if kind != "none" and asked is None:
        raise Unsupported(
            "This run comes from a version that did not record the base's quantisation."
        )
    unpacked = asked.compute_dtype if asked else "auto"
    return {
        "QUANTIZATION": kind,
        "DOUBLE_QUANT": asked.double_quant if asked else False,
        "UNPACKED_TO": TORCH_NAMES.get(unpacked, unpacked),
    }


def _adapter_config(run: Run, library: Library) -> dict[str, Any]:
    """Return the PEFT configuration that the run trained, from its checkpoint or its adapter."""
    folders = (run.latest_checkpoint(), library.folder(run.request.adapter_id))
    for folder in folders:
        file = folder / "adapter_config.json" if folder is not None else None
        if file is not None and file.is_file():
            found: dict[str, Any] = damaged_files.read(file, json.loads)
            return found
    raise NotFound(
        "This run has not saved anything yet, so the list of its trained layers is not on disk.",
        cure="Wait for its first checkpoint, or show it as a command.",
    )


def _base(run: Run, base_path: str) -> str:
    source = run.request.base_source
    if source == "starter":
        return str(STARTER / "model")
    if source in PACKAGED_MODELS:
        settings = Settings(workspace=run.folder.parent.parent)
        return base_path or str(PACKAGED_MODELS[source].folder_in(settings.models_dir))
    is_file = looks_like_path(source) or gguf_file(source) is not None
    return base_path or source if is_file else source


def _literal(value: Any) -> str:
    """Write a value as Python source, with double quotes as in the rest of the script."""
    if isinstance(value, list) and any(isinstance(each, tuple) for each in value):
        return repr(value)
    return json.dumps(value) if isinstance(value, str | list) else repr(value)
