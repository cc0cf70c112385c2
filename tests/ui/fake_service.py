"""A service without a model: the real facade, run folders and library, and a scripted engine.

It takes and gives the messages of the worker process, so the page cannot tell it from the real one;
a training takes as long as `step_seconds` says.
"""

import json
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from backend import Service, Settings, errors
from backend import requests as rq
from backend import results as rs
from backend.library import new_adapter_id
from backend.runs.events import EventWriter
from backend.runs.run_store import Run
from tests.ui import fake_answers, fake_pause
from tests.ui.fake_facts import FACTS, STATS, evaluation

Message = dict[str, Any]
__all__ = ["FACTS", "STATS", "FakeService", "evaluation"]


class FakeEngine:
    """The engine's side of the conversation, on one thread."""

    def __init__(self, service: "FakeService") -> None:
        self.service = service
        self.base: rs.ModelFacts | None = None
        self.active: list[tuple[str, float]] = []
        self.stopped = threading.Event()
        self.died = False
        self.wishes: list[str] = []
        self.inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        if message.get("control") == "adjust":
            self.service.adjusted.append(message["changes"])
        elif message.get("control") in ("pause", "resume", "save"):
            self.wishes.append(message["control"])
        elif "control" in message:
            self.stopped.set()
        else:
            self.inbox.put(message)

    def close(self) -> None:
        self.stopped.set()
        self.inbox.put(None)
        self._thread.join(10)

    def kill(self) -> bool:
        self.died = True
        self.stopped.set()
        return True

    def memory_bytes(self) -> int:
        return 412 * 1024**2

    def _loop(self) -> None:
        while (message := self.inbox.get()) is not None and not self.died:
            request = rq.parse(message["op"], message["request"])
            try:
                result = self.answer(request, message)
            except errors.WorkbenchError as error:
                self.stopped.clear()
                self.say(message, type="error", error=error.to_dict())
            else:
                if self.died:
                    break
                self.stopped.clear()
                self.say(message, type="result", result=result.model_dump(mode="json"))
        if self.died:
            self.service.engine._on_worker_exit("it was killed")

    def answer(self, request: rq.Request, message: Message) -> rs.Result:
        scripted = self.service.script.get(message["op"])
        if scripted is not None:
            outcome = scripted(request)
            if isinstance(outcome, errors.WorkbenchError):
                raise outcome
            return outcome
        handler: Callable[..., rs.Result] = getattr(self, "_" + message["op"].replace("-", "_"))
        return handler(request, message)

    def say(self, message: Message, **reply: Any) -> None:
        self.service.engine.on_message({"id": message["id"], **reply})

    def _session(self) -> None:
        base = self.base.model_dump(mode="json") if self.base else None
        self.service.engine.on_message({"type": "session", "base": base, "active": self.active})

    # -- operations ------------------------------------------------------------------------------

    def _load_model(self, request: rq.LoadModel, message: Message) -> rs.Result:
        self.say(message, type="progress", text="reading weights", fraction=0.5, seconds_left=None)
        time.sleep(self.service.load_seconds)
        self.base = FACTS.model_copy(update={"name": request.source, "source": request.source})
        self.active = []
        self._session()
        return self.base

    def _unload_model(self, request: rq.UnloadModel, message: Message) -> rs.Result:
        self.base, self.active = None, []
        self._session()
        return rs.Unloaded(freed_bytes=15_900_000)

    def _set_active(self, request: rq.SetActive, message: Message) -> rs.Result:
        for name, _ in request.adapters:
            self.service.library.get(name)
        self.active = list(request.adapters)
        self._session()
        return rs.ActiveSet(adapters=self.active, seconds=0.004)

    def _preflight(self, request: rq.Preflight, message: Message) -> rs.Result:
        return fake_answers.preflight(request, self.service.step_seconds)

    def _quantization_table(self, request: rq.QuantizationTable, message: Message) -> rs.Result:
        return fake_answers.quantization_table(request)

    def _preview_data(self, request: rq.PreviewData, message: Message) -> rs.Result:
        return fake_answers.preview()

    def _prepare_data(self, request: rq.PrepareData, message: Message) -> rs.Result:
        self.say(message, type="progress", text="5 of 600 rows read", fraction=0.01, seconds_left=1)
        return rs.PreparedData(rows=600, bad=0, tokens=33_000, seconds=1.0)

    def _describe_hub_data(self, request: rq.DescribeHubData, message: Message) -> rs.Result:
        return fake_answers.on_the_hub(request)

    def _download_hub_data(self, request: rq.DownloadHubData, message: Message) -> rs.Result:
        return rs.DownloadedData(
            source=request.data, rows=600, held_out_rows=0, downloaded_bytes=1000, seconds=1.0
        )

    def _train(self, request: rq.Train, message: Message) -> rs.Result:
        return self._run(self.service.runs.get(message["run_id"]), 0, message)

    def _resume(self, request: rq.Resume, message: Message) -> rs.Result:
        run = self.service.runs.get(request.run_id)
        checkpoint = run.latest_checkpoint()
        assert checkpoint is not None
        return self._run(run, int(checkpoint.name.rsplit("-", 1)[1]), message)

    def _run(self, run: Run, start: int, message: Message) -> rs.Result:
        train = run.request.train
        total = train.max_steps or math.ceil(12 * train.epochs)
        total = total if start < total else start + 12  # a finished run is extended
        events = EventWriter(run.events_file)
        run.claim()
        run.update(total_steps=total)
        events.write("resumed" if start else "started", step=start, total_steps=total)
        step = start
        while step < total and not self.stopped.is_set():
            step += 1
            time.sleep(self.service.step_seconds)
            loss = 0.3 + 3.8 * math.exp(-4 * step / total) + 0.05 * math.sin(step * 12.9898)
            left = (total - step) * self.service.step_seconds
            events.write(
                "step",
                step=step,
                total_steps=total,
                loss=loss,
                learning_rate=train.rate * (1 - step / total),
                tokens_per_second=1020.0,
                seconds_left=left,
            )
            if step % 10 == 0:
                self._save(run, events, step)
                events.write("evaluation", step=step, loss=loss + 0.05, exact_match=step / total)
            run.update(step=step, loss=loss, tokens_per_second=1020.0, trained_seconds=step * 0.3)
            self.say(message, type="progress", text="", fraction=step / total, seconds_left=left)
            self._heed(run, events, step, message)
        if self.died:
            events.close()
            return rs.Unloaded(freed_bytes=0)
        return self._conclude(run, events, step, total)

    def _heed(self, run: Run, events: EventWriter, step: int, message: Message) -> None:
        """Save or pause, as asked; while paused, whoever asks something is answered."""
        while self.wishes:
            word = self.wishes.pop(0)
            if word != "resume":
                self._save(run, events, step)
            if word == "pause":
                fake_pause.hold(self, run, events, step, message)

    def _save(self, run: Run, events: EventWriter, step: int) -> None:
        (run.checkpoints / f"checkpoint-{step}").mkdir(exist_ok=True)
        events.write("saved", step=step)

    def _conclude(self, run: Run, events: EventWriter, step: int, total: int) -> rs.Result:
        state = "finished" if step == total else "stopped"
        after = evaluation(0.35, 0.96)
        self._save(run, events, step)
        self.service.add_adapter(run.request.train.name, run=run, evaluation=after)
        events.write(state, step=step, text=f"{state.capitalize()} after {step} steps.")
        events.close()
        said = f"Stopped after step {step} of {total}; everything is saved."
        run.update(
            state=state,
            eval_loss=0.35,
            exact_match=0.96,
            message=said if state == "stopped" else "",
            cure="Resume continues from there." if state == "stopped" else "",
        )
        return rs.RunResult(
            run_id=run.id,
            adapter=run.request.train.name,
            state=state,
            steps=step,
            total_steps=total,
            first_loss=4.1,
            final_loss=0.3,
            tokens_per_second=1020.0,
            seconds=12.0,
            peak_memory_bytes=0,
            precision="fp32",
            precision_reason="measured",
            evaluation_before=evaluation(4.1, 0.0),
            evaluation=after,
            adapter_path="",
            max_difference=0.0,
        )

    def _save_adapter(self, request: rq.SaveAdapter, message: Message) -> rs.Result:
        self.service.library.get(request.name)
        return rs.SavedAdapter(
            path=request.destination, fingerprint="f", tensors=56, bytes=140_000, max_difference=0.0
        )

    def _push_adapter(self, request: rq.PushAdapter, message: Message) -> rs.Result:
        return rs.PushedAdapter(
            repo_id=request.repo_id,
            url=f"https://hub/{request.repo_id}",
            commit="abc",
            files=["adapter_model.safetensors"],
            bytes=140_000,
        )

    def _chat(self, request: rq.Chat, message: Message) -> rs.Result:
        question = request.messages[-1].content
        answer = f"Arr, {question}" if request.variant else f"You said: {question}"
        for word in answer.split(" "):
            if self.stopped.is_set():
                break
            self.say(message, type="piece", text=word + " ")
            time.sleep(self.service.word_seconds)
        return rs.Answer(text=answer, tokens=len(answer), seconds=0.1)

    def _side_by_side(self, request: rq.SideBySide, message: Message) -> rs.Result:
        said = [messages[-1].content for messages in request.conversations]
        texts = [
            f"Arr, {text}" if variant else f"You said: {text}"
            for text, variant in zip(said, request.variants, strict=True)
        ]
        words = [text.split(" ") for text in texts]
        for number in range(max(map(len, words))):
            if self.stopped.is_set():
                break
            for column, each in enumerate(words):
                if number < len(each):
                    piece = each[number] + " "
                    self.say(message, type="piece", text=piece, column=column)
            time.sleep(self.service.word_seconds)
        whole = [rs.Answer(text=text, tokens=len(text), seconds=0.1) for text in texts]
        return rs.SideAnswers(answers=whole, batched=len(whole))

    def _next_token(self, request: rq.NextToken, message: Message) -> rs.Result:
        return rs.NextTokens(words=["Arr", "The"], chances=[[0.1, 0.9] for _ in request.variants])

    def _merge(self, request: rq.Merge, message: Message) -> rs.Result:
        for number in range(1, 11):
            time.sleep(self.service.step_seconds)
            if self.stopped.is_set():
                raise errors.Stopped("Stopped, as asked. Nothing was changed.")
            text = f"Writing file {1 + number // 6} of 2"
            left = (10 - number) * self.service.step_seconds
            self.say(message, type="progress", text=text, fraction=number / 10, seconds_left=left)
        return rs.Merged(
            path=request.destination,
            bytes=15_397_181,
            files=1,
            precision="fp32",
            max_difference=1.4e-7,
            verified="log-probabilities of 8 texts differ by at most 1e-07; all numbers are "
            "finite, two rows of each of the 28 changed weights match the formula in "
            "float64, and all files were read back",
            notes=[],
            seconds=2.1,
            peak_memory_bytes=34_000_000,
        )

    def _compare(self, request: rq.Compare, message: Message) -> rs.Result:
        return rs.Answers(answers=[[p.upper() for p in request.prompts] for _ in request.variants])

    def _score(self, request: rq.Score, message: Message) -> rs.Result:
        totals = [
            [-10.0 - 5 * number for _ in request.texts] for number in range(len(request.variants))
        ]
        if not request.per_token:
            return rs.Scores(scores=totals, tokens=[10 for _ in request.texts])
        return rs.Scores(
            scores=totals,
            tokens=[10 for _ in request.texts],
            pieces=[[text[:1], text[1:]] for text in request.texts],
            piece_scores=[[[0.0, total] for total in each] for each in totals],
        )


