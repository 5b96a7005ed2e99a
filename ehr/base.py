"""The base of every configuration section."""

from collections.abc import Mapping
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""What NumPy and scikit-learn take as a seed."""


_LARGEST = 2**32 - 1


class Section(BaseModel):
    """A frozen part of the run configuration; unknown keys are errors.

    So are numbers that are not finite, integers that no machine counts to, and truth values where a
    number belongs, and the text None.

    Every field has a default that works and a docstring under it, which `eag-rl STAGE --help`
    and the documentation quote.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _words_are_no_numbers(cls, data: Any, info: ValidationInfo) -> Any:
        for name, value in data.items() if isinstance(data, Mapping) else ():
            field = cls.model_fields.get(name)
            members = value if isinstance(value, list | tuple) else [value]
            is_truth = any(isinstance(member, bool) for member in members)
            if "None" in members and field is not None and not _is_recorded(info):
                raise ValueError(f"{name} is the text 'None', which is Python; write null for none")
            if is_truth and field is not None and not _takes_truth_values(field.annotation):
                raise ValueError(f"{name} takes no true or false, got {value!r}")
        return data

    @model_validator(mode="after")
    def _no_endless_integers(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            for member in value if isinstance(value, tuple) else (value,):
                if isinstance(member, int) and abs(member) > _LARGEST:
                    raise ValueError(f"{name} must be at most {_LARGEST}, got {member}")
        return self


def _is_recorded(info: ValidationInfo) -> bool:
    """Whether a run was made with it already: then it is read as it is."""
    return bool(info.context and info.context.get("recorded"))


def _takes_truth_values(annotation: Any) -> bool:
    return annotation is bool or any(map(_takes_truth_values, get_args(annotation)))
