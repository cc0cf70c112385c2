"""What the benchmarks measure against: the peers train on the same tokens as ours."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import models
from benchmarks.our_training import documents, plan, train_request
from benchmarks.packed_loop import train_by_hand
from benchmarks.peer import Peer
from benchmarks.qlora_gpu import PARTS, Sides
from benchmarks.report import Report
from benchmarks.skewed_data import write_skewed
from benchmarks.speed import Speed, StepLog
from benchmarks.trl_script import train_with_trl


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_trl_has_the_loss_of_the_packed_loop(tmp_path: Path, precision: str) -> None:
    model = models.random_llama(tmp_path / "llama", models.TINY)
    data = write_skewed(tmp_path / "skewed.jsonl", 12)
    # All examples in one pack, and weights that stay as they are: then every loss is the base's.
    train = train_request(data, budget=2048, epochs=2, learning_rate=1e-12)
    examples = documents(train, model)
    packs = [[examples[number] for number in pack] for pack in plan(train, examples)]
    assert len(packs) == 2

    by_hand = train_by_hand(model, train, packs, precision)
    with Peer() as peer:
        with_trl = peer.run(train_with_trl, model, train, examples, precision)

    assert with_trl.last_loss == pytest.approx(by_hand.last_loss, rel=1e-5)
    assert with_trl.count == 2
    assert with_trl.precision == precision


def test_a_batch_fetched_ahead_is_not_counted() -> None:
    log = StepLog("fp32", tokens=[10, 20, 30], seconds=[1.0, 1.0], ended=[1.0, 2.0], losses=[3.0])

    assert (log.speed().steps, log.speed().wall, log.speed().count) == (15.0, 20.0, 2)


FAST = Speed(steps=90.0, wall=100.0, count=3, first_loss=3.0, last_loss=2.0, precision="bf16")


class Prepared(Sides):
    """Sides with known results: one of them fails."""

    def __init__(self) -> None:
        self._part = PARTS[0]

    @property
    def _sides(self) -> dict[str, Callable[[], Speed]]:
        def broken() -> Speed:
            raise RuntimeError("CUDA error | at once\nand more")

        return {"ours": lambda: FAST, "TRL": broken, "script": lambda: replace(FAST, wall=50.0)}


def test_a_side_that_fails_leaves_the_others_in_the_table() -> None:
    report = Report("qlora_gpu", "title", [])
    Prepared().measure(report, until=time.monotonic() + 60)

    rows = {row.what: row.figure for row in report.rows}
    assert rows["0.5B in bf16, TRL"] == "failed: RuntimeError: CUDA error / at once"
    assert rows["0.5B in bf16: ours / script"] == "2.00"
    assert "0.5B in bf16: ours / TRL" not in rows


def test_no_side_starts_when_the_time_is_over() -> None:
    report = Report("qlora_gpu", "title", [])
    Prepared().measure(report, until=time.monotonic() - 1)

    assert {row.figure for row in report.rows} == {"not measured: the time was over"}
