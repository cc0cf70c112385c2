"""Requests for answers, for log-probabilities of texts, and for the likeliest next tokens."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from backend.fields import Request, Variant, knob


class Message(Request):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=200_000)


class _Generation(Request):
    max_new_tokens: int = knob(
        128,
        label="Longest answer",
        unit="tokens",
        ge=1,
        le=8192,
        step=1,
        help="Longest answer before it is cut off.",
    )
    temperature: float = knob(
        0.0,
        label="Temperature",
        ge=0,
        le=2,
        step=0.1,
        help="0 always picks the likeliest token. Higher values give more varied, less reliable "
        "answers.",
    )
    seed: int = knob(
        42, label="Seed", ge=0, le=2**31 - 1, step=1, help="The same seed gives the same answer."
    )


class Chat(_Generation):
    """Answer a conversation with one variant (adapters with strengths); the text is streamed."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    variant: Variant = Field(default=[], max_length=50)


class SideBySide(_Generation):
    """Answer one conversation per variant; all answers are streamed together."""

    conversations: list[Annotated[list[Message], Field(min_length=1, max_length=1000)]] = Field(
        min_length=1, max_length=6
    )
    variants: list[Annotated[Variant, Field(max_length=50)]] = Field(min_length=1, max_length=6)

    same_seed: bool = knob(
        True,
        label="Same seed",
        help="All answers use the same random numbers, so any difference comes from the adapter.",
    )

    def seed_of(self, column: int) -> int:
        """Return the seed of one column."""
        return self.seed if self.same_seed else (self.seed + 7919 * column) % 2**31

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if len(self.conversations) != len(self.variants):
            raise ValueError("Each variant needs its own conversation.")
        return self


class Compare(_Generation):
    """Answer the same prompts with several variants."""

    prompts: list[str] = Field(min_length=1, max_length=100)
    variants: list[Annotated[Variant, Field(max_length=50)]] = Field(min_length=1, max_length=6)


class Score(Request):
    """Total natural-log probability of texts under several variants."""

    per_token: bool = knob(
        False,
        label="Token by token",
        help="Also return the log-probability of each token.",
    )
    texts: list[str] = Field(min_length=1, max_length=1000)
    variants: list[Annotated[Variant, Field(max_length=50)]] = Field(min_length=1, max_length=6)


class NextToken(Request):
    """Return the likeliest next tokens, with and without adapters, to check an adapter's effect."""

    prompt: str = knob(
        label="Prompt",
        min_length=1,
        max_length=20_000,
        help="A question, or the beginning of an answer. The model predicts the next word.",
    )
    variants: list[Annotated[Variant, Field(max_length=50)]] = Field(min_length=1, max_length=6)
    top: int = knob(5, label="Words", ge=1, le=50, step=1, help="How many words to show.")
