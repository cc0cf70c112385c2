"""What lies in the folder of an exported run, for whoever opens it without this program."""

from collections.abc import Sequence
from pathlib import Path

from backend.runs.plain_script import EXAMPLES, SCRIPT, START
from backend.runs.run_store import Run

README = "README.md"
WHAT = {
    "adapter": "the adapter that came out, as a folder for PEFT's `PeftModel.from_pretrained`",
    START: "the adapter that the run began with",
    SCRIPT: "repeats the run with plain PEFT",
    EXAMPLES: "what it learned from: one example a line, its tokens and which of them are learned",
    "request.json": "what was asked for; `python -m backend run request.json` asks for it again",
    "events.jsonl": "what happened: losses, tests and answers, one event a line",
    "note.txt": "what somebody wrote about it",
    "output.log": "what was printed meanwhile",
    "run.json": "versions, base and identity of the run",
    "status.json": "where the run stood at the end",
}


def write_readme(run: Run, folder: Path, notes: Sequence[str]) -> None:
    """Write a README.md that names the files which are there, and how they are used."""
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
    exactly = "to rounding" if computed == "fp32" else f"to about 1 %, for {computed} rounds"
    packages = " ".join(
        f"{each}=={known[each].partition('+')[0]}" if each in known else each for each in needed
    )
    return [
        "",
        "## Again",
        "",
        "```",
        f"pip install {packages}",
        f"python {SCRIPT}",
        f"python {SCRIPT} --base FOLDER-OR-ID   # where the base lies elsewhere",
        "```",
        "",
        f"It prints the loss of each step (seed {run.request.train.seed}) and saves "
        f"`adapter_again`. On the same machine with the same versions the losses agree {exactly}.",
    ]
