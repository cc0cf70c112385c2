"""How a model is called: the inputs that its forward takes, and logits only where they are needed.

Most models compute logits only for the positions in `logits_to_keep`. Others, and rows, whose
positions differ from row to row, get the head's input narrowed to these positions instead. Knows
nothing of documents.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from weakref import WeakSet

import torch
from peft import PeftModel

FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
"""What libraries raise where a model cannot compute a batch."""
_wide: "WeakSet[torch.nn.Module]" = WeakSet()
"""Models whose head has to see every position."""


def inner(model: torch.nn.Module) -> Any:
    """Return the base model inside DistributedDataParallel and PEFT."""
    model = getattr(model, "module", model) if not hasattr(model, "config") else model
    return model.get_base_model() if isinstance(model, PeftModel) else model


def takes(model: torch.nn.Module, name: str) -> bool:
    """Tell whether the forward of a model, wrapped or not, names an input."""
    return name in _inputs(type(inner(model)).forward)


def passes_on(model: torch.nn.Module, name: str) -> bool:
    """Tell whether a model's forward names an input, or takes any and may pass it on."""
    known = _inputs(type(inner(model)).forward)
    return name in known or inspect.Parameter.VAR_KEYWORD in known.values()


@lru_cache(64)
def _inputs(forward: Callable[..., Any]) -> dict[str, Any]:
    return {name: each.kind for name, each in inspect.signature(forward).parameters.items()}


def kept_logits(model: torch.nn.Module, inputs: dict[str, Any], keep: torch.Tensor) -> torch.Tensor:
    """Return the logits of some positions: (kept, vocabulary), in the head's dtype.

    inputs: `input_ids` (rows, tokens), int64, and others that the model takes; keep: (kept,),
    int64, positions counted through all rows. No cache is made.
    """
    if takes(model, "use_cache"):
        inputs = {**inputs, "use_cache": False}
    if len(inputs["input_ids"]) == 1 and takes(model, "logits_to_keep"):
        return _logits(model(**inputs, logits_to_keep=keep))[0]
    with _narrowed(inner(model), keep) as narrowed:
        logits = _logits(model(**inputs))
    return logits[0] if narrowed else logits.flatten(0, 1)[keep]


def head_input(
    model: torch.nn.Module, inputs: dict[str, Any], keep: torch.Tensor
) -> torch.Tensor | None:
    """Return what the head is given for some positions: (kept, width); None where nothing is.

    Takes what `kept_logits` takes. No logits are computed.
    """
    seen: list[torch.Tensor] = []

    def remember(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        seen.append(x)
        return x[..., :1]

    head: Any = head_of(model)
    if head is None or inner(model) in _wide:
        return None
    with _forward_of(head, remember):
        kept_logits(model, inputs, keep)
    found = len(seen) == 1 and seen[0].numel() == len(keep) * seen[0].shape[-1]
    return seen[0].reshape(len(keep), seen[0].shape[-1]) if found else None


@contextmanager
def _forward_of(layer: Any, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Let a layer compute something else for a while."""
    before = vars(layer).get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        if before is None:
            del layer.forward
        else:
            layer.forward = before


def every_logit(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return what a plain call gives for tokens (rows, tokens): (rows, tokens, vocabulary)."""
    return _logits(model(input_ids=ids))


@contextmanager
def wide_head(model: torch.nn.Module) -> Iterator[None]:
    """Let a model's head see every position, from now on if what follows succeeds."""
    _wide.add(base := inner(model))
    try:
        yield
    except BaseException:
        _wide.discard(base)
        raise


@contextmanager
def _narrowed(model: Any, keep: torch.Tensor) -> Iterator[list[bool]]:
    """Let the head compute the kept positions only; yields a list that is empty if it did not."""
    done: list[bool] = []
    head = None if model in _wide else head_of(model)

    def narrow(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not arguments or arguments[0].ndim != 3:
            return None
        done.append(True)
        return arguments[0].flatten(0, 1)[keep][None], *arguments[1:]

    handle = None if head is None else head.register_forward_pre_hook(narrow)
    try:
        yield done
    finally:
        if handle is not None:
            handle.remove()


def head_of(model: torch.nn.Module) -> torch.nn.Module | None:
    """Return the layer that computes the logits; None where the model does not name it."""
    try:
        found: torch.nn.Module | None = inner(model).get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return None if isinstance(found, torch.nn.Embedding) else found


def _logits(output: Any) -> torch.Tensor:
    logits: torch.Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits
