"""A paused run: it holds still, its model answers, and it goes on as if nothing had been.

Owns what a pause does to the model and its way back; knows nothing of how a run learns.
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
from backend.engine.training.step_loss import StepMode
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
    """Hold a run still until it is told to go on or to end; serve who asks the model meanwhile.

    A paused run is saved, so that a computer that is switched off loses nothing. Then `look` lets
    the adapter answer what is watched.
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
        pass  # what was asked before the run was told to go on
    run_log.unpaused()
    control.tell("unpaused")


@contextmanager
def aside(
    session: Session, info: AdapterInfo, mode: StepMode, norms: quantization.Norms
) -> Iterator[None]:
    """Make the session of a run that is under way answer; afterwards it learns on, bit for bit."""
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
            session.settle()  # strengths as learned, nobody else learning
            peft.set_adapter(info.id)


@contextmanager
def _same_module_modes(peft: PeftModel) -> Iterator[None]:
    """Put every module back into training or answering, as it was."""
    before = {module: module.training for module in peft.modules()}
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _save(run_log: RunLog, save: Callable[[], int]) -> None:
    """Save; a full disk ends no run that holds still."""
    try:
        run_log.saved(save())
    except DiskFull as error:
        log.warning("A paused run could not be saved: %s", error)
        run_log.notice(f"It could not be saved at this step: {error}")


def deadline(settings: Settings) -> float | None:
    """Return when the time of a run that begins now is over; None where it may take any."""
    return time.monotonic() + settings.demo_seconds if settings.demo else None


def is_over(deadline: float | None) -> bool:
    """Tell whether the time that a run may take is over."""
    return deadline is not None and time.monotonic() > deadline
