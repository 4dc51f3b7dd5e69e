"""What the wire models have in common: their base classes, text types and limits."""

from typing import Annotated, Generic, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sharpzo_core.json_safety import MAX_LABEL, is_safe_text
from sharpzo_core.records.prompts import NAME_PATTERN

T = TypeVar("T")

MAX_METADATA_KEYS = 16


def _check_text(text: str) -> str:
    if not is_safe_text(text):
        raise ValueError("must not contain control characters or lone surrogates")
    return text


# The pattern documents the check; it can leave out surrogates, which UTF-8 cannot encode.
_SAFE = {"pattern": r"^[^\x00-\x1f\x7f-\x9f]*$"}
SafeText = Annotated[str, AfterValidator(_check_text), Field(json_schema_extra=_SAFE)]
Label = Annotated[SafeText, Field(min_length=1, max_length=MAX_LABEL)]
ObjectId = Annotated[SafeText, Field(max_length=100)]
Slug = Annotated[str, Field(pattern=NAME_PATTERN)]
MetadataKey = Annotated[str, AfterValidator(_check_text), Field(min_length=1, max_length=64)]
MetadataValue = Annotated[SafeText, Field(max_length=512)]
_METADATA = {"propertyNames": {"minLength": 1, "maxLength": 64, **_SAFE}}
Metadata = Annotated[
    dict[MetadataKey, MetadataValue],
    Field(max_length=MAX_METADATA_KEYS, json_schema_extra=_METADATA),
]


class RequestModel(BaseModel):
    """A strict model that refuses unknown fields."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class PublicModel(BaseModel):
    """An answer."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    @classmethod
    def from_fields(cls, record: object, **others: object) -> Self:
        """Take the record's fields of the same names, but for `others`."""
        names = cls.model_fields.keys() - others.keys()
        return cls.model_validate({name: getattr(record, name) for name in names} | others)


class Page(PublicModel, Generic[T]):
    """One page of a list; ask for the following one with `after=next`."""

    data: list[T]
    has_more: bool
    next: str | None


class ErrorPublic(PublicModel):
    """Why something failed; `code` is stable."""

    code: str
    message: str

    @classmethod
    def from_columns(cls, code: str | None, message: str | None) -> Self | None:
        return None if code is None else cls(code=code, message=message or "")
