"""Saving adapters: written to a new folder, read back, compared, and only then put in place.

Knows nothing of how an adapter was made."""

import hashlib
import logging
import tempfile
import time
from pathlib import Path

from peft import PeftModel
from safetensors import safe_open

from backend.catalogue.chat_templates import CHAT_TEMPLATES
from backend.catalogue.packaged_models import MODEL_NAMES
from backend.catalogue.precisions import TORCH_NAMES
from backend.engine.core import devices
from backend.engine.core.tolerances import require_close
from backend.engine.inference import scoring
from backend.engine.methods import adaptable, file_validation, peft_io
from backend.engine.methods.peft_io import WEIGHTS
from backend.engine.session import Session
from backend.errors import ModelError, VerificationFailed, WorkbenchError
from backend.files.atomic_files import new_folder
from backend.results import AdapterInfo, SavedAdapter

TEMPLATE = "chat_template.jinja"
"""The file in which Transformers looks for a tokenizer's chat template."""
log = logging.getLogger(__name__)
PROBES = ("The quick brown fox jumps over the lazy dog.", "Hello! How are you today?", "1 + 1 = 2")


def publish(session: Session, info: AdapterInfo) -> float:
    """Save an adapter on the model to the library, replacing an older state of the same run.

    Returns the largest difference of log-probabilities between the adapter on the model and the
    file read back. Raises VerificationFailed where these are not the same adapter (the older state
    is then kept), and InvalidRequest where the folder belongs to another adapter.
    """
    with session.library.receive(info) as folder:
        _write(session, info, folder)
        difference = verify(session, info.id, folder)
        proven = info.model_copy(update={"max_difference": difference})
        session.library.write_sidecar(folder, proven)
        return difference


def require_readable(session: Session, adapter_id: str) -> None:
    """Raise ModelError or Unsupported where an adapter on the model could not be read back.

    Called before a run's first step, so that no training ends with an adapter that is lost. Where
    PEFT converts adapters of this kind of base as it loads them, it loads this one, too. Random
    numbers stay as they were.
    """
    peft = _peft(session)
    place = tempfile.TemporaryDirectory(prefix="adapter-")
    with devices.same_random_numbers(session.base.device), place as name:
        folder = Path(name) / "adapter"
        peft_io.write(peft, adapter_id, folder)
        file_validation.scan(folder, session.layers(), name="The run's new adapter")
        if not adaptable.is_converted(session.base.model, peft.peft_config[adapter_id]):
            return
        reloaded = session.new_id()
        try:
            session.load_folder(folder, reloaded, plainly=True)
            if not peft_io.same_effect(peft, adapter_id, reloaded):
                raise ModelError("PEFT could not read back what this run would train.")
        finally:
            session.drop(reloaded)


def keep(session: Session, adapter_id: str, folder: Path) -> bool:
    """Write an adapter as it is to a new folder, unproven; return whether that was possible."""
    try:
        if not folder.exists():
            peft_io.write(_peft(session), adapter_id, folder)
        return True
    except (WorkbenchError, OSError, RuntimeError, MemoryError) as error:
        log.warning("An adapter could not be kept.", exc_info=error)
        return False


def save_copy(session: Session, info: AdapterInfo, destination: Path) -> SavedAdapter:
    """Write a copy of an adapter into a new or empty folder and verify it."""
    with session.keeping_active(), new_folder(destination) as folder:
        session.ensure_loaded(info)
        _write(session, info, folder)
        session.library.write_sidecar(folder, info)
        difference = verify(session, info.id, folder)
    return describe_copy(destination, max_difference=difference)


def describe_copy(destination: Path, *, max_difference: float) -> SavedAdapter:
    """Describe a written copy from its files."""
    file = destination / WEIGHTS
    with safe_open(file, framework="pt") as stored:
        tensors = len(stored.keys())
    return SavedAdapter(
        path=str(destination),
        fingerprint=_digest(file),
        tensors=tensors,
        bytes=file.stat().st_size,
        max_difference=max_difference,
    )


