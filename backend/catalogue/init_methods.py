"""How LoRA's weights begin (PEFT's `init_lora_weights`), and which ways change the base itself."""

from typing import Any

REPEATABLE = frozenset({"pissa", "olora"})
"""These take a part out of the base's weights, which can be computed again from the base."""
_UNREPEATABLE = ("pissa_niter", "corda", "lora_ga", "lora-ga", "loftq", "kasa")
_PLAIN = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
CHANGING = frozenset({"pissa", "olora", "corda", "lora-ga", "kasa", "loftq"})
"""Names of the methods that change the base, as adapters of the library carry them."""


def name_of(start: Any) -> str:
    """Return the name of a way to begin, in lower case."""
    return str(start).lower()


def leaves_the_base(start: Any) -> bool:
    """Tell whether it is known that this way leaves the base's weights alone."""
    return start in _PLAIN


def changes_the_base(start: Any) -> bool:
    """Tell whether this way changes the base: the adapter's file alone is not the whole change."""
    return name_of(start).startswith((*REPEATABLE, *_UNREPEATABLE))


def is_repeatable(start: Any) -> bool:
    """Tell whether the changed base can be computed again from the base, exactly."""
    return isinstance(start, str) and start.lower() in REPEATABLE


def is_unrepeatable(start: Any) -> bool:
    """Tell whether the changed base cannot be computed again."""
    return name_of(start).startswith(_UNREPEATABLE)
