"""Whatever is done to adapters, in whatever order: the session answers as plain PEFT does."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.oracle.adapters_from_outside import write_sources
from tests.oracle.machine import AdapterMachine
from tests.oracle.workbench import Tally

SETTINGS = settings(
    max_examples=7,
    stateful_step_count=36,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # shrinking takes hours here, and the steps are printed anyway
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.timeout(900)  # the steps are many, and machines are busy
def test_random_sequences_answer_as_plain_peft_does(tmp_path):
    written = {
        base: write_sources(tmp_path / base, tied=base == "tied") for base in ("untied", "tied")
    }

    class Machine(AdapterMachine):
        sources = written
        tally = Tally()

    run_state_machine_as_test(Machine, settings=SETTINGS)
    assert Machine.tally.total >= 200
    assert {"train", "merge", "combine", "convert", "restore"} <= set(Machine.tally.steps)
