"""Configuration sections that the services read: model, generator, serve, cluster."""

import re
from typing import Literal

from pydantic import Field, field_validator

from ehr.base import Section
from services.precision import Dtype


class ModelSection(Section):
    """Which language model."""

    name: str = "smollm2-135m"
    """A packaged model's name (`smollm2-135m`, or `demo-reader`, which is shipped), a local folder,
    or a hub id."""
    max_model_len: int = Field(default=4096, ge=256)
    """Longest prompt + answer in tokens."""
    dtype: Dtype = "auto"
    """Parameter type of the served model and of the learner's frozen base, the same for both.
    `auto`: bfloat16 where both are on GPUs; else what the driver's CPU measures, bfloat16 if a
    product in it is clearly faster. A run keeps what it began with; where a cluster's machines
    differ, name a type."""
    cache_dir: str | None = None
    """Where converted packaged models are kept; null = ~/.cache/eag-rl."""


class GeneratorSection(Section):
    """vLLM behind Ray Serve."""

    num_replicas: int = Field(default=1, ge=1)
    """Engine replicas."""
    cpus_per_replica: float = Field(default=1, ge=0)
    """Logical CPUs that Ray books for a replica."""
    gpus_per_replica: float = Field(default=0, ge=0)
    """GPUs of a replica; 0 runs vLLM's CPU backend."""
    threads: int | None = Field(default=None, ge=1)
    """OpenMP threads of a CPU replica; null = the machine's cores divided by the replicas."""
    cache_gib: float = Field(default=1.0, gt=0)
    """Size of a CPU replica's KV cache."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU that vLLM may take."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Most sequences decoded together."""
    enforce_eager: bool = True
    """No compilation: starts in half the time, about 10 % slower on CPU."""
    sync: Literal["auto", "adapter", "merged"] = "auto"
    """How a policy is loaded: native LoRA (`auto`: on GPU) or merged (`auto`: on CPU): exact in
    float32, rounded at random in bfloat16 (docs/decisions/policies.md)."""
    max_lora_rank: int = Field(default=64, ge=1)
    """Largest LoRA rank with `sync: adapter`."""
    startup_timeout_s: float = Field(default=600, gt=0)
    """How long a replica may take to load."""
    request_timeout_s: float = Field(default=600, gt=0)
    """How long one request may take, retries included."""

    @property
    def merges_policies(self) -> bool:
        """Whether a policy is merged into the base model instead of being served as LoRA."""
        return self.sync == "merged" or (self.sync == "auto" and self.gpus_per_replica == 0)


class ServeSection(Section):
    """The HTTP endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine only."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""


CLUSTER_ADDRESS = re.compile(
    r"(?:ray://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})"
)
"""`HOST:PORT` of a Ray cluster."""

ADDRESS_FORM = (
    "HOST:PORT as `ray start --head` prints it, such as 10.0.0.5:6379, or ray://HOST:PORT, auto or "
    "local; an http:// address is that of the dashboard, which jobs are submitted to"
)


class ClusterSection(Section):
    """Ray itself."""

    address: str | None = None
    """An existing cluster's address, HOST:PORT, or `auto` for one on this machine; null =
    RAY_ADDRESS if set, else Ray is started here."""
    connect_timeout_s: float = Field(default=10, gt=0)
    """How long to wait for a cluster at `address` that does not answer yet."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of a Ray started here; null = at least 8. More than real: most actors wait."""
    object_store_gib: float = Field(default=1.0, gt=0.1)
    """Shared memory of a Ray started here."""
    dashboard: bool = True
    """Start the dashboard (on 127.0.0.1)."""
    dashboard_port: int = Field(default=8265, ge=1, le=65535)
    """Port of the dashboard; the next free one is taken if it is busy."""
    temp_dir: str | None = None
    """Ray's session folder; null = Ray's default."""

    @field_validator("address")
    @classmethod
    def _form(cls, address: str | None) -> str | None:
        if address not in (None, "auto", "local") and not CLUSTER_ADDRESS.fullmatch(address):
            raise ValueError(f"cluster.address must be {ADDRESS_FORM}")
        return address
