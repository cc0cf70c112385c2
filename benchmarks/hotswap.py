"""What a hot-swap costs: against recompiling, against copying, and for the next answer.

    python -m benchmarks.hotswap --save

The unprepared side is PEFT's own `hotswap_adapter` on a base that was compiled but not prepared; it
compiles twice, a minute or so each at four layers. The quick run compiles nothing.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from backend import requests as rq
from backend import results as rs
from backend.compile_times import CompileTimes
from backend.engine.core.job_control import Control
from backend.engine.hotswap import prepare, reference_outputs
from backend.engine.session import Session
from backend.library import Library, new_adapter_id
from benchmarks import models
from benchmarks.interleave import Spread, interleaved
from benchmarks.report import Report, flags, read_flags

ADAPTERS = {"small": (8, 16), "large": (16, 8)}
EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(arguments: list[str] | None = None) -> int:
    """Measure and report."""
    parser = flags(__doc__, repeats="rounds")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.set_defaults(compile=True)
    chosen, words = read_flags(parser, arguments, rounds=2, layers=1, width=64, compile=False)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        # compiled code that an earlier process left would make the unprepared side quick
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(place) / "inductor")
        return measure(chosen, words, Path(place))


def measure(chosen: argparse.Namespace, words: list[str], place: Path) -> int:
    """Build base and adapters, prepare the slot, and fill the report."""
    report = Report("hotswap", "Hot-swapping adapters", words)
    size = models.Size(chosen.width, 3 * chosen.width, chosen.layers, heads=4)
    base = models.random_llama(place / "base", size)
    session = open_session(place, base)
    for seed, (name, (rank, alpha)) in enumerate(ADAPTERS.items()):
        enlist(session, base, name, lora(rank, alpha), seed)
    request = rq.PrepareHotswap(adapters=list(ADAPTERS), compile=chosen.compile)
    prepared = prepare.prepare(session, request, quiet(), CompileTimes(place / "times.json"))
    report.facts["model"] = models.describe(base)
    report.facts["slot"] = f"rank {prepared.rank}, {prepared.layers} layers"
    _swap_against_copy(report, session, chosen.rounds)
    _from_peft_and_disk(report, session, base, chosen.rounds)
    _next_answer(report, session, chosen.rounds)
    prepared_seconds = _to_first_token(session, chosen.rounds)
    if chosen.compile:
        again = _slot(session).recompilations
        report.add("recompilations in all these swaps and answers", str(again), "0", again == 0)
    _speeds(report, prepared)
    prepare.leave(session)
    if chosen.compile:
        _against_unprepared(report, session, base, prepared_seconds)
    return report.finish(save=chosen.save)


# -- the four figures ----------------------------------------------------------------------------


def _swap_against_copy(report: Report, session: Session, rounds: int) -> None:
    """Our swap, against copying as many tensors of the same sizes one by one."""
    slot = _slot(session)
    shapes = slot.memory.shapes.values()
    rank = slot.memory.rank
    sizes = [(rank, i) for i, _ in shapes] + [(o, rank) for _, o in shapes]
    targets = [torch.zeros(size) for size in sizes]
    sources = [torch.randn(size) for size in sizes]
    turn = iter(range(10**9))

    def ours() -> float:
        name = list(ADAPTERS)[next(turn) % len(ADAPTERS)]
        return slot.swap(name).seconds

    def plain() -> float:
        return timed(lambda: [t.copy_(s) for t, s in zip(targets, sources, strict=True)])

    for _ in range(3):
        ours(), plain()
    found = interleaved(ours, plain, pairs=max(rounds, 2) * 5)
    ratio = found.ratios(float)
    report.add("swap / copy_ of the same bytes", f"{ratio:.2f}", "<= 5", ratio.median <= 5)
    report.add("swap", f"{Spread([1000 * s for s in found.ours]):.3f} ms")
    report.add("copy_ of the same bytes", f"{Spread([1000 * s for s in found.peer]):.3f} ms")


def _from_peft_and_disk(report: Report, session: Session, base: Path, rounds: int) -> None:
    folders = [session.library.folder(i.id) for i in session.library.all()]
    model = PeftModel.from_pretrained(load(base), folders[0]).eval()
    prepare_model_for_compiled_hotswap(model, target_rank=max(r for r, _ in ADAPTERS.values()))

    def swap(number: int) -> float:
        folder = str(folders[number % len(folders)])
        return timed(lambda: hotswap_adapter(model, folder, "default", torch_device="cpu"))

    times = [1000 * swap(number) for number in range(max(rounds, 2) * 3)]
    report.add("PEFT's hotswap_adapter, from disk", f"{Spread(times[1:]):.1f} ms")


def _next_answer(report: Report, session: Session, rounds: int) -> None:
    slot = _slot(session)
    turn = iter(range(10**9))

    def answer() -> float:
        return timed(
            lambda: reference_outputs.answer_tokens(
                session.model, session.base, prompt=12, tokens=8
            )
        )

    def after_swap() -> float:
        slot.swap(list(ADAPTERS)[next(turn) % len(ADAPTERS)])
        return answer()

    def without() -> float:
        return answer()

    after_swap(), without()
    ratio = interleaved(after_swap, without, pairs=max(rounds, 2) * 5).ratios(float)
    report.add("answer after a swap / without", f"{ratio:.2f}", "<= 1.1", ratio.median <= 1.1)


def _to_first_token(session: Session, rounds: int) -> float:
    slot = _slot(session)
    found = []
    for number in range(max(rounds, 2)):
        seconds = timed(lambda: slot.swap(list(ADAPTERS)[number % len(ADAPTERS)]))  # noqa: B023
        found.append(seconds + reference_outputs.first_token_seconds(session.model, session.base))
    return Spread(found).median


def _speeds(report: Report, prepared: rs.PreparedSlot) -> None:
    eager, compiled = prepared.tokens_per_second_eager, prepared.tokens_per_second_compiled
    report.add("plain generation", f"{eager:.0f} tokens/s")
    if compiled and eager:
        report.add("compiled generation", f"{compiled:.0f} tokens/s")
        report.add("compiled / plain", f"{compiled / eager:.2f}")
        report.add("preparing: compile and warm up", f"{prepared.compile_seconds:.0f} s")
    report.notes += prepared.notes


def _against_unprepared(
    report: Report, session: Session, base: Path, prepared_seconds: float
) -> None:
    """Swap with PEFT in a base that was compiled around another rank, and wait for a token."""
    small, large = (session.library.folder(i.id) for i in session.library.all())
    session.unload()
    torch._dynamo.reset()
    model = PeftModel.from_pretrained(load(base), small).eval()
    model.get_base_model().compile(dynamic=True)
    ids = torch.full((1, reference_outputs.MEASURED_PROMPT), 7)

    def first_token() -> None:
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=1,
                do_sample=False,
                pad_token_id=0,
            )

    first_token()

    def swap_and_answer() -> None:
        hotswap_adapter(model, str(large), "default", torch_device="cpu")
        first_token()

    unprepared = timed(swap_and_answer)
    ratio = unprepared / prepared_seconds
    report.add("unprepared / prepared, to the first token", f"{ratio:.0f}", ">= 100", ratio >= 100)
    report.add("prepared swap, its check, and first token", f"{1000 * prepared_seconds:.1f} ms")
    report.add("unprepared swap and first token", f"{unprepared:.1f} s")


# -- what is measured on -------------------------------------------------------------------------


def load(base: Path) -> Any:
    """Load the base plainly."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def lora(rank: int, alpha: int) -> LoraConfig:
    """Configure LoRA on every layer."""
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=EVERYWHERE, task_type="CAUSAL_LM")


