"""Merging adapters into a base on disk: check, write, verify, and only then put in place.

Never touches the session's model, which can answer meanwhile. The new folder is a base like any
other.
"""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from backend import merge_requirements
from backend.catalogue.chat_templates import CHAT_TEMPLATES
from backend.catalogue.precisions import BYTES
from backend.engine.adapters.saving import PROBES
from backend.engine.core import memory
from backend.engine.core.dtypes import DTYPES
from backend.engine.core.job_control import Control
from backend.engine.core.tolerances import BOUNDS, require_close
from backend.engine.inference import scoring
from backend.engine.merging import in_memory, streaming
from backend.engine.merging.model_card import card
from backend.engine.merging.streaming import Part, StreamedMerge
from backend.engine.models import config_file, loading, model_folder, stored_quantization
from backend.engine.session import Session
from backend.engine.templates import end_marks
from backend.errors import Unsupported
from backend.files import read_limits, safetensors_header
from backend.files.atomic_files import new_folder, remove_partials
from backend.files.foreign_files import read_json
from backend.library import Library
from backend.requests import LoadModel, Merge, Variant
from backend.results import AdapterInfo, Merged, ModelFacts
from backend.sizes import size_text

TEXTS = (
    *PROBES,
    "Where is the cat? The cat is on the mat.",
    "Once upon a time there was a small house at the edge of the wood.",
    "Name three colours: red, green and blue.",
    "def add(a, b):\n    return a + b",
    "The capital of France is Paris.",
)
CPU = torch.device("cpu")
SPARE_BYTES = 300_000_000
"""The bytes for loading a model and scoring a text, in addition to its weights."""
STREAM_SHARE = 0.7
# The files of a model other than its weights and config.json.
COPIED = (
    "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab.*", "merges.txt", "*.model", "chat_template*", "*processor*.json", "LICENSE*", "NOTICE*",
)  # fmt: skip


class Job(NamedTuple):
    """A merge that has passed its checks."""

    base: ModelFacts
    folder: Path
    variant: Variant
    parts: list[Part]
    compute: str
    stored: str
    shard_bytes: int
    packed: str = ""
    """How the files are quantised, where they are unpacked when they are read."""


class Written(NamedTuple):
    """Written weights: how they were verified so far, and the scores that they have to give."""

    proof: str
    peak: int
    notes: list[str]
    reference: list[float] | None = None


class Proof(NamedTuple):
    """How the written model was verified."""

    verified: str
    max_difference: float | None


def merge(request: Merge, control: Control, *, library: Library, base: ModelFacts) -> Merged:
    """Write base and adapters as one model; after a failure there is no destination folder."""
    started = time.monotonic()
    control.progress("Checking", 0.0, force=True)
    infos = merge_requirements.check(request, base, library)
    job = _job(request, base, infos, library)
    destination = Path(request.destination).expanduser().absolute()
    remove_partials(destination)
    memory.reset_peak(CPU)
    with new_folder(destination) as folder:
        written = _write_weights(job, folder, control, library)
        _write_surroundings(job, folder)
        proof = _prove(job, folder, control, library, written)
        text = card(base, infos, request.variant, precision=job.stored, verified=proof.verified)
        (folder / "README.md").write_text(text, encoding="utf-8")
        control.check_stop()
    files = list(destination.iterdir())
    return Merged(
        path=str(destination),
        bytes=sum(file.stat().st_size for file in files if file.is_file()),
        files=sum(file.suffix == ".safetensors" for file in files),
        precision=job.stored,
        max_difference=proof.max_difference,
        verified=proof.verified,
        notes=[*_about_quantised(job), *written.notes],
        seconds=time.monotonic() - started,
        peak_memory_bytes=written.peak,
    )


def _about_quantised(job: Job) -> list[str]:
    """Note which weights were merged into, where the session's base is quantised."""
    if not merge_requirements.is_quantised(job.base):
        return []
    kept = f"The session keeps {job.base.name} in {job.base.quantization}"
    return [f"{kept}; the merge used its full-precision files, which are in {job.stored}."]


def _job(request: Merge, base: ModelFacts, infos: Sequence[AdapterInfo], library: Library) -> Job:
    folder = Path(base.path)
    config = model_folder.check_folder(folder)
    stored = stored_quantization.of(folder, config, base.name)
    if stored is not None and not stored.is_unpacked:
        raise merge_requirements.quantised_files(base.name, stored.title, stored.original)
    return Job(
        base=base,
        folder=folder,
        variant=request.variant,
        parts=[
            Part(info.id, info.name, library.folder(info.id), strength)
            for info, (_, strength) in zip(infos, request.variant, strict=True)
        ],
        compute=merge_requirements.merge_precision(request, base),
        stored=merge_requirements.target_precision(
            request, base, safetensors_header.tensors(folder)
        ),
        shard_bytes=request.shard_bytes,
        packed=stored.title if stored else "",
    )


