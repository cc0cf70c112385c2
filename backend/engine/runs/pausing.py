"""A paused run: its model can answer meanwhile, and it then continues with the same bits.

Owns what a pause does to the model and how that is undone. Knows nothing of the training loop.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from peft import PeftModel

from backend.engine.core import devices
from backend.engine.core.job_control import Control
from backend.engine.models import quantization
from backend.engine.runs.run_log import RunLog
from backend.engine.session import Session
from backend.engine.steps.step_loss import StepMode
from backend.errors import DiskFull
from backend.results import AdapterInfo
from backend.settings import Settings

HALF_TRAINED = "half-trained"
LISTEN_S = 0.1
log = logging.getLogger(__name__)


def hold(
    control: Control,
    run_log: RunLog,
    *,
    info: AdapterInfo,
    save: Callable[[], int],
    look: Callable[[int], None],
    around: Callable[[AdapterInfo], AbstractContextManager[None]],
    deadline: float | None = None,
) -> None:
    """Hold a run until it is resumed or stopped; meanwhile serve other operations on its model.

    A paused run is saved first, so nothing is lost if the computer is switched off. Then `look`
    answers the test questions with the adapter.
    """
    run_log.paused()
    control.tell("paused", adapter=info.model_dump(mode="json"))
    _save(run_log, save)
    if control.pause_requested:
        look(run_log.step)
    while control.pause_requested and not control.stop_requested and not is_over(deadline):
        if control.take_save():
            _save(run_log, save)
        control.serve(lambda: around(info), LISTEN_S)
    while control.serve(lambda: around(info), 0.0):
        pass  # operations that were requested before the run was resumed
    run_log.unpaused()
    control.tell("unpaused")


@contextmanager
def aside(
    session: Session, info: AdapterInfo, mode: StepMode, norms: quantization.Norms
) -> Iterator[None]:
    """Let the session of a running run answer; training then continues with the same bits."""
    peft = session.peft
    assert peft is not None
    with devices.same_random_numbers(session.base.device), _same_module_modes(peft):
        try:
            with mode.suspended(), quantization.narrowed(norms):
                session.learning = info
                session.settle()
                yield
        finally:
            session.learning = None
            session.settle()  # strengths back to 1, no other adapter trainable
            peft.set_adapter(info.id)


@contextmanager
def _same_module_modes(peft: PeftModel) -> Iterator[None]:
    """Restore each module's training or evaluation mode afterwards."""
    before = {module: module.training for module in peft.modules()}
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _save(run_log: RunLog, save: Callable[[], int]) -> None:
    """Save; a full disk does not end a paused run."""
    try:
        run_log.saved(save())
    except DiskFull as error:
        log.warning("A paused run could not be saved: %s", error)
        run_log.notice(f"The run could not be saved at this step: {error}")


def deadline(settings: Settings) -> float | None:
    """Return when a run that starts now has used up its time; None without a time limit."""
    return time.monotonic() + settings.demo_seconds if settings.demo else None


def is_over(deadline: float | None) -> bool:
    """Tell whether a run has used up its time."""
    return deadline is not None and time.monotonic() > deadline