def verify(session: Session, adapter_id: str, folder: Path) -> float:
    """Read a written folder back and compare it with the adapter on the model.

    Compares every tensor bit for bit: those of the file, and those that PEFT's own code loads from
    the folder, with the scaling of each layer. Returns the largest difference of log-probabilities
    of a few sentences. In bf16 these hardly distinguish adapters; they show that the model still
    computes.
    """
    if not peft_io.same_weights(_peft(session), adapter_id, folder):
        raise VerificationFailed(f"{folder.name} does not contain the weights that were saved.")
    reloaded = session.new_id()
    try:
        session.load_folder(folder, reloaded, plainly=True)
        with session.using_ids([]):  # at strength 1
            if not peft_io.same_effect(_peft(session), adapter_id, reloaded):
                raise VerificationFailed(f"PEFT loads a different adapter from {folder.name}.")
        live, stored = _scores(session, adapter_id), _scores(session, reloaded)
    finally:
        session.drop(reloaded)
    return require_close(
        stored,
        live,
        dtype=session.base.dtype,
        what="The saved adapter was read back",
        allowed=session.base.bound,
    )


def _scores(session: Session, adapter_id: str) -> list[float]:
    with session.using_ids([(adapter_id, 1.0)]):
        return [scoring.score(session.model, session.base, text)[0] for text in PROBES]


def _write(session: Session, info: AdapterInfo, folder: Path) -> None:
    peft = _peft(session)
    if not peft_io.weights(peft, info.id):
        raise ModelError(f"{info.name!r} has no weights to save.")
    if not peft_io.all_finite(peft, info.id):
        raise VerificationFailed(f"{info.name!r} contains numbers that are not finite.")
    peft_io.write(peft, info.id, folder)
    write_card(session, info, folder)


def write_card(session: Session, info: AdapterInfo, folder: Path) -> None:
    """Write an adapter's model card, and the chat template that it needs, to its folder."""
    (folder / "README.md").write_text(_card(session, info), encoding="utf-8")
    if info.chat_template in CHAT_TEMPLATES:
        jinja = CHAT_TEMPLATES[info.chat_template].jinja
        (folder / TEMPLATE).write_text(jinja, encoding="utf-8")


def _peft(session: Session) -> PeftModel:
    if session.peft is None:
        raise ModelError("No adapter is loaded.")
    return session.peft


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _card(session: Session, info: AdapterInfo) -> str:
    """Return the model card: what the adapter is, what it was made from, how to use it."""
    facts = session.base.facts
    base = facts.path if facts.source in MODEL_NAMES or facts.origin else facts.source
    made = time.strftime("%Y-%m-%d", time.localtime(info.created))
    lines = [
        "---",
        "library_name: peft",
        f"tags: [{info.method.lower()}, adapter-workbench]",
        "---",
        f"# {info.name}",
        "",
        f"A {info.method} adapter of rank {info.rank} for the base model {facts.name}, made on "
        f"{made} with Adapter Workbench.",
        "",
        *_made_from(info),
        f"- Base fingerprint: {info.base_fingerprint}",
    ]
    given = CHAT_TEMPLATES.get(info.chat_template)
    if given is not None:
        lines.append(f"- Chat template: {given.title} ({TEMPLATE}): the base has none to read")
    if info.evaluation is not None and info.evaluation_before is not None:
        before, after = info.evaluation_before, info.evaluation
        if before.exact_match is not None and after.exact_match is not None:
            lines.append(
                f"- Held-out exact match: base {before.exact_match:.0%}, "
                f"adapter {after.exact_match:.0%} ({after.examples} examples)"
            )
        lines.append(f"- Held-out loss: base {before.loss:.3f}, adapter {after.loss:.3f}")
    lines += [
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'name, dtype = "{base}", "{_dtype_name(facts.precision)}"',
        "base = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)",
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        *([f'tokenizer.chat_template = open("this-folder/{TEMPLATE}").read()'] if given else []),
        'model = PeftModel.from_pretrained(base, "this-folder").eval()',
        "```",
        "",
    ]
    return "\n".join(lines)


def _made_from(info: AdapterInfo) -> list[str]:
    if info.origin != "run":
        return [f"- Made of: {info.recipe or info.origin}", f"- Parameters: {info.parameters:,}"]
    return [
        f"- Data: {info.data or 'unknown'}",
        f"- Steps: {info.steps}",
        f"- Trainable parameters: {info.parameters:,}",
    ]


def _dtype_name(precision: str) -> str:
    return TORCH_NAMES[precision]
