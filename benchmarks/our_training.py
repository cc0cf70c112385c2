"""Our side: a training as the app runs it, in the worker that the service starts."""

import statistics
import tempfile
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from transformers import AutoTokenizer

from backend import Service, Settings
from backend import requests as rq
from backend.engine.data import dataset, tokenization
from backend.engine.training import packing
from backend.results.training_layout import TrainingLayout
from benchmarks.plain_script import BATCH
from benchmarks.speed import Speed, by_the_wall

TIMEOUT_S = 3600.0
NEVER = 1_000_000


def train_request(source: Path, *, budget: int, **more: object) -> rq.Train:
    """Return a training on a file, with nothing held out and no checkpoint before its end.

    What peers do not do is off, so that both sides do the same.
    """
    fields = {"name": "benchmark", "eval_share": 0.0, "save_every": NEVER, **more}
    return rq.Train(data=str(source), tokens_per_step=budget, **fields)


def documents(train: rq.Train, model: Path) -> list[tokenization.Tokens]:
    """Return the tokenised examples of a training, as the engine sees them."""
    source = dataset.read(train.data, eval_share=train.eval_share, seed=train.seed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    return list(tokenization.tokenise(source, tokenizer, max_length=train.longest).train)


def as_many_tokens(examples: list[tokenization.Tokens]) -> int:
    """Return a token budget as large as the script's useful batches: both correct as often."""
    return max(512, round(BATCH * statistics.mean(map(len, examples))))


def plan(
    train: rq.Train, examples: list[tokenization.Tokens], layout: TrainingLayout = "packed"
) -> list[list[int]]:
    """Return the packs that a training goes through."""
    lengths = [len(example) for example in examples]
    packs = packing.plan(
        lengths,
        budget=train.tokens_per_step,
        epochs=train.epochs,
        seed=train.seed,
        layout=layout,
    )
    return packs[: train.max_steps]


class OurTraining:
    """A service with its worker, whose base is loaded afresh for each run.

    Only with the runtime `process` does it compute in the environment that people have.
    """

    def __init__(self, runtime: Literal["process", "inline"] = "process") -> None:
        self._workspace = tempfile.TemporaryDirectory(prefix="workbench-")
        settings = Settings(workspace=Path(self._workspace.name), runtime=runtime)
        self.service = Service(settings)
        self._number = count(1)
        self.fields: dict[str, object] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.service.close()
        self._workspace.cleanup()

    def run(self, model: Path, train: rq.Train, pack_tokens: list[int]) -> Speed:
        """Train once; `pack_tokens` holds the tokens of each step."""
        base = self.service.start(rq.LoadModel(source=str(model), **self.fields)).result(TIMEOUT_S)
        named = train.model_copy(update={"name": f"benchmark {next(self._number)}"})
        job = self.service.start(named)
        result = job.result(TIMEOUT_S)
        assert job.run_id is not None
        ended = [e.time for e in self.service.events(job.run_id) if e.type == "step"]
        return Speed(
            steps=result.tokens_per_second,
            wall=by_the_wall(pack_tokens, ended),
            count=result.steps,
            first_loss=result.first_loss,
            last_loss=result.final_loss,
            precision=result.precision,
            peak_bytes=base.memory_measured_bytes + result.peak_memory_bytes,
        )
