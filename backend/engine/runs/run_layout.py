"""The layout of a run's examples: planned before the model is ready, proven with what is trained.

A new run plans with the layout of its base, and is planned again where that is not proven. A
resumed run keeps its packs, so that it finds its place by counting.
"""

from contextlib import AbstractContextManager
from pathlib import Path

from peft import PeftModel

from backend.engine.core.process_group import Ranks
from backend.engine.models.loading import Base
from backend.engine.training import layouts
from backend.engine.training.packing import Packs
from backend.engine.training.step_loss import StepMode, step_mode
from backend.results.training_layout import TrainingLayout, sentence
from backend.runs.run_records import RunStatus


class RunLayout:
    """The layout of one segment of a run. `planned` decides which examples share a pack."""

    def __init__(
        self, base: Base, before: RunStatus, checkpoint: Path | None, ranks: Ranks
    ) -> None:
        self._base = base
        self._resumed = checkpoint is not None
        self._ranks = ranks
        known = before.layout if self._resumed else ranks.agree(lambda: layouts.of(base))
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
        """Prove the layout, or fall back to the next one; returns whether to plan again.

        Several processes do what rank 0 finds.
        """
        found = self._ranks.agree(
            lambda: layouts.prove(self._base, peft, precision, mode, self.planned)
        )
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