class FakeService(Service):
    """The real facade with a scripted engine; `script` overrides what an operation comes to."""

    def __init__(
        self,
        settings: Settings,
        *,
        step_seconds: float = 0.02,
        load_seconds: float = 0.0,
        word_seconds: float = 0.0,
    ) -> None:
        self.step_seconds = step_seconds
        self.load_seconds = load_seconds
        self.word_seconds = word_seconds
        self.adjusted: list[dict[str, Any]] = []
        self.script: dict[str, Callable[[Any], rs.Result | errors.WorkbenchError]] = {}
        inline = settings.model_copy(update={"runtime": "inline"})
        super().__init__(inline, start_engine=self._fake_engine)

    def _fake_engine(self, settings: Settings, *listeners: Any) -> FakeEngine:
        return FakeEngine(self)

    def add_adapter(
        self,
        name: str,
        *,
        run: Run | None = None,
        evaluation: rs.Evaluation | None = None,
        fingerprint: str = FACTS.fingerprint,
        method: str = "LoRA",
    ) -> rs.AdapterInfo:
        """Put an adapter without weights into the library."""
        adapter_id = run.request.adapter_id if run else new_adapter_id()
        info = rs.AdapterInfo(
            id=adapter_id,
            name=name,
            colour=run.request.colour if run else self.library.next_colour(),
            method=method,
            rank=8,
            parameters=31_744,
            base_name="starter",
            base_fingerprint=fingerprint,
            created=time.time(),
            run_id=run.id if run else None,
            data=run.request.train.data if run else "starter:pirate",
            evaluation_before=_before() if evaluation else None,
            evaluation=evaluation,
            max_difference=0.0,
        )
        folder = self.library.folder(adapter_id)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"peft_type": "LORA", "r": 8, "use_dora": method == "DoRA"}
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        self.library.write_sidecar(folder, info)
        return info


def _before() -> rs.Evaluation:
    return evaluation(4.1, 0.0)
