"""Switching the active set among 20 loaded adapters, against PEFT's own `set_adapter`."""

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

BAR, TIMEOUT_S = 0.1, 120.0


def main(arguments: list[str] | None = None) -> int:
    """Measure both sides in turns on models of their own, and compare their answers."""
    parser = flags(__doc__, repeats="pairs")
    parser.add_argument("--adapters", type=int, default=20, help="how many (default 20)")
    chosen, words = read_flags(parser, arguments, pairs=1, adapters=3)
    report = Report("switching", f"Switching among {chosen.adapters} adapters", words)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        settings = Settings(workspace=Path(name), runtime="inline")
        with Service(settings) as service:
            measure(service, chosen.adapters, chosen.pairs, report, judged=not chosen.quick)
    report.facts = {
        "model": f"starter: {models.describe(models.STARTER_MODEL)}, fp32; LoRA adapters of rank 8 "
        "on all linear layers",
        "runs": f"{chosen.pairs} pairs, each through all adapters once, after an uncounted one",
        "threads": f"{torch.get_num_threads()} on both sides, which take turns in one process",
    }
    return report.finish(save=chosen.save)


def measure(service: Service, count: int, pairs: int, report: Report, *, judged: bool) -> None:
    """Switch through all adapters on both sides, in turns."""
    service.start(rq.LoadModel(source="starter")).result(TIMEOUT_S)
    infos = [add_random_adapter(service, f"a{n}", seed=n, size=0.1) for n in range(count)]
    session, peft = Session(service.library), plain_peft(service, infos)
    session.load_base(rq.LoadModel(source="starter"), silent())
    for info in infos:
        session.ensure_loaded(info)
    ids = [info.id for info in infos]

    def ours() -> float:
        return timed(lambda id: session.activate([(id, 1.0)]), ids)

    def by_peft() -> float:
        return timed(lambda id: peft.set_adapter(id, inference_mode=True), ids)

    ours(), by_peft()  # the first of each is not counted
    found = interleaved(ours, by_peft, pairs=pairs)
    ratio = found.ratios(float)
    report.add(
        "one switch, ours / set_adapter", f"{ratio:.3f}", f"<= {BAR}" if judged else "",
        ratio.median <= BAR if judged else None,
    )  # fmt: skip
    last = found.ours[-1] * 1e3, found.peer[-1] * 1e3
    report.add("one switch, last pair", f"{last[0]:.2f} ms, set_adapter {last[1]:.2f} ms")
    request = rq.SetActive(adapters=[(infos[0].name, 1.0)])
    job = service.start(request)
    job.result(TIMEOUT_S)  # loads it
    seconds = [service.start(request).result(TIMEOUT_S).seconds for _ in range(20)]
    report.add("SetActive as the engine does it", f"{sorted(seconds)[10] * 1e3:.2f} ms")
    report.add("one generated token", f"{token_seconds(session) * 1e3:.1f} ms")
    same = all(same_logits(session, peft, id) for id in ids)
    report.notes.append(
        f"The answers of both sides are {'the same' if same else 'NOT the same'}, bit for bit, "
        "with each adapter.\n"
    )


def plain_peft(service: Service, infos: list[AdapterInfo]) -> PeftModel:
    """Return a model of PEFT's own with the same adapters."""
    folders = [str(service.library.folder(info.id)) for info in infos]
    model = AutoModelForCausalLM.from_pretrained(models.STARTER_MODEL, dtype=torch.float32)
    peft = PeftModel.from_pretrained(model, folders[0], adapter_name=infos[0].id)
    for info, folder in zip(infos[1:], folders[1:], strict=True):
        peft.load_adapter(folder, adapter_name=info.id)
    return peft.eval()


def silent() -> Control:
    """Return a control for an operation that nobody listens to."""
    return Control(0, lambda message: None)


def timed(switch: Callable[[str], object], ids: list[str]) -> float:
    """Return the seconds of one switch, over all adapters in turn."""
    started = time.perf_counter()
    for id in ids:
        switch(id)
    return (time.perf_counter() - started) / len(ids)


def token_seconds(session: Session) -> float:
    """Return the seconds of a generated token, over 50 of them."""
    prompt = torch.arange(5, 15)[None]
    started = time.perf_counter()
    with torch.inference_mode():
        session.model.generate(
            input_ids=prompt, min_new_tokens=50, max_new_tokens=50, do_sample=False
        )
    return (time.perf_counter() - started) / 50


def same_logits(session: Session, peft: PeftModel, adapter_id: str) -> bool:
    """Tell whether both sides compute the same bits with an adapter."""
    session.activate([(adapter_id, 1.0)])
    peft.set_adapter(adapter_id, inference_mode=True)
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        left, right = session.model(input_ids=ids).logits, peft(input_ids=ids).logits
    return torch.equal(left, right)


if __name__ == "__main__":
    raise SystemExit(main())
