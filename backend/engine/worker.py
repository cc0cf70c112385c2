"""The engine: takes one message after the other, runs its operation, and replies.

Each operation is a method. Its errors are translated once, here. Knows nothing of the channel that
messages come and go by.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from backend import requests as rq
from backend import results as rs
from backend.compile_times import CompileTimes
from backend.engine.adapters import conversion, hub_upload, lifecycle, saving
from backend.engine.blending import combine, similarity
from backend.engine.core import devices, memory
from backend.engine.core.error_translation import translate
from backend.engine.core.job_control import Around, Control, Emit
from backend.engine.core.library_logging import quiet_libraries
from backend.engine.data import preview
from backend.engine.data.token_cache import TokenStore
from backend.engine.export import run_export
from backend.engine.hotswap import prepare
from backend.engine.hub_data import description
from backend.engine.inference import chat, variant_scores
from backend.engine.inference.kept_answers import KeptAnswers
from backend.engine.merging import merge
from backend.engine.methods.adaptable import adaptable
from backend.engine.models import model_skeleton
from backend.engine.planning import preflight, quantization_table
from backend.engine.runs import train_run
from backend.engine.session import Session
from backend.engine.steps import layouts
from backend.library import Library
from backend.operations import WHILE_PAUSED
from backend.runs.run_store import Runs
from backend.settings import Settings

log = logging.getLogger(__name__)
READING_SHARE = 0.5  # of the free memory: the worker runs at the same time as a reading process
Inbox = queue.SimpleQueue[dict[str, Any] | None]
"""Operations waiting to run; None ends the engine."""


class Engine:
    """One session and the operations on it."""

    def __init__(
        self,
        settings: Settings,
        emit: Emit,
        inbox: Inbox | None = None,
        *,
        reads_only: bool = False,
    ) -> None:
        memory.set_aside()
        self._reads_only = reads_only
        self.settings = settings
        self.emit = emit
        self.inbox: Inbox = inbox or queue.SimpleQueue()
        self.library = Library(settings.adapters_dir)
        self.runs = Runs(settings.runs_dir)
        self.session = Session(self.library, settings.models_dir)
        self.kept = KeptAnswers()
        self._controls: list[Control] = []
        self._later: list[dict[str, Any] | None] = []
        self._words: dict[int, list[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._operations: dict[str, Callable[[Any, Control, dict[str, Any]], rs.Result]] = {
            "load-model": self._load_model,
            "unload-model": self._unload_model,
            "train": self._train,
            "resume": self._resume,
            "save-adapter": self._save_adapter,
            "set-active": self._set_active,
            "inspect-adapter": self._inspect_adapter,
            "load-adapter": self._load_adapter,
            "unload-adapter": self._unload_adapter,
            "delete-adapter": self._delete_adapter,
            "restore-adapter": self._restore_adapter,
            "rename-adapter": self._rename_adapter,
            "prepare-hotswap": self._prepare_hotswap,
            "hotswap": self._hotswap,
            "end-hotswap": self._end_hotswap,
            "convert-adapter": self._convert_adapter,
            "chat": self._chat,
            "side-by-side": self._side_by_side,
            "compare": self._compare,
            "score": self._score,
            "next-token": self._next_token,
            "combine": self._combine,
            "similarity": self._similarity,
            "quantization-table": self._quantization_table,
            "preflight": self._preflight,
            "preview-data": self._preview_data,
            "prepare-data": self._prepare_data,
            "describe-hub-data": lambda request, *_: description.describe(request),
            "download-hub-data": lambda request, control, _: description.download(request, control),
            "merge": self._merge,
            "export-run": self._export_run,
            "push-adapter": self._push_adapter,
        }
        quiet_libraries()
        self._data_limit: memory.DataLimit | None = None
        if settings.runtime == "process":
            self._data_limit = memory.DataLimit(
                reserve=settings.memory_reserve_bytes,
                limit=settings.memory_limit_bytes,
                share=READING_SHARE if reads_only else 1.0,
            )

    def control(self, message: dict[str, Any]) -> None:
        """Pass a command to the operation it is meant for, even if that has not started yet."""
        job_id, word = int(message.get("id", 0)), message["control"]
        with self._lock:
            meant = [job_id in (0, each.job_id) for each in self._controls]
            if True not in meant:
                self._words.setdefault(job_id, []).append(message)
                return
            hearing = self._controls[meant.index(True) :]
            # A run that ends also ends the operation that runs while it is paused.
            for each in hearing if word in ("stop", "abort") else hearing[:1]:
                each.hear(word, message)

    def handle(self, message: dict[str, Any]) -> None:
        """Run one operation; reply with the session's state and a result or an error."""
        control = self._open(message)
        if self._data_limit is not None:
            self._data_limit.renew()
        reply = self._reply(message, control)
        try:
            self._settle(control, failed=reply["type"] == "error")
        except Exception as error:  # the caller still waits for a reply
            log.error("%s left no state to report.", message["op"], exc_info=error)
            reply = {"type": "error", "error": translate(error).to_dict()}
        self.emit({**reply, "id": control.job_id})

    def _settle(self, control: Control, *, failed: bool) -> None:
        """Close an operation, and report the session's state after it."""
        if failed:
            self.kept.clear()
            self.session.release()
        guest = self._close(control)
        if not guest:  # a paused run's adapters are its own business
            self._tell_session()

    def _open(self, message: dict[str, Any]) -> Control:
        with self._lock:  # a command that arrives now goes to the new operation, or into the list
            control = Control(int(message["id"]), self.emit, self._serve_while_paused)
            if any(each.stop_requested for each in self._controls):
                control.hear("stop")
            self._controls.append(control)
            for early in self._words.pop(control.job_id, []):
                control.hear(early["control"], early)
        return control

    def _close(self, control: Control) -> bool:
        """Close an operation; return whether it ran while a run is paused."""
        with self._lock:
            self._controls.remove(control)
            guest = bool(self._controls)
        while not guest and self._later:
            self.inbox.put(self._later.pop(0))
        return guest

    def _reply(self, message: dict[str, Any], control: Control) -> dict[str, Any]:
        try:
            request = rq.parse(message["op"], message["request"])
            prepare.require_allowed(self.session.slot, request)
            self.kept.prepare_for(message["op"])
            result = self._operations[message["op"]](request, control, message)
            return {"type": "result", "result": result.model_dump(mode="json")}
        except Exception as error:
            known = translate(error)
            log.info("%s failed: %s", message["op"], known, exc_info=error)
            del error  # its traceback keeps tensors alive
            return {"type": "error", "error": known.to_dict()}

    def _serve_while_paused(self, around: Around, wait: float) -> bool:
        """Run one operation that a paused run allows; other operations wait until the run ends."""
        try:
            message = self.inbox.get(timeout=wait) if wait else self.inbox.get_nowait()
        except queue.Empty:
            return False
        kind = rq.BY_NAME.get(message["op"]) if message else None
        if message is None or kind not in WHILE_PAUSED:
            self._later.append(message)
        else:
            with around():
                self.handle(message)
        return True

    def close(self) -> None:
        """Unload the model."""
        self.session.unload()

    def _tell_session(self) -> None:
        facts, slot = self.session.facts, prepare.prepared(self.session)
        status, irregular = self.session.status()
        self.emit(
            {
                "type": "session",
                "base": facts.model_dump(mode="json") if facts else None,
                "active": slot.active if slot else self.session.active,
                "slot": slot.status().model_dump(mode="json") if slot else None,
                "status": [each.model_dump(mode="json") for each in status],
                "irregular": irregular,
                "free_gpu_bytes": self._free_gpu_bytes(),
            }
        )

    def _free_gpu_bytes(self) -> int | None:
        """Return the free bytes of the base's GPU, for a reading process.

        A process that asks the GPU itself would take memory on it.
        """
        if self.session.facts is None or not devices.is_gpu(self.session.base.device):
            return None
        return memory.available(self.session.base.device)

    def _free_for(
        self, message: dict[str, Any], *, in_turn: bool = False
    ) -> Callable[[torch.device], int]:
        """Return what gives a device's free bytes, `in_turn` after the end of the current run."""
        known = message.get("free_gpu_bytes")
        returned = int(message.get("returned_bytes") or 0) if in_turn else 0

        def free(device: torch.device) -> int:
            if not devices.is_gpu(device):
                return memory.unreserved(self.settings.memory_reserve_bytes) + returned
            return memory.available(device) if known is None else int(known)

        return free if self._reads_only else memory.available

    # -- operations ------------------------------------------------------------------------------

    def _load_model(self, request: rq.LoadModel, control: Control, _: Any) -> rs.ModelFacts:
        return layouts.load_base(self.session, request, control)

    def _unload_model(self, request: rq.UnloadModel, control: Control, _: Any) -> rs.Unloaded:
        return rs.Unloaded(freed_bytes=self.session.unload())

    def _train(self, request: rq.Train, control: Control, message: Any) -> rs.RunResult:
        run = self.runs.get(message["run_id"])
        return train_run.train(self.session, run, control, self._limits(message))

    def _resume(self, request: rq.Resume, control: Control, message: Any) -> rs.RunResult:
        run = self.runs.get(message["run_id"])
        return train_run.train(
            self.session,
            run,
            control,
            self._limits(message),
            resume=True,
            extra_epochs=request.extra_epochs,
            changed_data=request.changed_data,
        )

    def _limits(self, message: Any) -> Settings:
        """Return the settings for the person who asked: the owner of a demo has no time limit."""
        if "owner" in message:
            return self.settings.model_copy(update={"demo": False})
        return self.settings

    def _save_adapter(self, request: rq.SaveAdapter, control: Control, _: Any) -> rs.SavedAdapter:
        info = self.session.find(request.name)
        save = saving.save_copy if self.session.slot is None else prepare.save_copy
        return save(self.session, info, Path(request.destination).expanduser())

    def _inspect_adapter(self, request: rq.InspectAdapter, control: Control, message: Any) -> Any:
        facts, layers = self._place_of(message)
        return lifecycle.inspect(request, self.session, control, facts=facts, layers=layers)

    def _place_of(self, message: Any) -> tuple[rs.ModelFacts | None, list[Any] | None]:
        """Return facts and layers of the session's base, which may live in another process."""
        if self.session.facts is not None:
            return self.session.facts, self.session.layers()
        facts = _facts_of(message)
        if facts is None:
            return None, None
        return facts, adaptable(model_skeleton.skeleton(facts))

    def _load_adapter(self, request: rq.LoadAdapter, control: Control, _: Any) -> rs.Result:
        return lifecycle.add(request, self.session, control, set(self.runs.reserved_names()))

    def _unload_adapter(self, request: rq.UnloadAdapter, control: Control, _: Any) -> rs.Result:
        return lifecycle.unload(request.name, self.session)

    def _delete_adapter(self, request: rq.DeleteAdapter, control: Control, _: Any) -> rs.Result:
        return lifecycle.delete(request.name, self.session)

    def _restore_adapter(self, request: rq.RestoreAdapter, control: Control, _: Any) -> rs.Result:
        taken = self.runs.reserved_names(but=self.library.last_deleted(request.name).id)
        return lifecycle.restore(request.name, self.session, taken)

    def _rename_adapter(self, request: rq.RenameAdapter, control: Control, _: Any) -> rs.Result:
        reserved = self.runs.reserved_names(but=self.library.get(request.name).id)
        return lifecycle.rename(request.name, request.new_name, self.library, reserved)

    def _set_active(self, request: rq.SetActive, control: Control, _: Any) -> rs.ActiveSet:
        started = time.monotonic()
        self.session.set_active(request.adapters)
        return rs.ActiveSet(adapters=self.session.active, seconds=time.monotonic() - started)

    def _prepare_hotswap(self, request: rq.PrepareHotswap, control: Control, _: Any) -> rs.Result:
        times = CompileTimes(self.settings.compile_times_file)
        return prepare.prepare(self.session, request, control, times)

    def _hotswap(self, request: rq.Hotswap, control: Control, _: Any) -> rs.Swapped:
        slot = prepare.prepared(self.session)
        assert slot is not None
        return slot.swap(request.adapter)

    def _end_hotswap(self, request: rq.EndHotswap, control: Control, _: Any) -> rs.SlotLeft:
        return prepare.leave(self.session)

    def _convert_adapter(self, request: rq.ConvertAdapter, control: Control, _: Any) -> rs.Result:
        taken = self.runs.reserved_names()
        return conversion.convert(self.session, request, control, taken=taken)

    def _chat(self, request: rq.Chat, control: Control, _: Any) -> rs.Answer:
        return chat.chat(self.session, request, control, self.kept)

    def _side_by_side(self, request: rq.SideBySide, control: Control, _: Any) -> rs.SideAnswers:
        return chat.side_by_side(self.session, request, control, self.kept)

    def _compare(self, request: rq.Compare, control: Control, _: Any) -> rs.Answers:
        return chat.compare(self.session, request, control)

    def _score(self, request: rq.Score, control: Control, _: Any) -> rs.Scores:
        return variant_scores.score(self.session, request, control)

    def _next_token(self, request: rq.NextToken, control: Control, _: Any) -> rs.NextTokens:
        return variant_scores.next_tokens(self.session, request, control)

    def _combine(self, request: rq.Combine, control: Control, _: Any) -> rs.Blend:
        taken = self.runs.reserved_names()
        return combine.combine(self.session, request, control, taken=taken)

    def _similarity(self, request: rq.Similarity, control: Control, _: Any) -> rs.SimilarityReport:
        return similarity.compare(self.library, request.names, control)

    def _quantization_table(
        self, request: rq.QuantizationTable, control: Control, message: Any
    ) -> rs.QuantizationTable:
        free = self._free_for(message)
        return quantization_table.compare(request, control, self.settings, free=free)

    def _preflight(self, request: rq.Preflight, control: Control, message: Any) -> rs.Result:
        return preflight.check(
            request,
            self.session,
            facts=_facts_of(message),
            runs=self.runs,
            settings=self.settings,
            control=control,
            free=self._free_for(message, in_turn=request.in_turn),
        )

    def _preview_data(self, request: rq.PreviewData, control: Control, message: Any) -> rs.Result:
        return preview.preview(
            request,
            self.session,
            control,
            facts=_facts_of(message),
            store=TokenStore(self.settings.tokens_dir),
        )

    def _prepare_data(self, request: rq.PrepareData, control: Control, message: Any) -> rs.Result:
        return preview.prepare(
            request,
            self.session,
            control,
            facts=_facts_of(message),
            store=TokenStore(self.settings.tokens_dir),
        )

    def _merge(self, request: rq.Merge, control: Control, message: Any) -> rs.Result:
        base = rs.ModelFacts.model_validate(message["base"])
        return merge.merge(request, control, library=self.library, base=base)

    def _export_run(self, request: rq.ExportRun, control: Control, message: Any) -> rs.Result:
        base, run = _facts_of(message), self.runs.get(request.run_id)
        return run_export.export(request, control, run=run, library=self.library, base=base)

    def _push_adapter(self, request: rq.PushAdapter, control: Control, _: Any) -> rs.Result:
        return hub_upload.push(request, control, library=self.library)


def _facts_of(message: dict[str, Any]) -> rs.ModelFacts | None:
    """Return the facts of the session's base, which may live in another process."""
    base = message.get("base")
    return rs.ModelFacts.model_validate(base) if base else None
