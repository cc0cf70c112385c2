"""Requests about training data: what is a question and what an answer, and a look at it all."""

from typing import Any, Self

from pydantic import model_validator

from backend.fields import Request, knob

COLUMN_LENGTH = 200


def data_source() -> Any:
    return knob(
        "starter:pirate",
        label="Data",
        min_length=1,
        max_length=1000,
        level="basic",
        help="A bundled set (starter:pirate), a data file or a folder of them, or a Hub id.",
    )


def longest_example() -> Any:
    return knob(
        512,
        label="Longest example",
        unit="tokens",
        ge=8,
        le=1_048_576,
        step=8,
        help="Longer examples are cut to this many tokens, at most the token budget.",
    )


def held_out_source() -> Any:
    return knob(
        None,
        label="Held-out data",
        max_length=1000,
        help="Data of its own to test with, instead of a share; rows in both are not learned.",
    )


def bad_rows() -> Any:
    return knob(
        False,
        label="Leave bad rows out",
        help="Learn from the rest where rows cannot be used. Off: one bad row stops the run.",
    )


def _column(label: str, help: str) -> Any:
    return knob(None, label=label, max_length=COLUMN_LENGTH, help=help)


class Columns(Request):
    """Which column is what, where the names of the columns do not tell. All empty: they do."""

    prompt: str | None = _column("Question", "The column that asks; with it goes an answer.")
    answer: str | None = _column("Answer", "The column whose text the model learns to say.")
    system: str | None = _column("System prompt", "A column said before the question, if any.")
    text: str | None = _column("Plain text", "A column of text that is learned whole.")
    conversation: str | None = _column(
        "Conversation", "A column that holds a list of turns, each with its role and text."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [
            label
            for label, there in (
                ("a question with its answer", self.prompt or self.answer),
                ("a conversation", self.conversation),
                ("plain text", self.text),
            )
            if there
        ]
        if len(ways) > 1:
            raise ValueError(f"Columns are {' or '.join(ways)}, not both. Empty one of them.")
        if bool(self.prompt) != bool(self.answer):
            there, missing = ("question", "answer") if self.prompt else ("answer", "question")
            raise ValueError(
                f"The column of the {there} is chosen, and none for the {missing}. Choose both."
            )
        if self.system and (self.text or not ways):
            raise ValueError(
                "A system prompt goes with a question and its answer, or with a conversation. "
                "Choose their columns, too."
            )
        return self

    @property
    def given(self) -> bool:
        """Whether anything was chosen."""
        return bool(self.named())

    def named(self) -> list[tuple[str, str]]:
        """Return what was chosen: what each column is, and its name."""
        found = []
        for name, field in type(self).model_fields.items():
            column, extra = getattr(self, name), field.json_schema_extra
            if column and isinstance(extra, dict):
                found.append((str(extra["label"]), str(column)))
        return found


class PreviewData(Request):
    """Look at training data as the loaded base would see it."""

    data: str = data_source()
    columns: Columns = Columns()
    max_length: int = longest_example()
    drop_bad_rows: bool = bad_rows()
    rows: int = knob(5, label="Rows", ge=1, le=50, step=1, help="How many examples to show.")
    every_row: bool = knob(
        True,
        label="Every row",
        help="Check every row. Off: show the first ones and count the rest, which is quick.",
    )


class PrepareData(Request):
    """Read, check and tokenise a large data set once, beside the session; what follows is quick."""

    data: str = data_source()
    columns: Columns = Columns()
    held_out: str | None = held_out_source()
