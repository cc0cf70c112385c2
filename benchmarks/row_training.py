"""One example per row against a plain Trainer + PEFT script, on a model whose packs would leak.

Both read the same real text, and train on about as many tokens a step; the script pads each of its
batches, as its collator does. The model is a Falcon with ALiBi and random weights.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, FalconConfig, FalconForCausalLM

from backend.engine.steps.packing import Packs
from benchmarks import models
from benchmarks.interleave import interleaved
from benchmarks.our_training import OurTraining, as_many_tokens, documents, plan, train_request
from benchmarks.peer import Peer
from benchmarks.plain_script import train_plainly
from benchmarks.report import Report, flags, read_flags
from benchmarks.trainer_script import PRECISIONS, best_precision, describe
from tests.real_documents import write_questions

TARGET = 1.0
SMALL = models.Size(width=384, inner=1536, layers=6, heads=6)


def main(arguments: list[str] | None = None) -> int:
    """Measure both sides and report."""
    parser = flags(__doc__, repeats="pairs")
    parser.add_argument("--rows", type=int, default=160, help="examples in the data (default 160)")
    parser.add_argument("--grouped", action="store_true", help="let the script group by length")
    chosen, words = read_flags(parser, arguments, pairs=1, rows=24)
    report = Report("row_training", "One example per row against a plain Trainer script", words)
    with tempfile.TemporaryDirectory() as folder, OurTraining() as ours, Peer() as peer:
        model = random_falcon(Path(folder) / "falcon", models.TINY if chosen.quick else SMALL)
        data = write_questions(Path(folder) / "questions.jsonl", chosen.rows)
        train = train_request(data, budget=512, epochs=1)
        examples = documents(train, model)
        train = train.model_copy(update={"tokens_per_step": as_many_tokens(examples)})
        packs = plan(train, examples, "rows")
        pack_tokens = [sum(len(examples[n]) for n in pack) for pack in packs]
        ours.run(model, train, pack_tokens)
        tries = PRECISIONS if chosen.quick else PRECISIONS * 2  # the first of each is not counted
        best = best_precision(model, train, examples, peer, tries, report)
        found = interleaved(
            lambda: ours.run(model, train, pack_tokens),
            lambda: peer.run(train_plainly, model, train, examples, best, grouped=chosen.grouped),
            pairs=chosen.pairs,
        )
    ratio = found.ratios(lambda speed: speed.steps)
    script = "script with grouped lengths" if chosen.grouped else "script"
    bar = "" if chosen.grouped else f">= {TARGET:.1f}"
    good = None if chosen.grouped else ratio.median >= TARGET
    report.add(f"rows: ours / {script}", f"{ratio:.2f}", bar, good)
    wall = found.ratios(lambda speed: speed.wall)
    report.add("the same by the clock on the wall, events and all", f"{wall:.2f}")
    describe(found.ours[-1], found.peer[-1], train, examples, report)
    padding = Packs(examples, packs, layout="rows").padding_share
    report.notes.append(f"Padding in our rows: {padding:.0%} of the computed positions.\n")
    report.facts = {
        "model": f"Falcon with ALiBi, {describe_model(chosen.quick)}",
        "threads": f"{torch.get_num_threads()} on both sides, each with a process of its own",
        "runs": f"{chosen.pairs} pairs, one epoch each, after runs that are not counted",
    }
    return report.finish(save=chosen.save)


def random_falcon(folder: Path, size: models.Size) -> Path:
    """Write a Falcon with ALiBi, random weights and the starter's tokenizer."""
    torch.manual_seed(0)
    FalconForCausalLM(config_of(size)).save_pretrained(folder)
    for name in models.TOKENIZER_FILES:
        shutil.copyfile(models.STARTER_MODEL / name, folder / name)
    return folder


def config_of(size: models.Size) -> FalconConfig:
    """Return the configuration of a Falcon with ALiBi, for the starter's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(models.STARTER_MODEL)
    return FalconConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=size.width,
        ffn_hidden_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        alibi=True,
        parallel_attn=False,
        max_position_embeddings=2048,
    )


def describe_model(quick: bool) -> str:
    """Return the model's size in words."""
    size = models.TINY if quick else SMALL
    with torch.device("meta"):
        count = sum(p.numel() for p in FalconForCausalLM(config_of(size)).parameters())
    return f"{count / 1e6:.1f} M parameters ({size.layers} layers, width {size.width})"


if __name__ == "__main__":
    raise SystemExit(main())
