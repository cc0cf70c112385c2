"""The adapter that a run trains: new, a copy of another one, or from the run's last checkpoint."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel

from backend.engine.methods import peft_io
from backend.engine.session import Session
from backend.requests import Train
from backend.runs.run_store import Run


def put_on(session: Session, run: Run, checkpoint: Path | None) -> PeftModel:
    """Add a run's adapter to the model, not active yet.

    With a checkpoint only the configuration is read here; Trainer loads the weights later.
    """
    request, adapter_id = run.request.train, run.request.adapter_id
    session.library.require_place(adapter_id, run.id)  # checked before hours of training
    config = _config(session, request, checkpoint)
    session.drop(adapter_id)  # the adapter of the stopped run, which is trained further
    torch.manual_seed(request.seed)
    peft = session.add(adapter_id, peft_io.trainable(config))
    if request.start_from is not None and checkpoint is None:
        peft_io.copy_weights(peft, session.library.get(request.start_from).id, adapter_id)
    return peft


def _config(session: Session, request: Train, checkpoint: Path | None) -> LoraConfig:
    if checkpoint is not None:
        return peft_io.read_config(checkpoint)
    if request.start_from is not None:
        start = session.library.get(request.start_from)
        session.ensure_loaded(start)
        return peft_io.read_config(session.library.folder(start.id))
    return peft_io.configure(
        request.adapter,
        session.layers(),
        session.base.model.name_or_path,
        quantized=session.base.facts.quantization != "none",
    )