def _write_weights(job: Job, folder: Path, control: Control, library: Library) -> Written:
    """Write the weights tensor by tensor, or from memory where that would be wrong."""
    if job.packed:
        return _write_from_memory(job, folder, control, library, f"its files are in {job.packed}")
    streamed = StreamedMerge(job.folder, job.parts)
    obstacle = streamed.obstacle(job.base.fingerprint, _session_dtype(job.base))
    if obstacle:
        del streamed
        return _write_from_memory(job, folder, control, library, obstacle)
    wanted = streaming.planned(streamed.stored.values(), DTYPES[job.stored])
    shards = streaming.plan(wanted, job.shard_bytes)
    changed = streaming.write(
        streamed, folder, shards, compute=DTYPES[job.compute], control=control, share=STREAM_SHARE
    )
    peak = memory.peak(CPU)
    del streamed
    memory.release(CPU)
    proof = (
        f"all numbers are finite, two rows of each of the {changed} changed weights match the "
        "formula in float64, and all files were read back"
    )
    return Written(proof, peak, [])


def _write_from_memory(
    job: Job, folder: Path, control: Control, library: Library, obstacle: str
) -> Written:
    """Merge with `merge_and_unload` on a freshly loaded base."""
    memory.require(_answer_bytes(job), CPU, f"Merging {job.base.name} in memory ({obstacle})")
    session = Session(library)
    try:
        control.progress("Loading the base", 0.05, force=True)
        before = _reference(session, job, control)
        control.check_stop()
        control.progress("Merging in memory", 0.4, force=True)
        proof = _merge_and_save(session, job, folder, control)
    finally:
        session.unload()
    note = f"Merged in memory instead of tensor by tensor, because {obstacle}."
    return Written(proof, memory.peak(CPU), [note], before)


def _prove(job: Job, folder: Path, control: Control, library: Library, written: Written) -> Proof:
    """Compare scores of base plus adapters with those of the written model, one after the other.

    Where the model does not fit into memory, the proof says so.
    """
    control.check_stop()
    why = _too_much(job) if written.reference is None else ""
    if why:
        return Proof(f"{written.proof}. Answers were not compared ({why})", None)
    control.progress("Comparing answers", STREAM_SHARE, force=True)
    before = written.reference
    if before is None:
        session = Session(library)
        before = _reference(session, job, control)
        session.unload()
    control.check_stop()
    control.progress("Comparing answers", (1 + STREAM_SHARE) / 2, force=True)
    difference = _compare(job, before, _answers(job, folder, control))
    apart = f"differ by at most {difference:.0e}" if difference else "are the same"
    return Proof(f"log-probabilities of {len(before)} texts {apart}; {written.proof}", difference)


def _too_much(job: Job) -> str:
    """Return why answers cannot be compared on this machine; empty where they can."""
    if job.base.precision == "fp16":
        return "the session computes in fp16, which is not possible on a processor"
    need, free = _answer_bytes(job), memory.available(CPU)
    if need <= free:
        return ""
    return f"this needs {size_text(need)} of memory, and {size_text(free)} are free"


def _answers(job: Job, folder: Path, control: Control) -> list[float]:
    """Score the texts with the written model, loaded like any other base."""
    precision = "fp32" if job.stored == "fp16" else job.stored  # fp16 is slow on a processor
    request = LoadModel(source=str(folder), precision=precision, device="cpu")
    written = loading.load(request, _quiet(control))
    scores = [scoring.score(written.model, written, text)[0] for text in _texts(job.base)]
    del written
    memory.release(CPU)
    return scores


def _compare(job: Job, before: list[float], after: list[float]) -> float:
    coarsest = max((DTYPES[job.compute], DTYPES[job.stored]), key=lambda dtype: BOUNDS[dtype])
    return require_close(
        after,
        before,
        dtype=coarsest,
        what="The merged model was read back",
        cure="Nothing was kept. Merge in fp32, or lower the strengths.",
    )


def _reference(session: Session, job: Job, control: Control) -> list[float]:
    """Load the base again and score the texts with the adapters on it, as a session does."""
    _load_base(session, job, _quiet(control))
    with session.using(job.variant):
        return [scoring.score(session.model, session.base, text)[0] for text in _texts(job.base)]


