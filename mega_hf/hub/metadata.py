"""A card's front matter, checked here as the Hub checks it, so that a push fails before anything is
sent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mega_hf.errors import HubError
from mega_hf.models.licenses import KNOWN

_Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$", max_length=193)]
_Word = Annotated[str, Field(min_length=1)]


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Metric(_Lenient):
    type: _Word
    value: float | int | str
    verified: bool = False


class _Typed(_Lenient):
    type: _Word


class _Dataset(_Typed):
    name: _Word


class _Result(_Lenient):
    task: _Typed
    dataset: _Dataset
    metrics: Annotated[list[_Metric], Field(min_length=1)]


class _Model(_Lenient):
    name: _Word
    results: Annotated[list[_Result], Field(min_length=1)]


class _Front(_Lenient):
    """The keys that the Hub's pages read; it lets others pass."""

    base_model: _Id | list[_Id] | None = None
    base_model_relation: Literal["adapter", "merge", "quantized", "finetune"] | None = None
    library_name: _Word
    pipeline_tag: _Word
    tags: list[_Word]
    datasets: list[_Id] | _Id | None = None
    metrics: list[_Word] | None = None
    license: str | list[str] | None = None
    license_name: Annotated[str, Field(pattern=r"^[a-z0-9-.]+$")] | None = None
    model_index: Annotated[list[_Model], Field(alias="model-index", min_length=1)]

    @model_validator(mode="after")
    def _licensed(self) -> _Front:
        for one in self.license if isinstance(self.license, list) else [self.license]:
            if one is not None and one not in KNOWN:
                raise ValueError(f"license: {one} is none that the Hub knows")
        if self.license == "other" and not self.license_name:
            raise ValueError("license: other needs license_name")
        return self


def check_front(front: dict[str, Any]) -> None:
    """Raise HubError where a card's front matter is not what the Hub takes."""
    try:
        _Front.model_validate(front)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise HubError(
            "the card's front matter is not what the Hub takes",
            where="README.md",
            expected="keys as in https://huggingface.co/docs/hub/model-cards",
            got="; ".join(found)[:500],
            hint="mend what was written by hand on the repository's page, or --overwrite-card",
        ) from None
