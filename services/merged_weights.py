"""vLLM weight-transfer engine that receives an adapter and serves it merged into the base model.

Runs inside vLLM's worker process. Every load starts from the pristine base on disk, never from
merged weights, so nothing drifts and the base model comes back bit by bit. What is merged is handed
over in the engine's own type (`services.merging`), whatever the type of the file.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from services.adapters import LoraPair, adapter_checksum, read_pairs
from services.merging import merged_weight

BACKEND = "eag_rl_merged"
"""Name of this engine in vLLM's registry."""


@dataclass
class BaseInfo(WeightTransferInitInfo):
    """Where the base model lies."""

    folder: str = ""


@dataclass
class AdapterInfo(WeightTransferUpdateInfo):
    """Which adapter to merge; an empty path brings the base model back."""

    path: str = ""
    scaling: float = 0.0


class MergedWeightEngine(WeightTransferEngine[BaseInfo, AdapterInfo]):
    """Merges W + scaling * B A from the base on disk and reloads the model in place."""

    init_info_cls = BaseInfo
    update_info_cls = AdapterInfo

    def init_transfer_engine(self, init_info: BaseInfo) -> None:
        """Remember the base; its tensors are mapped from disk, not held in memory."""
        self._files = sorted(Path(init_info.folder).glob("*.safetensors"))

    def start_weight_update(self) -> None:
        """Put the model into vLLM's reloading state: CPU kernels repack weights when it ends."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: AdapterInfo) -> None:
        """Load every weight of the model, merged where the adapter has a pair."""
        adapter = Path(update_info.path).read_bytes() if update_info.path else None
        with _one_thread():
            load = cast(
                Callable[[Iterator[tuple[str, torch.Tensor]]], object], self.model.load_weights
            )
            load(self._weights(adapter, update_info.scaling))

    def finish_weight_update(self) -> None:
        """Repack and put the weights into service."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing is held between updates."""

    def _weights(self, adapter: bytes | None, scaling: float) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight of the base, merged where the adapter has a pair; None is the base."""
        pairs: dict[str, LoraPair] = {} if adapter is None else read_pairs(adapter)
        policy = "" if adapter is None else adapter_checksum(adapter)
        for file in self._files:
            with safe_open(file, framework="pt") as base:
                for name in base.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                    weight = base.get_tensor(name)
                    if pair := pairs.get(name):
                        weight = merged_weight(
                            weight, pair, scaling, self.model_config.dtype, f"{policy} {name}"
                        )
                    yield name, weight


@contextmanager
def _one_thread() -> Iterator[None]:
    # Merging is hundreds of small products: on busy cores the barriers between threads cost ten
    # times more than a second thread saves.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class WorkerExtension:
    """Named to vLLM so that every worker imports this module, which registers the engine."""


if BACKEND not in WeightTransferEngineFactory._registry:  # pyright: ignore[reportPrivateUsage]
    WeightTransferEngineFactory.register_engine(BACKEND, MergedWeightEngine)
