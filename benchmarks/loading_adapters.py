"""Loading 50 adapters one after the other, against PEFT's own `load_adapter`."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from backend import Service, Settings
from backend import requests as rq
from backend.engine.core.job_control import Control
from backend.engine.session import Session
from backend.results import AdapterInfo
from benchmarks import models
from benchmarks.interleave import interleaved
from benchmarks.random_adapters import add_random_adapter
from benchmarks.report import Report, flags, read_flags

BAR, TIMEOUT_S = 0.5, 120.0


def main(arguments: list[str] | None = None) -> int:
    """Load the same folders both ways in turns, each time on a fresh base."""
    parser = flags(__doc__, repeats="pairs")
    parser.set_defaults(pairs=3)
    parser.add_argument("--adapters", type=int, default=50, help="how many (default 50)")
    chosen, words = read_flags(parser, arguments, pairs=1, adapters=3)
    report = Report("loading_adapters", f"Loading {chosen.adapters} adapters in turn", words)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        settings = Settings(workspace=Path(name), runtime="inline")
        with Service(settings) as service:
            service.start(rq.LoadModel(source="starter")).result(TIMEOUT_S)
            infos = [
                add_random_adapter(service, f"a{n}", seed=n, size=0.1)
                for n in range(chosen.adapters)
            ]
            measure(service, infos, chosen.pairs, report, judged=not chosen.quick)
    report.facts = {
        "model": f"starter: {models.describe(models.STARTER_MODEL)}, fp32; LoRA adapters of rank 8 "
        "on all linear layers",
        "runs": f"{chosen.pairs} pairs, each on a fresh base; the base's own loading not counted",
        "threads": f"{torch.get_num_threads()} on both sides, which take turns in one process",
    }
    return report.finish(save=chosen.save)


def measure(
    service: Service, infos: list[AdapterInfo], pairs: int, report: Report, *, judged: bool
) -> None:
    """Load all adapters on both sides, in turns, and compare the last models' answers."""
    kept: dict[str, object] = {}

    def ours() -> list[float]:
        session = kept["ours"] = Session(service.library)
        session.load_base(rq.LoadModel(source="starter"), Control(0, lambda message: None))
        return [timed(lambda info=info: session.ensure_loaded(info)) for info in infos]

    def by_peft() -> list[float]:
        model = AutoModelForCausalLM.from_pretrained(models.STARTER_MODEL, dtype=torch.float32)
        first, *others = [(str(service.library.folder(info.id)), info.id) for info in infos]
        wrapped: list[PeftModel] = []
        seconds = [timed(lambda: wrapped.append(PeftModel.from_pretrained(model, *first)))]
        peft = kept["peft"] = wrapped[0]
        return seconds + [timed(lambda each=each: peft.load_adapter(*each)) for each in others]

    found = interleaved(ours, by_peft, pairs=pairs)
    ratio = found.ratios(sum)
    report.add(
        "time for all, ours / load_adapter", f"{ratio:.3f}", f"<= {BAR}" if judged else "",
        ratio.median <= BAR if judged else None,
    )  # fmt: skip
    for side, seconds in (("ours", found.ours[-1]), ("load_adapter", found.peer[-1])):
        report.add(
            f"{side}: all, the second, the last",
            f"{sum(seconds):.2f} s, {seconds[1] * 1e3:.1f} ms, {seconds[-1] * 1e3:.1f} ms",
        )
    same = all(same_logits(kept["ours"], kept["peft"], info.id) for info in infos)
    report.notes.append(
        f"The answers of both sides are {'the same' if same else 'NOT the same'}, bit for bit, "
        "with each adapter. Ours also reads and checks every number of each file.\n"
    )


def timed(work: Callable[[], object]) -> float:
    """Return how many seconds something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def same_logits(session: Session, peft: PeftModel, adapter_id: str) -> bool:
    """Tell whether both sides compute the same bits with an adapter."""
    session.activate([(adapter_id, 1.0)])
    peft.eval().set_adapter(adapter_id, inference_mode=True)
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        left, right = session.model(input_ids=ids).logits, peft(input_ids=ids).logits
    return torch.equal(left, right)


if __name__ == "__main__":
    raise SystemExit(main())
