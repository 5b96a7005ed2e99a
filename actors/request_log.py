"""The append-only log of one patient's completions: written before use, replayed after a fault.

CPU engines are not deterministic across batches, so a search that is interrupted continues with
the completions it already has: with them the tree grows exactly as before, and nothing that was
paid for is asked again.
"""

import asyncio
import hashlib
import json
import os
from array import array
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Self

from ehr.errors import SearchError
from services.types import Completion, GenerateRequest, Generator, PolicyVersion, Sampling

_COMPLETION_FIELDS = tuple(each.name for each in fields(Completion))
_SAMPLING_FIELDS = tuple(each.name for each in fields(Sampling))


@dataclass(slots=True, kw_only=True)
class CallCounts:
    """What a patient's requests cost, over all attempts."""

    requests: int = 0
    replayed_requests: int = 0
    """Requests answered from the log in the latest attempt; part of `requests`."""
    prefill_tokens: int = 0
    prefill_computed_tokens: int = 0
    """Prompt tokens that were not found in the prefix cache."""
    decode_tokens: int = 0
    replayed_decode_tokens: int = 0
    """Tokens of replayed requests; part of `decode_tokens`."""
    by_kind: dict[str, int] = field(default_factory=dict)
    """Requests of each call kind."""

    def add(self, kind: str, completions: list[Completion], *, replayed: bool) -> None:
        """Count one request and its completions."""
        self.requests += 1
        self.replayed_requests += int(replayed)
        self.by_kind[kind] = self.by_kind.get(kind, 0) + 1
        if completions:
            first = completions[0]
            self.prefill_tokens += first.num_prompt_tokens
            self.prefill_computed_tokens += first.num_prompt_tokens - first.num_cached_tokens
        decoded = sum(len(completion.token_ids) for completion in completions)
        self.decode_tokens += decoded
        self.replayed_decode_tokens += decoded if replayed else 0


class RequestLog:
    """Answers requests from a patient's log, or from the engine, logging before it answers.

    Args:
        path: the patient's log file; created with its folder.
        generator: asked for whatever the log lacks.
    """

    def __init__(self, path: Path, generator: Generator) -> None:
        self._generator = generator
        self._entries, valid_bytes = _read(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("ab")
        # A torn last line would swallow the next entry.
        if self._file.tell() > valid_bytes:
            os.truncate(self._file.fileno(), valid_bytes)
        self._path = path
        self.counts = CallCounts()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    async def generate(self, key: str, kind: str, request: GenerateRequest) -> list[Completion]:
        """The completions logged under `key`, or new ones that are logged first.

        Args:
            key: names the call within the patient's search; each key is asked once.
            kind: call kind, for the counts.
            request: what to ask; its digest guards against a log of another search.

        Raises:
            SearchError: if the log holds another request under this key.
        """
        digest = request_digest(request)
        entry = self._entries.get(key)
        if entry is not None:
            if entry["request"] != digest:
                raise SearchError(
                    f"expected the logged request of {key!r} to be the one asked now; "
                    f"{self._path} comes from another search: delete it, or use --redo search"
                )
            completions = [_from_json(item) for item in entry["completions"]]
            self.counts.add(kind, completions, replayed=True)
            await asyncio.sleep(0)  # trees beside it go on while a whole log is replayed
            return completions
        completions = await self._generator.generate(request)
        line = {
            "key": key,
            "request": digest,
            "completions": [_as_json(completion) for completion in completions],
        }
        self._entries[key] = line
        self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        self.counts.add(kind, completions, replayed=False)
        return completions


def request_digest(request: GenerateRequest) -> str:
    """A stable digest of what decides a completion: prompt tokens, sampling and lineage."""
    # Binary: thousands of tokens in decimals would cost more than all the rest of a request.
    digest = hashlib.sha256(array("q", request.prompt_token_ids))
    sampling = [getattr(request.sampling, name) for name in _SAMPLING_FIELDS]
    digest.update(json.dumps([sampling, request.least.lineage]).encode())
    return digest.hexdigest()[:16]


def _read(path: Path) -> tuple[dict[str, dict], int]:
    """Entries by key (the first of a key wins) and the length of the readable prefix."""
    entries: dict[str, dict] = {}
    if not path.exists():
        return entries, 0
    valid_bytes = 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            key = entry["key"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise SearchError(
                f"expected one JSON object a line in {path}, line {number} of {len(lines)} is "
                f"damaged: delete the file to search this patient again"
            ) from error
        if not line.endswith(b"\n"):
            break
        entries.setdefault(key, entry)
        valid_bytes += len(line)
    return entries, valid_bytes


def _as_json(completion: Completion) -> dict:
    """What `asdict` gives, without its copy of every token."""
    version = completion.policy_version
    return {name: getattr(completion, name) for name in _COMPLETION_FIELDS} | {
        "policy_version": {"lineage": version.lineage, "version": version.version}
    }


def _from_json(item: dict) -> Completion:
    return Completion(
        **{
            **item,
            "token_ids": tuple(item["token_ids"]),
            "logprobs": tuple(item["logprobs"]),
            "policy_version": PolicyVersion(**item["policy_version"]),
        }
    )
