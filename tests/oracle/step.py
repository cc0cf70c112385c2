"""One step of the machine, from before it to its comparison."""

from typing import Any

from tests.oracle.workbench import Workbench


class Step:
    """One step, compared with plain PEFT at its end and counted, if anything was asked in it."""

    def __init__(self, machine: Any, kind: str) -> None:
        self.machine, self.kind = machine, kind

    def __enter__(self) -> Workbench:
        self.machine.before_step()
        bench = self.machine.bench
        assert bench is not None
        bench.asked = False
        return bench

    def __exit__(self, failure: object, *_: object) -> None:
        bench = self.machine.bench
        if failure is None and bench is not None and bench.asked:
            bench.compare(self.kind)
            self.machine.tally.steps[self.kind] += 1
