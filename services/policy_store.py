"""The policy store: which policy a run serves, by value, for every replica that asks.

The run folder is the commit point: a record of the version is written there before it is served,
and a restarted store reads it back. `PolicyLedger` decides, `PolicyStore` carries out; Ray makes an
actor of it.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ehr.errors import ModelError, RunFolderError, ServiceError, StalePolicyError
from ehr.whole_files import write_json
from services.adapters import adapter_checksum
from services.types import BASE_POLICY, Policy, PolicyVersion

logger = logging.getLogger(__name__)

NAMESPACE = "eag-rl"
"""Ray namespace of this project's named actors; their names carry the run id."""
_RETRY_PAUSE_S = 0.5
_STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRecord:
    """A committed policy by reference: what `policy.json` in the run folder says."""

    version: PolicyVersion
    adapter_path: str | None
    """Absolute path of the adapter file; None is the base model."""
    checksum: str
    """SHA-256 of that file, "" for the base model."""
    scaling: float
    """lora_alpha / rank, 0.0 for the base model."""


BASE_RECORD = PolicyRecord(version=BASE_POLICY, adapter_path=None, checksum="", scaling=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLedger:
    """Which policy is current, and which publications are allowed; `policy.json` has it."""

    current: PolicyRecord = BASE_RECORD
    number: int = 0
    """Publications so far: of two policies of a run, the one with the larger number is later."""

    def publish(self, record: PolicyRecord) -> "PolicyLedger":
        """The ledger with `record` current; this same one if `record` is current already.

        Another lineage always replaces the current one: that is how a run moves between stages.

        Raises:
            StalePolicyError: if it goes back within its lineage, or is another policy under a
                version that is taken.
        """
        now, then = record.version, self.current.version
        if now.lineage != then.lineage or now.version > then.version:
            return PolicyLedger(current=record, number=self.number + 1)
        if now.version < then.version:
            raise StalePolicyError(
                f"expected a {now.lineage} policy newer than version {then.version}, got version "
                f"{now.version}: policies only go forward; resume from the last committed version"
            )
        if record.checksum != self.current.checksum or record.scaling != self.current.scaling:
            raise StalePolicyError(
                f"{now.lineage} version {now.version} is already published with checksum "
                f"{self.current.checksum[:12]!r}, got {record.checksum[:12]!r}: one version is one "
                "policy; publish a changed policy under the next version"
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPolicy:
    """A record and where its bytes lie in Ray's object store."""

    record: PolicyRecord
    number: int
    """See `PolicyLedger`."""
    adapter: tuple[Any, ...]
    """One `ObjectRef`, owned by the store; none for the base model. In a tuple so that Ray hands
    the reference on instead of the bytes."""


class PolicyStore:
    """What the store's actor does; its memory is `policy.json` and the run folder."""

    def __init__(
        self, run_id: str, record_file: str, put: Callable[[bytes], Any] = ray.put
    ) -> None:
        """The store at the policy that `record_file` names: a restarted one goes on where it was.

        Args:
            run_id: whose store.
            record_file: `policy.json`, which `start_policy_store` has written.
            put: takes an adapter's bytes into Ray's object store; what it holds dies with it.
        """
        self._run_id = run_id
        self._file = Path(record_file)
        self._put = put
        self._ledger = read_ledger(self._file)
        self._adapter = self._hold(read_adapter(self._ledger.current))

    def publish(self, record: PolicyRecord, adapter: bytes | None) -> PolicyRecord:
        """Serve a committed policy; publishing the same one again changes nothing.

        Args:
            record: what the run folder says about it.
            adapter: its bytes: replicas need no disk that has the run folder.
        """
        ledger = self._ledger.publish(record)
        if ledger is not self._ledger:
            held = self._hold(adapter)
            # Before anybody is served: a store that dies now comes back with this policy.
            write_ledger(self._file, self._run_id, ledger)
            self._adapter, self._ledger = held, ledger
        return ledger.current

    def current(self) -> StoredPolicy:
        """The policy that every replica should serve."""
        return StoredPolicy(
            record=self._ledger.current, number=self._ledger.number, adapter=self._adapter
        )

    def _hold(self, adapter: bytes | None) -> tuple[Any, ...]:
        return () if adapter is None else (self._put(adapter),)


def write_ledger(file: Path, run_id: str, ledger: PolicyLedger) -> None:
    """Writes `policy.json`, durably: a store that starts again after a crash goes on from it."""
    content = {"run_id": run_id, "number": ledger.number, **asdict(ledger.current)}
    write_json(file, content, durable=True)


def read_ledger(file: Path) -> PolicyLedger:
    """Read `policy.json`.

    Raises:
        RunFolderError: if it is not there: a store that began afresh would go back.
    """
    try:
        fields = json.loads(file.read_text())
    except OSError as error:
        raise RunFolderError(
            f"expected the record of the published policy at {file}, which cannot be read "
            f"({error.strerror}); with several nodes the run folder must be on shared storage, or "
            "the node that holds it must be up"
        ) from error
    del fields["run_id"]
    number = fields.pop("number")
    record = PolicyRecord(**{**fields, "version": PolicyVersion(**fields["version"])})
    return PolicyLedger(current=record, number=number)


def start_policy_store(run_id: str, run_dir: Path, timeout_s: float) -> None:
    """Start a run's store at the base policy; one that an ended run left behind is replaced."""
    stop_policy_store(run_id)
    file = run_dir / "policy.json"
    write_ledger(file, run_id, PolicyLedger())
    actor_class: Any = ray.remote(PolicyStore)  # Ray types what it wraps, not what it adds
    store = actor_class.options(
        name=_name(run_id),
        namespace=NAMESPACE,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        # Both methods may be repeated: publishing the same record twice changes nothing.
        max_task_retries=-1,
        # This node has the run folder, which a restarted store reads. Only where that is on
        # shared storage does another node help.
        scheduling_strategy=NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        ),
    ).remote(run_id, str(file.absolute()))
    ray.get(store.current.remote(), timeout=timeout_s)


def stop_policy_store(run_id: str) -> None:
    """End a run's store, if there is one, and free its name."""
    try:
        store = ray.get_actor(_name(run_id), namespace=NAMESPACE)
    except ValueError:
        return
    ray.kill(store, no_restart=True)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while _name_is_taken(run_id):
        if time.monotonic() > deadline:
            raise ServiceError(
                f"the policy store of run {run_id!r} did not end within {_STOP_TIMEOUT_S:.0f} s; "
                "look at the cluster's dashboard, or use another run name"
            )
        time.sleep(0.05)


async def commit_to_store(run_id: str, record: PolicyRecord, timeout_s: float) -> None:
    """Publish a record in the run's store, its adapter's bytes with it.

    Raises:
        ModelError: if the adapter is not what was committed.
        StalePolicyError: if the ledger refuses it.
        ServiceError: if the store does not answer in time.
    """
    adapter = read_adapter(record)
    store = _find(run_id)
    try:
        async with asyncio.timeout(timeout_s):
            await store.publish.remote(record, adapter)
    except RayTaskError as error:
        raise error.cause from error
    except (RayError, TimeoutError) as error:
        raise ServiceError(_no_answer(run_id, timeout_s, error)) from error


async def fetch_policy(run_id: str, timeout_s: float) -> Policy:
    """The run's current policy by value.

    Raises:
        ServiceError: if the store does not answer in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + timeout_s):
                stored: StoredPolicy = await _find(run_id).current.remote()
                adapter = await stored.adapter[0] if stored.adapter else None
            record = stored.record
            return Policy(
                version=record.version,
                adapter=adapter,
                scaling=record.scaling,
                checksum=record.checksum,
                number=stored.number,
            )
        except (RayError, TimeoutError) as error:
            # A store that dies between the two calls takes the bytes with it; the next one has
            # read them again from the run folder.
            if time.monotonic() > deadline:
                raise ServiceError(_no_answer(run_id, timeout_s, error)) from error
            await asyncio.sleep(_RETRY_PAUSE_S)


def _name(run_id: str) -> str:
    return f"policy-store-{run_id}"


def _name_is_taken(run_id: str) -> bool:
    try:
        ray.get_actor(_name(run_id), namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def _find(run_id: str) -> Any:
    try:
        return ray.get_actor(_name(run_id), namespace=NAMESPACE)
    except ValueError as error:
        raise ServiceError(
            f"run {run_id!r} has no policy store on this cluster; start its services first"
        ) from error


def _no_answer(run_id: str, timeout_s: float, error: Exception) -> str:
    return (
        f"the policy store of run {run_id!r} did not answer within {timeout_s:.0f} s "
        f"({type(error).__name__}); is the run folder readable from the cluster's head node?"
    )


def read_adapter(record: PolicyRecord) -> bytes | None:
    """The bytes of a committed adapter; None for the base model.

    Raises:
        ModelError: if the file cannot be read, or is not what was committed.
    """
    if record.adapter_path is None:
        return None
    path = Path(record.adapter_path)
    try:
        adapter = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"expected the adapter of {record.version.lineage} version {record.version.version} at "
            f"{path}, which cannot be read ({error.strerror}); whoever publishes it reads it from "
            "the run folder: put that on storage that every node of the cluster sees"
        ) from error
    found = adapter_checksum(adapter)
    if found != record.checksum:
        raise ModelError(
            f"expected {path} with SHA-256 {record.checksum}, found {found}: the file changed "
            "after it was committed; resume from the last good checkpoint"
        )
    return adapter
