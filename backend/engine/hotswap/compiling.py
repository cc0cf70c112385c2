"""Compiling the model that `generate` calls, warming it up, and counting compiled graphs.

`torch.compile(peft_model)` and `peft_model.compile()` compile nothing that `generate` uses (PEFT
0.21.2, Transformers 5.23), because it calls the inner base model. So the base model's call is
compiled, and the number of graphs is counted instead of assumed. Knows nothing of adapters.
"""

import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from backend.engine.core import devices
from backend.engine.core.job_control import Control
from backend.engine.hotswap.reference_outputs import answer_tokens
from backend.engine.models.loading import Base

WARM_UP_LENGTHS = (9, 2, 33, 140, 17, 70)
"""Prompt lengths in tokens: the first one compiles, the others show whether a new length does."""
WARM_UP_TOKENS = 4
TELL_EVERY_S = 1.0
NO_COMPILER = (
    "There is no C++ compiler on this machine (g++ or clang++), so answers are not compiled. "
    "Swapping is equally exact."
)
log = logging.getLogger(__name__)


def obstacle(device: torch.device) -> str:
    """Return why compiling is not possible here; empty where it is."""
    if device.type == "mps":
        return "Answers are not compiled on Apple GPUs. Swapping is equally exact."
    if devices.is_gpu(device):
        return "" if find_spec("triton") else "Triton is missing, so answers are not compiled."
    from torch._inductor import config

    names = config.cpp.cxx if isinstance(config.cpp.cxx, list | tuple) else (config.cpp.cxx,)
    return "" if any(name and _runs(name) for name in names) else NO_COMPILER


def graphs() -> int:
    """Return how many graphs this process has compiled."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def install(model: torch.nn.Module) -> None:
    """Make answers use compiled code, which is compiled when it is first needed.

    All other calls of the model (scores, batches, prompts of one token) stay uncompiled, because
    each of their shapes would be compiled again.
    """
    from torch._inductor import config

    config.compile_threads = 1  # no compiler processes that would outlive the worker
    compiled = torch.compile(model._call_impl, dynamic=True)
    model._compiled_call_impl = _route(compiled, model._call_impl)


def remove(model: torch.nn.Module) -> None:
    """Stop using compiled code, and delete it."""
    model._compiled_call_impl = None
    torch.compiler.reset()


def warm_up(base: Base, check_stop: Callable[[], None]) -> None:
    """Answer prompts of several lengths, so that no later one has to compile."""
    limit = base.facts.context_length or WARM_UP_LENGTHS[-1] * 4
    lengths = [n for n in WARM_UP_LENGTHS if n + WARM_UP_TOKENS <= limit]
    for length in lengths:
        check_stop()
        answer_tokens(base.model, base, prompt=length, tokens=WARM_UP_TOKENS)


@contextmanager
def told(control: Control, expected: float, shares: tuple[float, float]) -> Iterator[None]:
    """Report the time left meanwhile, between two shares of the whole operation.

    Neither the compiler nor an answer that waits for it reports progress.
    """
    begun, over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not over.wait(TELL_EVERY_S):
            left = expected - (time.monotonic() - begun)
            share = shares[1] - (shares[1] - shares[0]) * max(left, 0.0) / expected
            text = "Compiling" if left > 0 else "Compiling (takes longer than expected)"
            control.progress(text, share, left if left > 0 else None, force=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def _route(compiled: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        return (compiled if _is_an_answer(named) else plain)(*arguments, **named)

    return call


def _is_an_answer(named: dict[str, Any]) -> bool:
    """Tell whether a call is a step of one answer: its prompt, or a token after it."""
    ids, cache = named.get("input_ids"), named.get("past_key_values")
    if ids is None or cache is None or torch.is_grad_enabled():
        return False
    begun = cache.get_seq_length() > 0
    return ids.shape[0] == 1 and (ids.shape[1] == 1) == begun


def _runs(compiler: str) -> bool:
    if shutil.which(compiler) is None:
        return False
    try:
        subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return True
