"""What a search leaves on disk, patient by patient, so that nothing finished is held in memory.

RUN/search/requests/PATIENT.jsonl     every completion, logged before it was used
RUN/search/trees/PATIENT.json         a finished patient's tree, for the report
RUN/search/patients/PATIENT.parquet   its trajectories: a part of the table below
RUN/search/patients/PATIENT.json      what it adds to the totals; says that it is finished
RUN/search/trajectories.parquet       all parts, in the order of the patients
RUN/search/ledger.json                the totals
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from actors.search_result import PatientResult
from actors.trajectories import COLUMNS, SearchedTrajectory, trajectories_table
from ehr.whole_files import whole_file, write_text

logger = logging.getLogger(__name__)

_ARROW_TYPES: Mapping[str, pa.DataType] = {
    "string": pa.large_string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "boolean": pa.bool_(),
}
_LISTS_OF: Mapping[str, pa.DataType] = {
    "token_ids": pa.int64(),
    "prompt_token_ids": pa.int64(),
    "model_written": pa.bool_(),
    "features": pa.string(),
}
_SCHEMA = pa.schema(
    [
        (name, pa.list_(_LISTS_OF[name]) if name in _LISTS_OF else _ARROW_TYPES[kind])
        for name, kind in COLUMNS.items()
    ]
)
# One schema for every part, whatever is missing in it, with what pandas needs to read it back.
_PARQUET_SCHEMA: pa.Schema = pa.Table.from_pandas(
    trajectories_table([]), schema=_SCHEMA, preserve_index=False
).schema


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientSummary:
    """What a patient adds to the totals: its size does not depend on what its trees say."""

    patient_id: str
    rollouts: int
    """Simulations that are done."""
    trajectories: int
    """Unique terminals; of a tree that still grows, terminals so far."""
    kept: int
    """Of these, in the SFT set."""
    best_reward: float | None
    """R of the best readable trajectory; None without one."""
    search: Mapping[str, int]
    """`actors.search_result.SearchCounts`."""
    calls: Mapping[str, Any]
    """`actors.request_log.CallCounts`."""
    started_unix_s: float
    finished_unix_s: float


class SearchFolder:
    """The files of a search; cheap, and pickles.

    Args:
        path: RUN/search, absolute, on a disk that driver and search actors share.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def requests(self, patient_id: str) -> Path:
        """The patient's request log."""
        return self._file("requests", patient_id, "jsonl")

    def write(self, result: PatientResult, summary: PatientSummary) -> None:
        """Writes a finished patient; the summary comes last, because it says so."""
        patient_id = result.patient_id
        _write_json(
            self._file("trees", patient_id, "json"),
            {"patient_id": patient_id, "nodes": [asdict(node) for node in result.nodes]},
        )
        self._write_part(patient_id, result.trajectories)
        _write_json(self._file("patients", patient_id, "json"), asdict(summary))

    def finished(self, patient_id: str) -> PatientSummary | None:
        """The summary of a patient that an earlier attempt finished; None if none did."""
        path = self._file("patients", patient_id, "json")
        if not path.exists():
            return None
        try:
            summary = PatientSummary(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            # Its log is there: searching it again asks the engine nothing.
            logger.warning("ignored a patient's summary path=%s error=%r", path, error)
            return None
        return summary if self._part(patient_id).exists() else None

    def merge(self, patient_ids: Iterable[str]) -> None:
        """Writes the table from the parts of finished patients, one in memory at a time."""
        path = self.path / "trajectories.parquet"
        with (
            whole_file(path) as partial,
            pq.ParquetWriter(partial, _PARQUET_SCHEMA) as writer,
        ):
            for patient_id in patient_ids:
                writer.write_table(pq.read_table(self._part(patient_id), schema=_PARQUET_SCHEMA))

    def write_ledger(self, ledger: Mapping[str, Any]) -> None:
        """Writes ledger.json."""
        _write_json(self.path / "ledger.json", ledger)

    def _write_part(self, patient_id: str, rows: Sequence[SearchedTrajectory]) -> None:
        path = self._part(patient_id)
        table = pa.Table.from_pandas(
            trajectories_table(rows), schema=_PARQUET_SCHEMA, preserve_index=False
        )
        with whole_file(path) as partial:
            pq.write_table(table, partial)

    def _part(self, patient_id: str) -> Path:
        return self._file("patients", patient_id, "parquet")

    def _file(self, folder: str, patient_id: str, suffix: str) -> Path:
        """A patient's file; ids may hold any characters, file names may not."""
        return self.path / folder / f"{quote(patient_id, safe='')}.{suffix}"


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, allow_nan=False) + "\n")
