"""Answers of prompts to images."""

from typing import Annotated

from pydantic import Field

from sharpzo_core.schemas.base import ErrorPublic, PublicModel

MAX_TOP_K = 1000  # classes per image
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K)]


class PredictionPublic(PublicModel):
    """One class and its probability."""

    label: str
    index: int
    score: float


class ClassifyResult(PublicModel):
    """The classes of one image, or why it could not be classified."""

    predictions: list[PredictionPublic] | None = None
    zero_shot: list[PredictionPublic] | None = None
    """The predictions of the hand-written prompt, if the request asked for them."""

    error: ErrorPublic | None = None


class ClassifyAnswer(PublicModel):
    """The images' classes, in the order of the request."""

    prompt_id: str
    name: str
    version: int
    results: list[ClassifyResult]


class PromptAnswer(PublicModel):
    """The predictions of one of several prompts, or why it cannot be used."""

    ref: str
    """The reference in the request."""

    prompt_id: str | None = None
    name: str | None = None
    version: int | None = None
    results: list[ClassifyResult] | None = None
    error: ErrorPublic | None = None


class ClassifyAnswers(PublicModel):
    """The answers of several prompts, in the order of the request."""

    answers: list[PromptAnswer]
