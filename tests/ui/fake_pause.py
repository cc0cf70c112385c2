"""How the scripted engine holds a run still."""

import queue
from typing import Any

from backend import requests as rq
from backend import results as rs
from backend.runs.events import EventWriter
from backend.runs.run_store import Run


def hold(engine: Any, run: Run, events: EventWriter, step: int, message: dict[str, Any]) -> None:
    """Wait until the run is to go on or to end; whoever asks something meanwhile is answered."""
    events.write("paused", step=step)
    run.update(paused=True)
    adapter = _half_trained(run, step).model_dump(mode="json")
    engine.say(message, type="paused", adapter=adapter)
    while "resume" not in engine.wishes and not engine.stopped.is_set():
        try:
            asked = engine.inbox.get(timeout=0.01)
        except queue.Empty:
            continue
        if asked is None:
            engine.inbox.put(None)
            break
        result = engine.answer(rq.parse(asked["op"], asked["request"]), asked)
        engine.say(asked, type="result", result=result.model_dump(mode="json"))
    events.write("unpaused", step=step)
    run.update(paused=False)
    engine.say(message, type="unpaused")


def _half_trained(run: Run, step: int) -> rs.AdapterInfo:
    return rs.AdapterInfo(
        id=run.request.adapter_id,
        name=run.request.train.name,
        colour=run.request.colour,
        method="LoRA",
        rank=8,
        parameters=31_744,
        base_name="starter",
        base_fingerprint=run.request.base_fingerprint,
        created=run.request.created,
        run_id=run.id,
        data=run.request.train.data,
        state="half-trained",
        steps=step,
    )
