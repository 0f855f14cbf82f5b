"""Types of single recipe keys, and the base class of all blocks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$")]
# NAME or NAME@EPOCH
Input = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}(@[0-9]{1,9})?$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A frozen record that refuses what it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, tree: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        unknown = [key for key in tree if key not in known] if isinstance(tree, dict) else []
        if unknown:
            raise PydanticCustomError("unknown", "unknown key", {"keys": unknown, "known": known})
        return tree


def impossible(
    key: str | list[str], expected: str, got: object, hint: str = ""
) -> PydanticCustomError:
    """Make the error of values that are each right and wrong together; `key` is where, inside the
    block."""
    at = key.split(".") if isinstance(key, str) else key
    context = {"key": at, "expected": expected, "got": str(got), "hint": hint}
    return PydanticCustomError("impossible", "impossible", context)
