"""The canary: a fixed text whose log-probabilities learner and generator must agree on.

A stage that trains keeps what its learner gives the text before and after, so that whoever serves
the adapter later can see whether the adapter is what is served.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Self

from ehr.errors import RunFolderError
from ehr.language.pieces import TextTokenizer
from ehr.language.trajectory import FINAL_SENTENCE
from ehr.whole_files import write_text

CANARY_FILE = "canary.json"
"""In the folder of a stage that trains."""

_TEXT = f"<Final subquestion>\n{FINAL_SENTENCE}\n</Final subquestion>\n<Important Features>\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A prompt and the response whose tokens are scored."""

    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[int, ...]


def canary_of(prompt_token_ids: tuple[int, ...], tokenizer: TextTokenizer) -> Canary:
    """The canary behind a prompt: the same text, whatever the policy is trained to answer."""
    return Canary(
        prompt_token_ids=tuple(map(int, prompt_token_ids)),  # numpy's, from a stored table
        response_token_ids=tuple(tokenizer.encode(_TEXT)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRecord:
    """What is known of a stage's canary; log-probabilities are one a response token."""

    canary: Canary
    learner_before: tuple[float, ...]
    """The learner's under the policy that the stage starts from."""
    served_before: tuple[tuple[float, ...], ...] = ()
    """Each replica's under that policy; empty where the stage serves nothing."""
    learner: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """The learner's under each policy that the stage trained, by the adapter's SHA-256."""

    @property
    def mean_abs_before(self) -> float:
        """Mean |learner - generator| before training; 0 where it was not measured."""
        differences = [
            abs(a - b)
            for served in self.served_before
            for a, b in zip(self.learner_before, served, strict=True)
        ]
        return fmean(differences) if differences else 0.0

    @property
    def served_mean_before(self) -> tuple[float, ...] | None:
        """Mean over the replicas, token by token: they all served the same policy."""
        columns = zip(*self.served_before, strict=True)
        return tuple(fmean(column) for column in columns) if self.served_before else None

    def trained(self, checksum: str, logprobs: tuple[float, ...]) -> "CanaryRecord":
        """The record with a newer policy of the learner."""
        return replace(self, learner={**self.learner, checksum: logprobs})

    def write(self, folder: Path) -> None:
        """Keeps it in a stage's folder."""
        write_text(folder / CANARY_FILE, json.dumps(asdict(self)) + "\n", durable=True)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What `write` wrote; None where an older version left none.

        Raises:
            RunFolderError: if the file is damaged.
        """
        path = folder / CANARY_FILE
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text())
            if set(found) == {"mean_abs"}:  # what earlier versions kept
                return None
            return cls(
                canary=Canary(
                    prompt_token_ids=tuple(map(int, found["canary"]["prompt_token_ids"])),
                    response_token_ids=tuple(map(int, found["canary"]["response_token_ids"])),
                ),
                learner_before=tuple(map(float, found["learner_before"])),
                served_before=tuple(tuple(map(float, each)) for each in found["served_before"]),
                learner={name: tuple(map(float, v)) for name, v in found["learner"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"expected the canary's record in {path}, it cannot be read ({error!r}); run the "
                "stage again with --redo"
            ) from error
