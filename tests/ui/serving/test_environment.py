"""No variable of Gradio's weakens who may reach the page, and passwords are not inherited."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from ui.serving.environment import KEPT, REMOVED, TAKEN, take_variables

READS = re.compile(r'(?:environ(?:\.get)?\s*[\[(]|getenv\s*\()\s*"(\w+)"(?!\]\s*=[^=])')


def sources(package: str) -> list[Path]:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    return [p for p in root.rglob("*.py") if not {"cli", "test_data"} & set(p.parts)]


@pytest.mark.parametrize("package", ["gradio", "uvicorn"])
def test_each_variable_that_is_read_has_a_decision(package: str) -> None:
    """Fails when a new version reads a variable that nobody has thought about."""
    read = {name for file in sources(package) for name in READS.findall(file.read_text("utf-8"))}

    assert read
    assert read - {*KEPT, *REMOVED, *TAKEN} == set()


def test_decisions_do_not_contradict_each_other() -> None:
    assert not set(KEPT) & set(REMOVED)
    assert not set(TAKEN) & {*KEPT, *REMOVED}


def test_what_counts_is_returned_and_nothing_of_it_is_left() -> None:
    environment = {
        "ADAPTER_WORKBENCH_PASSWORD": "ann:secret",
        "ADAPTER_WORKBENCH_PASSWORD_FILE": "",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SHARE": "True",
        "GRADIO_INVENTED_TOMORROW": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HOME": "/models",
        "HF_TOKEN": "hf_token",
        "FORWARDED_ALLOW_IPS": "*",
    }

    taken = take_variables(environment)

    assert taken == {
        "ADAPTER_WORKBENCH_PASSWORD": "ann:secret", "GRADIO_SERVER_NAME": "0.0.0.0"
    }  # fmt: skip
    assert environment == {
        "GRADIO_ANALYTICS_ENABLED": "False", "HF_HOME": "/models", "HF_TOKEN": "hf_token"
    }  # fmt: skip
