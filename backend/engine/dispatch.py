"""The engine: takes one message after the other, runs its operation, and replies.

Each operation is a method; whatever it raises is translated once, here.
"""

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from backend import requests as rq
from backend import results as rs
from backend.engine import conversion, generate, hotswap, memory, preflight, saving, training
from backend.engine.control import Control, Emit
from backend.engine.failures import translate
from backend.engine.precision import Timings
from backend.engine.session import Session
from backend.library import Library
from backend.runs import Runs
from backend.settings import Settings

log = logging.getLogger(__name__)


class Engine:
    """One session and the operations on it."""

    def __init__(self, settings: Settings, emit: Emit) -> None:
        self.settings = settings
        self.emit = emit
        self.library = Library(settings.adapters_dir)
        self.runs = Runs(settings.runs_dir)
        self.session = Session(self.library)
        self._control: Control | None = None
        self._words: dict[int, list[str]] = {}
        self._operations: dict[str, Callable[[Any, Control, dict[str, Any]], rs.Result]] = {
            "load-model": self._load_model,
            "unload-model": self._unload_model,
            "train": self._train,
            "resume": self._resume,
            "save-adapter": self._save_adapter,
            "set-active": self._set_active,
            "prepare-hotswap": self._prepare_hotswap,
            "hotswap": self._hotswap,
            "end-hotswap": self._end_hotswap,
            "convert-adapter": self._convert_adapter,
            "chat": self._chat,
            "compare": self._compare,
            "score": self._score,
            "preflight": self._preflight,
            "preview-data": self._preview_data,
        }
        quiet_libraries()
        if settings.runtime == "process":
            memory.limit_data(
                reserve=settings.memory_reserve_bytes, limit=settings.memory_limit_bytes
            )

    def control(self, message: dict[str, Any]) -> None:
        """Pass a word to the operation it is meant for, also if that has not begun yet."""
        job_id = int(message.get("id", 0))
        current = self._control
        if current is not None and job_id in (0, current.job_id):
            current.hear(message["control"])
        else:
            self._words.setdefault(job_id, []).append(message["control"])

    def handle(self, message: dict[str, Any]) -> None:
        """Run one operation and reply with the session's state and a result or an error."""
        control = self._control = Control(int(message["id"]), self.emit)
        for word in self._words.pop(control.job_id, []):
            control.hear(word)
        try:
            request = rq.parse(message["op"], message["request"])
            hotswap.require_allowed(self.session.slot, request)
            result = self._operations[message["op"]](request, control, message)
            reply = {"type": "result", "result": result.model_dump(mode="json")}
        except Exception as error:
            known = translate(error)
            log.info("%s failed: %s", message["op"], known, exc_info=error)
            reply = {"type": "error", "error": known.to_dict()}
            del error  # its traceback keeps tensors alive
        if reply["type"] == "error":
            self.session.release()
        self._control = None
        self._tell_session()
        self.emit({**reply, "id": control.job_id})

    def close(self) -> None:
        """Let the model go."""
        self.session.unload()

    def _tell_session(self) -> None:
        facts, slot = self.session.facts, self.session.slot
        self.emit(
            {
                "type": "session",
                "base": facts.model_dump(mode="json") if facts else None,
                "active": slot.active if slot else self.session.active,
                "slot": slot.status().model_dump(mode="json") if slot else None,
            }
        )

    # -- operations ------------------------------------------------------------------------------

    def _load_model(self, request: rq.LoadModel, control: Control, _: Any) -> rs.ModelFacts:
        return self.session.load_base(request, control)

    def _unload_model(self, request: rq.UnloadModel, control: Control, _: Any) -> rs.Unloaded:
        return rs.Unloaded(freed_bytes=self.session.unload())

    def _train(self, request: rq.Train, control: Control, message: Any) -> rs.RunResult:
        run = self.runs.get(message["run_id"])
        return training.train(self.session, run, control, self.settings)

    def _resume(self, request: rq.Resume, control: Control, message: Any) -> rs.RunResult:
        run = self.runs.get(message["run_id"])
        return training.train(self.session, run, control, self.settings, resume=True)

    def _save_adapter(self, request: rq.SaveAdapter, control: Control, _: Any) -> rs.SavedAdapter:
        info = self.library.get(request.name)
        save = saving.save_copy if self.session.slot is None else hotswap.save_copy
        return save(self.session, info, Path(request.destination).expanduser())

    def _set_active(self, request: rq.SetActive, control: Control, _: Any) -> rs.ActiveSet:
        started = time.monotonic()
        self.session.set_active(request.adapters)
        return rs.ActiveSet(adapters=self.session.active, seconds=time.monotonic() - started)

    def _prepare_hotswap(self, request: rq.PrepareHotswap, control: Control, _: Any) -> rs.Result:
        return hotswap.prepare(self.session, request, control)

    def _hotswap(self, request: rq.Hotswap, control: Control, _: Any) -> rs.Swapped:
        assert self.session.slot is not None
        return self.session.slot.swap(request.adapter)

    def _end_hotswap(self, request: rq.EndHotswap, control: Control, _: Any) -> rs.SlotLeft:
        return hotswap.leave(self.session)

    def _convert_adapter(self, request: rq.ConvertAdapter, control: Control, _: Any) -> rs.Result:
        taken = self.runs.reserved_names()
        return conversion.convert(self.session, request, control, taken=taken)

    def _chat(self, request: rq.Chat, control: Control, _: Any) -> rs.Answer:
        started = time.monotonic()
        with self.session.using(request.variant):
            text, tokens = generate.answer(
                self.session.model,
                self.session.base,
                request.messages,
                max_new_tokens=request.max_new_tokens,
                temperature=request.temperature,
                seed=request.seed,
                on_text=control.piece,
                should_stop=lambda: control.stop_requested,
            )
        return rs.Answer(text=text, tokens=tokens, seconds=time.monotonic() - started)

    def _compare(self, request: rq.Compare, control: Control, _: Any) -> rs.Answers:
        return rs.Answers(
            answers=[self._answers(request, variant, control) for variant in request.variants]
        )

    def _answers(self, request: rq.Compare, variant: rq.Variant, control: Control) -> list[str]:
        texts = []
        with self.session.using(variant):
            for prompt in request.prompts:
                control.check_stop()
                text, _ = generate.answer(
                    self.session.model,
                    self.session.base,
                    [rq.Message(role="user", content=prompt)],
                    max_new_tokens=request.max_new_tokens,
                    temperature=request.temperature,
                    seed=request.seed,
                )
                texts.append(text)
        return texts

    def _score(self, request: rq.Score, control: Control, _: Any) -> rs.Scores:
        totals: list[list[float]] = []
        counts: list[int] = []
        for variant in request.variants:
            with self.session.using(variant):
                control.check_stop()
                pairs = [
                    generate.score(self.session.model, self.session.base, text)
                    for text in request.texts
                ]
            totals.append([total for total, _ in pairs])
            counts = [count for _, count in pairs]
        return rs.Scores(scores=totals, tokens=counts)

    def _preflight(self, request: rq.Preflight, control: Control, message: Any) -> rs.Result:
        return preflight.check(
            request,
            self.session,
            base_path=message["base_path"],
            runs=self.runs,
            timings=Timings(self.settings.timings_file),
        )

    def _preview_data(self, request: rq.PreviewData, control: Control, message: Any) -> rs.Result:
        return preflight.preview(request, self.session, base_path=message["base_path"])


def quiet_libraries() -> None:
    """Keep the libraries' own progress bars and advice out of the logs: ours say what matters."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="peft")
    # PEFT 0.21.2 reads a property that Transformers 5.23 renamed.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