def open_session(place: Path, base: Path) -> Session:
    """Open a session of the engine on the base."""
    session = Session(Library(place / "adapters"))
    session.load_base(rq.LoadModel(source=str(base), device="cpu", precision="fp32"), quiet())
    return session


def enlist(session: Session, base: Path, name: str, config: LoraConfig, seed: int) -> None:
    """Put an adapter with random weights into the session's library."""
    torch.manual_seed(seed)
    model = get_peft_model(load(base), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    adapter_id, facts = new_adapter_id(), session.base.facts
    model.save_pretrained(session.library.folder(adapter_id), save_embedding_layers=False)
    info = rs.AdapterInfo(
        id=adapter_id,
        name=name,
        colour=session.library.next_colour(),
        method="LoRA",
        rank=config.r,
        parameters=0,
        base_name=facts.name,
        base_fingerprint=facts.fingerprint,
        created=float(seed),
    )
    session.library.write_sidecar(session.library.folder(adapter_id), info)


def quiet() -> Control:
    """Return ears and a mouth that nobody uses."""
    return Control(0, lambda message: None)


def timed(work: Callable[[], object]) -> float:
    """Return how long something took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _slot(session: Session) -> Any:
    assert session.slot is not None
    return session.slot


if __name__ == "__main__":
    sys.exit(main())
