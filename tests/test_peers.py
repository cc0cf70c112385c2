"""What the benchmarks measure against: the peers train on the same tokens as ours."""

from pathlib import Path

import pytest

from benchmarks import models
from benchmarks.our_training import documents, plan, train_request
from benchmarks.packed_loop import train_by_hand
from benchmarks.peer import Peer
from benchmarks.skewed_data import write_skewed
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
