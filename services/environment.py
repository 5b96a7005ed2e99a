"""The one place that sets environment variables, for what libraries read only from there.

Nothing leaves the machine by default: usage reports are off and the model hub is not contacted. A
variable that the caller has already set is kept, so that `HF_HUB_OFFLINE=0` allows downloads; only
`PYTHONDONTWRITEBYTECODE` is taken away.
"""

import os
import sys
from pathlib import Path

_EGRESS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}

_BEHAVIOUR = {
    # Forked workers after a first use of the tokenizer would otherwise warn and switch threads off.
    "TOKENIZERS_PARALLELISM": "false",
    # Ray otherwise hides GPUs from actors that ask for none, and warns about it once an actor.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # An engine's own processes end with a replica that is killed, instead of holding its memory.
    "RAY_process_group_cleanup_enabled": "1",
    # OpenMP threads that wait spin a little, then give their core away. By default they spin for
    # milliseconds, which slows processes on the same cores (rollouts beside training); not at all
    # would slow a process alone (docs/benchmarks/main_job.md, Threads that wait).
    "GOMP_SPINCOUNT": "1000",
    # The plugins that an environment happens to hold do not become part of an engine.
    "VLLM_PLUGINS": "",
    # Patterns are this project's own, none can run away: no thread for each that is compiled.
    "VLLM_REGEX_COMPILATION_TIMEOUT_S": "0",
}

_FEWER_PROCESSES = {
    # A worker for every logical CPU, most of them never used, each seconds of imports.
    "RAY_prestart_worker_first_driver": "0",
    # One more actor per training job, which watches for preempted cloud machines.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}

_QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CONFIGURE_LOGGING": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_LOG_TO_DRIVER": "0",
    "DEEPSPEED_LOG_LEVEL": "error",
}


def process_environment(verbose: bool) -> dict[str, str]:
    """Variables of every process of a run, values that are already set first.

    Args:
        verbose: leave the libraries' own logs on.
    """
    wanted = {**_EGRESS, **_BEHAVIOUR, **_FEWER_PROCESSES, **({} if verbose else _QUIET)}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def prepare_process(verbose: bool = False) -> None:
    """Set this process's variables; call before ray, vllm, transformers or a hub is imported."""
    os.environ.update(process_environment(verbose))
    _keep_bytecode()


def _keep_bytecode() -> None:
    """Lets this process and those that it starts keep compiled modules.

    Container images often switch that off. A run starts dozens of Python processes, and each would
    compile Ray, PyTorch and vLLM anew, which takes longer than everything else they do to start.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def prepare_cpu_engine(threads: int) -> None:
    """Set this process's variables for a CPU engine; call before vllm is imported.

    Args:
        threads: OpenMP threads of the engine's worker.
    """
    os.environ.update(
        {
            # `auto` would pin the workers of all engines of a machine to the same cores.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Ray has set this to the replica's logical CPUs, which say nothing about real cores.
            "OMP_NUM_THREADS": str(threads),
        }
    )


def default_cache_dir() -> Path:
    """Where converted models are kept unless the configuration says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "eag-rl"
