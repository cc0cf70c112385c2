"""Descriptions of a run's adapter (`AdapterInfo`) and of its result (`RunResult`)."""

from typing import Any

from peft import PeftModel

from backend.engine.adapters import saving
from backend.engine.core.error_translation import translate
from backend.engine.methods import peft_io
from backend.engine.runs.run_log import RunLog
from backend.engine.session import Session
from backend.errors import DiskFull, OutOfMemory, Stopped, VerificationFailed
from backend.results import AdapterInfo, Evaluation, RunResult
from backend.runs.run_store import Run

UNPROVEN = "unproven-adapter"
"""Where a run's folder keeps an adapter that could not be published."""


def adapter_info(
    session: Session,
    run: Run,
    peft: PeftModel,
    *,
    state: str,
    steps: int,
    evaluations: tuple[Evaluation | None, Evaluation | None],
) -> AdapterInfo:
    """Describe a run's adapter; `evaluations` are those of the base and of the adapter."""
    base, request = session.base.facts, run.request
    train, adapter_id = request.train, request.adapter_id
    config = peft.peft_config[adapter_id]
    before = session.library.by_id(adapter_id)
    return AdapterInfo(
        id=adapter_id,
        name=before.name if before else train.name,  # the adapter of a stopped run may be renamed
        colour=request.colour,
        method=peft_io.method_title(config),
        rank=int(config.r),
        strength="on-off" if config.use_dora else "any",
        targets=peft_io.target_titles(config),
        by_parameter=bool(config.target_parameters),
        parameters=sum(tensor.numel() for tensor in peft_io.weights(peft, adapter_id).values()),
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        created=request.created,
        run_id=run.id,
        data=train.data,
        state=state,
        steps=steps,
        evaluation_before=evaluations[0],
        evaluation=evaluations[1],
        chat_template=base.given_template,
    )


def publish(session: Session, run: Run, info: AdapterInfo) -> float:
    """Publish a run's adapter; where it cannot be proven, keep its weights in the run's folder.

    Raises what `saving.publish` raises, which then says where the weights are.
    """
    try:
        return saving.publish(session, info)
    except (Stopped, OutOfMemory, DiskFull):
        raise
    except Exception as error:
        known = translate(error)
        place = run.folder / UNPROVEN
        if not saving.keep(session, info.id, place):
            raise
        raise VerificationFailed(
            f"The training is done, but its adapter could not be proven: {known.what}",
            cure=f"Its weights are kept in {place}. {known.cure}".strip(),
            details=known.details,
        ) from error


def run_result(
    run: Run, log: RunLog, info: AdapterInfo, *, precision: tuple[str, str], **known: Any
) -> RunResult:
    """Describe a segment's result; `precision` comes with its reason, `known` are other fields."""
    return RunResult(
        run_id=run.id,
        adapter=info.name,
        state="finished" if info.state == "finished" else "stopped",
        steps=log.step,
        first_loss=log.losses[0] if log.losses else None,
        final_loss=log.losses[-1] if log.losses else None,
        tokens_per_second=log.tokens_per_second,
        seconds=log.trained_seconds,
        precision=precision[0],
        precision_reason=precision[1],
        evaluation_before=info.evaluation_before,
        evaluation=info.evaluation,
        predicted_memory_bytes=run.status().predicted_memory_bytes,
        neutral_text=run.status().neutral_text,
        **known,
    )
