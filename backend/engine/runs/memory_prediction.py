"""The memory that a run on the loaded base will take, predicted before and while it starts."""

from typing import NamedTuple

from peft import LoraConfig

from backend.engine.models.model_size import Shape
from backend.engine.session import Session
from backend.engine.steps import few_lengths
from backend.engine.steps.packing import Packs
from backend.engine.training import memory_estimate
from backend.requests import Train
from backend.results import ModelFacts


class Prediction(NamedTuple):
    """The sizes that decide about a run's memory, with its memory settings fixed."""

    shape: Shape
    setup: memory_estimate.Setup

    @property
    def is_tight(self) -> bool:
        """Whether memory is so tight that `memory.exact_allocation` is needed."""
        return self.setup.exact and self.setup.device == "cpu"

    @property
    def run_bytes(self) -> int:
        """The bytes that the run takes beyond the loaded base."""
        return memory_estimate.estimate(self.shape, self.setup).run

    def noted(self, facts: ModelFacts) -> dict[str, int | str]:
        """Return the fields that the run's status keeps."""
        return {
            "predicted_memory_bytes": self.run_bytes,
            "quantization": facts.quantization,
            "stored_precision": facts.precision,
        }


def predict(
    session: Session,
    request: Train,
    packs: Packs,
    *,
    config: LoraConfig,
    learned_share: float,
    computed: str,
    free: int,
) -> Prediction:
    """Predict a run with these packs; `computed` is the precision of its steps."""
    facts = session.base.facts
    shape = Shape.of(session.base.model, facts.parameters)
    rounded = few_lengths.rounds(session.base.device, computed)
    setup = memory_estimate.Setup.of_run(
        request,
        facts,
        config=config,
        layers=session.layers(),
        learned_share=learned_share,
        computed=computed,
        layout=memory_estimate.layout_of(session.base.model, packs, rounded=rounded),
    )
    return Prediction(shape, memory_estimate.settle(shape, setup, free))
