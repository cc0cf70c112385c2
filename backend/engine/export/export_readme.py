"""The README of an exported run, for readers who do not have this program."""

from collections.abc import Sequence
from pathlib import Path

from backend.runs.plain_script import EXAMPLES, SCRIPT, START
from backend.runs.run_store import Run

README = "README.md"
WHAT = {
    "adapter": "the trained adapter, as a folder for PEFT's `PeftModel.from_pretrained`",
    START: "the adapter that the run started from",
    SCRIPT: "repeats the run with plain PEFT",
    EXAMPLES: "the training data: one example per line, its tokens and which of them have a loss",
    "request.json": "the run's request; `python -m backend run request.json` repeats it",
    "events.jsonl": "what happened: losses, tests and answers, one event per line",
    "note.txt": "the note about the run",
    "output.log": "the output printed during the run",
    "run.json": "versions, base and id of the run",
    "status.json": "the final status of the run",
}


def write_readme(run: Run, folder: Path, notes: Sequence[str]) -> None:
    """Write a README.md that lists the files in the folder and explains how to use them."""
    there = [f"- `{name}`: {what}" for name, what in WHAT.items() if (folder / name).exists()]
    lines = [
        f"# {run.request.train.name}: a training run",
        "",
        f"The run `{run.id}` on the base {run.request.base_name}, exported from Adapter Workbench.",
        "",
        *there,
        *(["", *notes] if notes else []),
        *(_how_to_repeat(run) if (folder / SCRIPT).exists() else []),
    ]
    (folder / README).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _how_to_repeat(run: Run) -> list[str]:
    quantised = run.request.base is not None and run.request.base.quantization != "none"
    needed = ("torch", "transformers", "peft", *(("bitsandbytes",) if quantised else ()))
    known = run.request.versions
    computed = run.status().precision
    exactly = "except for rounding" if computed == "fp32" else f"to about 1 % ({computed} rounding)"
    packages = " ".join(
        f"{each}=={known[each].partition('+')[0]}" if each in known else each for each in needed
    )
    return [
        "",
        "## Repeat the run",
        "",
        "```",
        f"pip install {packages}",
        f"python {SCRIPT}",
        f"python {SCRIPT} --base FOLDER-OR-ID   # if the base is elsewhere",
        "```",
        "",
        f"It prints the loss of each step (seed {run.request.train.seed}) and saves "
        f"`adapter_again`. On the same machine with the same versions the losses agree {exactly}.",
    ]
