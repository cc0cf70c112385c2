"""A training run, from its folder to its adapter in the library; a failure undoes every change."""

from backend.engine.core.error_translation import translate
from backend.engine.core.job_control import Control
from backend.engine.core.process_group import ALONE, Ranks
from backend.engine.runs.run_log import RunLog, output_to
from backend.engine.runs.segment import Segment
from backend.engine.session import Session
from backend.errors import DataChanged
from backend.results import DataChange, RunResult
from backend.runs.run_records import RunStatus
from backend.runs.run_store import Run
from backend.settings import Settings


def train(
    session: Session,
    run: Run,
    control: Control,
    settings: Settings,
    *,
    resume: bool = False,
    extra_epochs: float = 0.0,
    changed_data: bool = False,
    ranks: Ranks = ALONE,
    before: RunStatus | None = None,
) -> RunResult:
    """Train a run's adapter, or continue from its last checkpoint; the run folder records it.

    `extra_epochs` extends a finished run. A failure leaves the session as it was and the run
    `failed`; a run that is resumed stays as it was `before` it was claimed until it makes a step.
    Each of several processes calls this with its own `ranks`; rank 0 writes for all. Raises Busy
    where another process trains the run, and DataChanged where its data has changed, unless
    `changed_data` is set.
    """
    before = before or run.known_status()
    with run.claimed(launched=ranks.launched):
        log = RunLog(run, control, before if resume else None)
        try:
            with output_to(run.log):
                segment = Segment(
                    session,
                    log,
                    control,
                    settings,
                    ranks,
                    resume=resume,
                    extra_epochs=extra_epochs,
                    changed_data=changed_data,
                )
                return segment.execute()
        except DataChanged as error:
            asked = DataChange(what=error.what, extra_epochs=extra_epochs)
            run.put_back(before, data_change=asked)
            raise
        except BaseException as error:
            known = ranks.explained(error, run)
            log.failed(translate(known))
            if known is not error:
                raise known from error
            raise
        finally:
            log.close()
