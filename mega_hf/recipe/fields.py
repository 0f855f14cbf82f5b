"""The base class of all recipe blocks, and the types that their keys share."""

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
    """A frozen record that raises on unknown keys."""

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


def invalid(key: str | list[str], expected: str, got: object, hint: str) -> PydanticCustomError:
    """Return the error of a value that its type allows and the other settings do not.

    Args:
        key: where the value is, inside the block that raises the error.
        expected: what would be valid.
        got: the value.
        hint: what to do.
    """
    location = key.split(".") if isinstance(key, str) else key
    context = {"key": location, "expected": expected, "got": str(got), "hint": hint}
    return PydanticCustomError("invalid", "invalid", context)
