"""Test questions: the same few prompts, answered by base and adapter during a run.

The base answers once, the adapter at each evaluation, always with greedy decoding. Knows nothing of
the training loop; does not change the run's weights or random state.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from backend.engine.core.error_translation import translate
from backend.engine.core.job_control import Control
from backend.engine.inference import chat
from backend.engine.runs.run_log import RunLog
from backend.engine.session import ActiveIds, Session
from backend.errors import WorkbenchError
from backend.requests import Message
from backend.runs.events import EventReader
from backend.settings import STARTER

LONGEST_ANSWER = 32
STARTER_PREFIX = "starter:"
CATALOGUE = STARTER / "data" / "catalogue.json"


def own_prompts(data: str, catalogue: Path = CATALOGUE) -> list[str]:
    """Return the test question of a bundled data set; other data has none."""
    if not data.startswith(STARTER_PREFIX):
        return []
    try:
        entry = json.loads(catalogue.read_text(encoding="utf-8"))[data.removeprefix(STARTER_PREFIX)]
    except (OSError, ValueError, KeyError):
        return []
    prompt = str(entry.get("try_prompt", ""))
    return [prompt] if prompt else []


class Watch:
    """The test questions of one run; `around` lets the model answer in the middle of it."""

    def __init__(
        self,
        session: Session,
        run_log: RunLog,
        control: Control,
        *,
        adapter_id: str,
        around: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.prompts: list[str] = []
        self._session = session
        self._log = run_log
        self._control = control
        self._adapter_id = adapter_id
        self._around = around
        events = EventReader(run_log.run.events_file).poll()
        self._told = {e.prompt for e in events if e.type == "answer" and e.step == 0}

    def choose(self, prompts: list[str]) -> None:
        """Ask these questions from now on; the base answers the new ones."""
        self.prompts = list(dict.fromkeys(prompts))
        new = [prompt for prompt in self.prompts if prompt not in self._told]
        self._answer(0, new, [])
        self._told.update(new)

    def look(self, step: int) -> None:
        """Let the adapter answer with its current weights."""
        self._answer(step, self.prompts, [(self._adapter_id, 1.0)])

    def _answer(self, step: int, prompts: list[str], variant: ActiveIds) -> None:
        if not prompts or self._control.stop_requested:
            return
        questions = [
            chat.Question([Message(role="user", content=prompt)], variant, seed=0)
            for prompt in prompts
        ]
        settings = chat.Settings(max_new_tokens=LONGEST_ANSWER, temperature=0.0)
        try:
            with self._around():
                found, _ = chat.answer(
                    self._session, questions, settings, self._control, lambda number, text: None
                )
        except (WorkbenchError, RuntimeError, MemoryError) as error:
            self._log.notice(f"The test questions were not answered: {translate(error)}")
            return  # this does not end a run
        if self._control.stop_requested:  # the answers are cut off, so they are not recorded
            return
        for prompt, answer in zip(prompts, found, strict=True):
            self._log.answered(step, prompt, answer.text)
