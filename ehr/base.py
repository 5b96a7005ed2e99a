"""The base of every configuration section."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of the run configuration; unknown keys are errors.

    Every field has a default that works and a docstring under it, which `eag-rl STAGE --help`
    and the documentation quote.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
