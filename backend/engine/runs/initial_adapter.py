"""The adapter that a run trains: fresh, from another one, or from the run's last checkpoint."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel

from backend.engine.methods import peft_io
from backend.engine.session import Session
from backend.requests import Train
from backend.runs.run_store import Run


def put_on(session: Session, run: Run, checkpoint: Path | None) -> PeftModel:
    """Put a run's adapter on the model, not active yet; its weights come with the checkpoint."""
    request, adapter_id = run.request.train, run.request.adapter_id
    session.library.require_place(adapter_id, run.id)  # before hours of training, not after them
    config = _config(session, request, checkpoint)
    session.drop(adapter_id)  # a stopped run's adapter, about to be trained on
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
    return peft_io.configure(request.adapter, session.layers(), session.base.model.name_or_path)
