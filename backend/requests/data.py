"""Requests about training data: which column is what, a preview, and preparing a large set."""

from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from backend.fields import Request, knob

COLUMN_LENGTH = 200


def data_source() -> Any:
    return knob(
        "starter:pirate",
        label="Data",
        min_length=1,
        max_length=1000,
        level="basic",
        help="A bundled set (starter:pirate), a data file or folder, or a Hub id "
        "(owner/set:configuration:split).",
    )


def longest_example() -> Any:
    return knob(
        512,
        label="Longest example",
        unit="tokens",
        ge=8,
        le=1_048_576,
        step=8,
        help="Longer examples are split or cut at this many tokens, at most the tokens per batch.",
    )


def long_examples() -> Any:
    return knob(
        "auto",
        label="Longer examples",
        help="Split into pieces of that length, or cut off there. auto splits only plain text.",
    )


LongExamples = Literal["auto", "split", "cut"]
MOST_PLACEHOLDERS = 100
KEEP_ALL = "keep all"
"""The entry that leaves placeholders as they stand."""


def _entries(value: Any) -> Any:
    """Read a text as one entry per line, and a mapping as entries."""
    if isinstance(value, dict):
        return [f"{name} = {text}" for name, text in value.items()]
    if not isinstance(value, str):
        return value
    return [line.strip() for line in value.splitlines() if line.strip()]


def _check_entry(entry: str) -> str:
    if entry.strip().lower() == KEEP_ALL:
        return KEEP_ALL
    name, equals, text = (part.strip() for part in entry.partition("="))
    name = name.strip("{} ")
    if not equals or not name:
        raise ValueError(f"{entry[:80]!r} is not a name and its text. Write it as name = Ada.")
    return f"{name} = {text}"


Placeholders = Annotated[
    list[Annotated[str, Field(max_length=2_000), AfterValidator(_check_entry)]],
    BeforeValidator(_entries),
]


def placeholder_texts() -> Any:
    return knob(
        None,
        label="Placeholders",
        unit="name = text, one per line",
        max_length=MOST_PLACEHOLDERS,
        lines=6,
        help="Texts for placeholders in the data: with name = Ada, Ada replaces {{name}}.",
    )


class FillsPlaceholders:
    """What requests with the field `placeholders` share."""

    placeholders: list[str] | None

    @property
    def keeps_placeholders(self) -> bool:
        """Whether placeholders without a text are learned as they stand."""
        return self.placeholders is not None and (
            not self.placeholders or KEEP_ALL in self.placeholders
        )

    @property
    def placeholder_values(self) -> dict[str, str]:
        """The text of each placeholder that has one."""
        pairs = (entry.split(" = ", 1) for entry in self.placeholders or ())
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[1]}


def held_out_source() -> Any:
    return knob(
        None,
        label="Held-out data",
        max_length=1000,
        help="Separate data to test with, instead of a share. Rows in both are not trained on.",
    )


def bad_rows() -> Any:
    return knob(
        False,
        label="Leave bad rows out",
        help="Skip rows that cannot be used and train on the rest. Off: one bad row stops the run.",
    )


def learned_answers() -> Any:
    return knob(
        "all",
        label="Answers",
        help="Which answers of a conversation are trained on: all, or only the last one.",
    )


def learned_thoughts() -> Any:
    return knob(
        True,
        label="Train on thoughts",
        help="Reasoning before an answer has a loss, too. Off: it is shown, but only the answer "
        "has a loss.",
    )


def _check_day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        shown = text if len(text) <= 20 else f"{text[:20]}..."
        raise ValueError(f"{shown!r} is not a date. Write one like 2026-11-30.") from None


Day = Annotated[str, AfterValidator(_check_day)]


def template_date() -> Any:
    return knob(
        None,
        label="Date",
        max_length=10,
        help="The date for chat templates that show one, such as 2026-11-30. Empty: the day on "
        "which the run is created.",
    )


def _column(label: str, help: str) -> Any:
    return knob(None, label=label, max_length=COLUMN_LENGTH, help=help)


class Columns(Request):
    """Which column is what. All empty: the columns are recognised by their names."""

    prompt: str | None = _column(
        "Question", "The column with the questions. It needs a column with the answers."
    )
    answer: str | None = _column(
        "Answer", "The column with the answers, which the model learns to give."
    )
    system: str | None = _column(
        "System prompt", "A column with a system prompt for each row, if there is one."
    )
    context: str | None = _column(
        "Context", "A column with a text that is added to the question, if there is one."
    )
    text: str | None = _column(
        "Plain text", "A column of plain text. The model trains on all of it."
    )
    conversation: str | None = _column(
        "Conversation", "A column with a list of messages, each with its role and text."
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
            raise ValueError(f"Columns can be {' or '.join(ways)}, not both. Clear one of them.")
        if bool(self.prompt) != bool(self.answer):
            there, missing = ("question", "answer") if self.prompt else ("answer", "question")
            raise ValueError(
                f"A column is chosen for the {there} but not for the {missing}. Choose both."
            )
        if self.context and not self.prompt:
            raise ValueError("A context is added to a question. Choose the question's column too.")
        if self.system and (self.text or not ways):
            raise ValueError(
                "A system prompt needs a question and its answer, or a conversation. "
                "Choose their columns too."
            )
        return self

    @property
    def given(self) -> bool:
        """Whether any column was chosen."""
        return bool(self.named())

    def named(self) -> list[tuple[str, str]]:
        """Return the chosen columns as pairs of label and column name."""
        found = []
        for name, field in type(self).model_fields.items():
            column, extra = getattr(self, name), field.json_schema_extra
            if column and isinstance(extra, dict):
                found.append((str(extra["label"]), str(column)))
        return found


class PreviewData(FillsPlaceholders, Request):
    """Preview training data as the loaded base model will see it."""

    data: str = data_source()
    columns: Columns = Columns()
    max_length: int = longest_example()
    long_examples: LongExamples = long_examples()
    drop_bad_rows: bool = bad_rows()
    answers: Literal["all", "last"] = learned_answers()
    learn_thoughts: bool = learned_thoughts()
    date: Day | None = template_date()
    placeholders: Placeholders | None = placeholder_texts()
    rows: int = knob(5, label="Rows", ge=1, le=50, step=1, help="How many examples to show.")
    every_row: bool = knob(
        True,
        label="Every row",
        help="Check every row. Off: show the first rows and only count the rest, which is quick.",
    )


class PrepareData(FillsPlaceholders, Request):
    """Read, check and tokenise a large data set once, in the background; later use is quick."""

    data: str = data_source()
    columns: Columns = Columns()
    held_out: str | None = held_out_source()
    answers: Literal["all", "last"] = learned_answers()
    learn_thoughts: bool = learned_thoughts()
    date: Day | None = template_date()
    placeholders: Placeholders | None = placeholder_texts()


class DescribeHubData(Request):
    """Describe a data set of the Hub before it is downloaded: its parts, size, licence and rows."""

    data: str = data_source()


class DownloadHubData(Request):
    """Download a data set of the Hub and prepare it; a second attempt continues a stopped one."""

    data: str = data_source()
