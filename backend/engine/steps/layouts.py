"""The layout of a run's examples: the fastest one that is proven right for the model at hand.

It is found when a base is loaded, by a short trial, so that the pre-flight check and the form know
it. A run proves it again with its own adapter, precision and checkpointing (`isolation`), and falls
back to the next layout where that fails: a run is never refused because of its layout.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from backend.engine.core.job_control import Control
from backend.engine.core.process_group import Ranks
from backend.engine.models.loading import Base
from backend.engine.session import Session
from backend.engine.steps import isolation, model_call
from backend.engine.steps.packing import Packs
from backend.engine.steps.step_loss import StepMode, step_mode
from backend.errors import ModelError, VerificationFailed
from backend.requests import LoadModel
from backend.results import ModelFacts
from backend.results.training_layout import LAYOUTS, TrainingLayout, sentence
from backend.runs.run_records import RunStatus

RECURRENT = ("A_log", "time_decay", "dt_bias", "rg_lru")
"""Parts of the names of parameters that only recurrent layers have."""
log = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """A layout, and why it is not the fastest one; `blocker` is why the base cannot be trained."""

    layout: TrainingLayout
    reason: str = ""
    blocker: str = ""


class RunLayout:
    """The layout of one segment of a run: planned first, proven with what is trained later.

    `planned` decides which examples share a pack. A new run plans with the layout of its base, and
    is planned again where that is not proven. A resumed run keeps its packs, so that it finds its
    place by counting. Several processes do what rank 0 finds.
    """

    def __init__(
        self, base: Base, before: RunStatus, checkpoint: Path | None, ranks: Ranks
    ) -> None:
        self._base = base
        self._resumed = checkpoint is not None
        self._ranks = ranks
        known = before.layout if self._resumed else ranks.agree(lambda: of(base))
        self.planned: TrainingLayout = known or "packed"
        self.alone = False
        """Whether examples are computed one by one, because a resumed run's layout is unproven."""
        self._reason = ""

    @property
    def used(self) -> TrainingLayout:
        return "single" if self.alone else self.planned

    def mode(self, *, checkpointing: bool) -> AbstractContextManager[StepMode]:
        """Open the mode for training steps with the planned layout."""
        return step_mode(self._base, checkpointing=checkpointing, layout=self.planned)

    def prove(self, peft: PeftModel, precision: str, mode: StepMode) -> bool:
        """Prove the layout, or fall back to the next one; returns whether to plan again."""
        found = self._ranks.agree(lambda: prove(self._base, peft, precision, mode, self.planned))
        changed = found.layout != self.planned
        if changed and self._resumed:
            self.alone = True
        self.planned = self.planned if self._resumed else found.layout
        self._reason = found.reason
        mode.change_layout(self.used)
        return changed

    def words(self, packs: Packs) -> str:
        """Return the sentence on the layout that a run records; empty for packed examples."""
        return sentence(self.used, self._reason, packs.padding_share)


def load_base(session: Session, request: LoadModel, control: Control) -> ModelFacts:
    """Load a base into the session, and find its layout; see `Session.load_base`."""
    try:
        session.load_base(request, control)
    finally:  # also the earlier base, where this one could not be loaded
        if session.facts is not None:
            note(session.base)
    return session.base.facts


def of(base: Base) -> TrainingLayout:
    """Return the layout for a base, which is found now where it is not known yet."""
    note(base)
    return base.facts.layout or LAYOUTS[0]


def note(base: Base) -> None:
    """Find the layout of a loaded base, and keep it in its facts.

    Where that fails, for example for lack of memory, the facts stay without it: a trial must not
    cost a base that is loaded, and a run finds out for itself.
    """
    if base.facts.layout:
        return
    try:
        with step_mode(base) as mode:
            found = _quickly(base, mode)
    except Exception as error:
        log.warning("The layout of examples is not known yet.", exc_info=error)
        return
    base.facts = base.facts.model_copy(
        update={
            "layout": found.layout,
            "layout_reason": found.reason,
            "training_blocker": found.blocker,
        }
    )


def prove(
    base: Base,
    model: torch.nn.Module,
    precision: str,
    mode: StepMode,
    wanted: TrainingLayout = "packed",
) -> Verdict:
    """Return the first layout from `wanted` on that is proven right for what a run trains.

    The mode is then that of the layout. Raises ModelError where the base computes numbers that are
    not finite, and VerificationFailed where it cannot compute an example at all.
    """
    reason = base.facts.layout_reason if wanted == base.facts.layout else ""
    for layout in LAYOUTS[LAYOUTS.index(wanted) :]:
        mode.change_layout(layout)
        try:
            check = partial(isolation.require_isolation, base, model, precision, layout)
            _with_any_head(check, model, layout)
        except VerificationFailed as error:
            if layout == LAYOUTS[-1]:
                raise
            log.info("%s is not proven: %s", layout, error)
            reason = reason_of(base, layout, error)
            continue
        return Verdict(layout, reason)
    raise AssertionError("The last layout is right or raises.")


def _quickly(base: Base, mode: StepMode) -> Verdict:
    """Return the first layout that passes a short trial with the base alone."""
    reason = ""
    for layout in LAYOUTS:
        mode.change_layout(layout)
        try:
            check = partial(isolation.require_quickly, base, layout)
            _with_any_head(check, base.model, layout)
        except ModelError as error:
            return Verdict(layout, reason, blocker=str(error))
        except VerificationFailed as error:
            if layout == LAYOUTS[-1]:
                return Verdict(layout, reason, blocker=str(error))
            reason = reason_of(base, layout, error)
            continue
        return Verdict(layout, reason)
    raise AssertionError("The last layout passes or blocks.")


def _with_any_head(
    check: Callable[[], None], model: torch.nn.Module, layout: TrainingLayout
) -> None:
    """Check a layout; where that fails, again with logits for all positions."""
    try:
        check()
    except VerificationFailed:
        if layout == "packed":
            raise
        with model_call.wide_head(model):
            check()


def reason_of(base: Base, layout: TrainingLayout, error: VerificationFailed) -> str:
    """Return why a layout was not used, as a part of a sentence."""
    several = isolation.SEVERAL[layout]
    if isolation.is_proven_wrong(error):
        cause = _cause(base) if layout == "packed" else ""
        return f"{several} would influence each other in this model{cause}"
    # The text of a library says nothing to a reader, and it goes on: the next layout works.
    unproven = isolation.why_unproven(error) if error.__cause__ is None else ""
    return (
        f"it cannot be proven that {several} do not influence each other in this model"
        f"{f' ({unproven})' if unproven else ''}"
    )


def _cause(base: Base) -> str:
    """Return what in a model lets packed examples influence each other, as far as it shows."""
    names = [name for name, _ in base.model.named_parameters()]
    if any(part in name for name in names for part in RECURRENT):
        return " (recurrent layers)"
    if any(name.endswith("sinks") for name in names):
        return " (attention sinks)"
    if any(isinstance(each, torch.nn.Conv1d) for each in base.model.modules()):
        return " (convolutions)"
    if uses_alibi(base.model.config.get_text_config().to_dict()):
        return " (ALiBi)"
    if not model_call.takes(base.model, "position_ids"):
        return " (it takes no position ids)"
    return ""


def uses_alibi(settings: dict[str, Any]) -> bool:
    """Tell whether a config names ALiBi, in itself or in a part of it."""
    parts = [value for value in settings.values() if isinstance(value, dict)]
    own = any("alibi" in str(name).lower() and value for name, value in settings.items())
    return own or any(map(uses_alibi, parts))