def _merge_and_save(session: Session, job: Job, folder: Path, control: Control) -> str:
    """Merge with `merge_and_unload` and write the result; return how that was verified."""
    ids = session.resolve(job.variant)
    session.activate(ids)
    assert session.peft is not None
    merged: Any = session.peft.merge_and_unload(safe_merge=True, adapter_names=[i for i, _ in ids])
    session.peft = None
    return in_memory.write(
        merged,
        job.folder,
        folder,
        dtype=DTYPES[job.stored],
        shard_bytes=job.shard_bytes,
        control=control,
    )


def _load_base(session: Session, job: Job, control: Control) -> None:
    """Load the base's files again; raises Unsupported where they are no longer the same base."""
    if job.base.precision == "fp16":
        raise Unsupported(
            f"{job.base.name!r} can only be merged in memory, and fp16 is too imprecise for that.",
            cure="Load it in bf16 or fp32.",
        )
    request = LoadModel(source=str(job.folder), precision=job.compute, device="cpu")
    facts = session.load_base(request, control)
    if facts.fingerprint != job.base.fingerprint:
        raise Unsupported(
            f"The files of {job.base.name!r} have changed since it was loaded.",
            cure="Load it again, then merge.",
        )


def _session_dtype(base: ModelFacts) -> torch.dtype:
    """Return the dtype in which the base's fingerprint was computed."""
    return DTYPES.get(base.precision, torch.float32)


def _texts(base: ModelFacts) -> list[str]:
    """Return the texts to score, cut to the model's context length."""
    limit = base.context_length or 512
    return [text[: max(4, limit - 4)] for text in TEXTS]


def _answer_bytes(job: Job) -> int:
    """Return the memory that loading the base with its adapters takes."""
    item = max(BYTES[job.compute], BYTES[job.stored])
    adapters = sum(
        tensor.bytes
        for part in job.parts
        for tensor in safetensors_header.read_header(part.folder / "adapter_model.safetensors")
    )
    return int(1.1 * job.base.parameters * item) + 2 * adapters + SPARE_BYTES


def _write_surroundings(job: Job, folder: Path) -> None:
    """Write the configuration; copy tokenizer, generation settings and chat template.

    No program code is copied, so no file may name any: the folder is read without it everywhere.
    """
    _write_config(job, folder)
    for pattern in COPIED:
        for file in job.folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
    for name in ("tokenizer_config.json", "generation_config.json"):
        _name_no_code(folder / name)
    _write_end_tokens(job, folder)
    templates = job.folder / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, folder / templates.name)
    if job.base.given_template != "own":
        given = CHAT_TEMPLATES[job.base.given_template].jinja
        (folder / "chat_template.jinja").write_text(given, encoding="utf-8")


def _name_no_code(file: Path) -> None:
    if not file.is_file():
        return
    said = read_json(file, read_limits.TOKENIZER_BYTES, file.name)
    if isinstance(said, dict) and config_file.brings_code(said):
        file.write_text(json.dumps(config_file.without_code(said), indent=2) + "\n", "utf-8")


def _write_end_tokens(job: Job, folder: Path) -> None:
    """Add the tokens that end an answer in training to those that end one elsewhere."""
    file = folder / "generation_config.json"
    if file.is_file():
        known = read_json(file, read_limits.CONFIG_BYTES, file.name)
    else:
        config = read_json(folder / "config.json", read_limits.CONFIG_BYTES, "config.json")
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        known = {name: config[name] for name in ids if config.get(name) is not None}
    own = known.get("eos_token_id")
    own = own if isinstance(own, list) else [] if own is None else [own]
    tokenizer = model_folder.read_tokenizer(job.folder, job.base.given_template)
    ends = list(dict.fromkeys([*own, *end_marks.end_tokens(tokenizer)]))
    if ends and ends != own:
        known["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _write_config(job: Job, folder: Path) -> None:
    """Write the base's configuration with the new dtype of the weights."""
    config = read_json(
        job.folder / "config.json", read_limits.CONFIG_BYTES, "The base's config.json"
    )
    name = str(DTYPES[job.stored]).removeprefix("torch.")
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        old = part.pop("torch_dtype", None)
        if part is config or old is not None or "dtype" in part:
            part["dtype"] = name
    for key in ("quantization_config", "_name_or_path", config_file.CODE):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _quiet(control: Control) -> Control:
    """Return a control without progress, for loading a model in the middle of the merge."""
    return Control(control.job_id, lambda message: None)
