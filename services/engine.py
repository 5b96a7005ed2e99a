"""The language model engine: vLLM's AsyncLLM behind the project's own types.

This module and `merged_weights` (which vLLM's worker imports) are the only ones that know vLLM, and
they import it when an engine starts, so that the types here cost nothing.
"""

import json
import logging
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import safe_open

from ehr.errors import ModelError, ServiceError
from ehr.language.pieces import TextTokenizer
from services.adapters import read_pairs, verify_policy, write_peft_folder
from services.config import GeneratorSection, ModelSection
from services.environment import prepare_cpu_engine
from services.models import LocalModel, load_tokenizer
from services.precision import parameter_type
from services.types import (
    BASE_POLICY,
    Completion,
    GenerateRequest,
    NextToken,
    Policy,
    PolicyVersion,
)

if TYPE_CHECKING:
    from vllm.logprobs import Logprob
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

_BLOCK_TOKENS = 32
"""Prefix-cache granularity on CPU. vLLM's default of 128 would recompute most of a search step."""

_IN_ENGINE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""Executor of CPU engines. vLLM's own choice there, a worker process, is for binding its OpenMP
threads to cores, which is off here; the engine's core would wait for each of its steps in a loop
that takes a whole core from everything else (docs/benchmarks/rollouts.md)."""

_MOST_ALTERNATIVES = 256
"""Tokens that a question for the next ones may get: under the pattern of a risk there are a dozen,
or 110 where two digits are one token."""

_PATTERNS_KEPT = 256
"""Compiled patterns that are kept: those of a run, several times over."""


class Engine(Protocol):
    """What a generator replica needs of an engine."""

    version: PolicyVersion
    """The policy that is loaded."""
    checksum: str
    """Its checksum."""
    cache_tokens: int
    """Size of the KV cache, in tokens."""

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The samples of a request."""
        ...

    async def score(
        self, prompt_token_ids: tuple[int, ...], response_token_ids: tuple[int, ...]
    ) -> tuple[float, ...]:
        """Log-probability of each response token, given all before it."""
        ...

    async def next_tokens(
        self, prompt_token_ids: tuple[int, ...], regex: str
    ) -> tuple[NextToken, ...]:
        """Every token that a pattern allows behind a prompt."""
        ...

    async def load_policy(self, policy: Policy) -> None:
        """Serve another policy; no request may be in flight."""
        ...

    async def check(self) -> None:
        """Raise if the engine cannot go on."""
        ...

    def stop(self) -> None:
        """End the engine's processes."""
        ...


def engine_threads(section: GeneratorSection) -> int:
    """OpenMP threads of one CPU replica."""
    cores = len(os.sched_getaffinity(0))
    return section.threads or max(1, cores // section.num_replicas)


async def load_vllm(
    model: LocalModel, model_section: ModelSection, section: GeneratorSection
) -> Engine:
    """Start a vLLM engine that serves the base model."""
    engine = VllmEngine(model, model_section, section)
    await engine.start()
    return engine


class VllmEngine:
    """One vLLM engine and the policy it serves."""

    def __init__(
        self, model: LocalModel, model_section: ModelSection, section: GeneratorSection
    ) -> None:
        self.version = BASE_POLICY
        self.checksum = ""
        self.cache_tokens = 0
        self._model = model
        self._model_section = model_section
        self._section = section
        self._merged = section.merges_policies
        self._on_gpu = section.gpus_per_replica > 0
        self._llm: AsyncLLM | None = None
        self._lora: LoRARequest | None = None
        self._num_loaded = 0
        self._eos_ids = _end_ids(model.path)
        self._scratch = Path(tempfile.mkdtemp(prefix="eag-rl-policy-"))

    async def start(self) -> None:
        """Load the base model; takes 30-60 s on two cores.

        Raises:
            ServiceError: if vLLM cannot start.
        """
        if not self._on_gpu:
            prepare_cpu_engine(engine_threads(self._section))
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        _remember_patterns()
        try:
            self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._engine_arguments()))
        except (RuntimeError, ValueError) as error:
            raise ServiceError(
                f"vLLM could not start {self._model.name!r}: {error}; the cause is usually memory "
                "(generator.cache_gib, generator.gpu_memory_utilization) or model.max_model_len "
                "beyond what the model supports; run with run.verbose=true for its own log"
            ) from error
        cache = self._llm.vllm_config.cache_config
        self.cache_tokens = (cache.num_gpu_blocks or 0) * cache.block_size
        if self._merged:
            await self._init_merging()

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        """The samples of a request, in sample order.

        Raises:
            ServiceError: if prompt and answer cannot fit into the model's context.
        """
        limit = self._model_section.max_model_len
        if len(request.prompt_token_ids) >= limit:
            raise ServiceError(
                f"expected a prompt below model.max_model_len = {limit} tokens, got "
                f"{len(request.prompt_token_ids)}; lower prompt.max_prompt_tokens or raise "
                "model.max_model_len"
            )
        version, checksum = self.version, self.checksum
        output = await self._run(request.prompt_token_ids, self._sampling(request))
        return [
            _completion(output, index, self._content_length(request, sample), version, checksum)
            for index, sample in enumerate(sorted(output.outputs, key=lambda each: each.index))
        ]

    async def score(
        self, prompt_token_ids: tuple[int, ...], response_token_ids: tuple[int, ...]
    ) -> tuple[float, ...]:
        """Log-probability of each response token under the loaded policy."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            max_tokens=1, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY
        )
        ids = prompt_token_ids + response_token_ids
        output = await self._run(ids, sampling)
        assert output.prompt_logprobs is not None, "prompt_logprobs were asked for"
        rows = list(output.prompt_logprobs)[len(prompt_token_ids) :]
        return tuple(
            _logprob(row, token) for row, token in zip(rows, response_token_ids, strict=True)
        )

    async def next_tokens(
        self, prompt_token_ids: tuple[int, ...], regex: str
    ) -> tuple[NextToken, ...]:
        """Every token that a pattern allows behind a prompt, with its log-probability among them.

        At most `_MOST_ALTERNATIVES` of them, the likeliest: whoever asks checks that they sum to 1.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            structured_outputs=StructuredOutputsParams(regex=regex),
            logprobs=_MOST_ALTERNATIVES,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._run(prompt_token_ids, sampling)
        rows = output.outputs[0].logprobs
        assert rows, "log-probabilities were asked for"
        return tuple(
            NextToken(token_id=token, text=self._tokenizer.decode([token]), logprob=found.logprob)
            for token, found in rows[0].items()
            if found.logprob > -math.inf
        )

    async def load_policy(self, policy: Policy) -> None:
        """Serve `policy` from the next request on.

        Raises:
            ModelError: if it is not a LoRA adapter of this model; the old policy stays.
        """
        verify_policy(policy)
        if self._merged:
            self._check_names(policy)
            await self._load_merged(policy)
        else:
            await self._load_adapter(policy)
        self.version, self.checksum = policy.version, policy.checksum

    async def check(self) -> None:
        """Raise if vLLM's engine process has died."""
        await self._running.check_health()

    def stop(self) -> None:
        """End vLLM's processes and remove scratch files."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None
        shutil.rmtree(self._scratch, ignore_errors=True)

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        return load_tokenizer(self._model.path)

    @property
    def _running(self) -> "AsyncLLM":
        if self._llm is None:
            raise ServiceError("the engine is not running; call start() first")
        return self._llm

    def _engine_arguments(self) -> dict[str, Any]:
        section = self._section
        arguments: dict[str, Any] = {
            "model": str(self._model.path),
            "dtype": parameter_type(self._model_section.dtype, on_gpu=self._on_gpu),
            "max_model_len": self._model_section.max_model_len,
            "max_num_seqs": section.max_num_seqs,
            "enforce_eager": section.enforce_eager,
            "enable_prefix_caching": True,
            # Unmasked and before temperature: the policy's own distribution, as the learner has it.
            "logprobs_mode": "raw_logprobs",
            "max_logprobs": _MOST_ALTERNATIVES,
            # Sampling comes from the request alone, never from the model folder's defaults.
            "generation_config": "vllm",
            "disable_log_stats": True,
            "seed": 0,
        }
        if self._on_gpu:
            arguments["gpu_memory_utilization"] = section.gpu_memory_utilization
        else:
            arguments["kv_cache_memory_bytes"] = int(section.cache_gib * 2**30)
            arguments["block_size"] = _BLOCK_TOKENS
            arguments["distributed_executor_backend"] = _IN_ENGINE_PROCESS
            # A prompt prefilled in parts rewinds its seeded generator, which CPU generators refuse:
            # that ends vLLM 0.32's CPU engine.
            arguments["enable_chunked_prefill"] = False
        if self._merged:
            arguments["worker_extension_cls"] = "services.merged_weights.WorkerExtension"
            arguments["weight_transfer_config"] = {"backend": _merged_backend()}
        else:
            arguments |= {
                "enable_lora": True,
                "max_loras": 1,
                "max_lora_rank": section.max_lora_rank,
            }
        return arguments

    def _sampling(self, request: GenerateRequest) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling = request.sampling
        return SamplingParams(
            n=sampling.n,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            stop=list(sampling.stop),
            include_stop_str_in_output=sampling.include_stop,
            allowed_token_ids=(
                None if sampling.allowed_token_ids is None else list(sampling.allowed_token_ids)
            ),
            structured_outputs=(
                None if sampling.regex is None else StructuredOutputsParams(regex=sampling.regex)
            ),
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    async def _run(self, token_ids: tuple[int, ...], sampling: Any) -> "RequestOutput":
        last: RequestOutput | None = None
        async for output in self._running.generate(
            {"prompt_token_ids": list(token_ids)},
            sampling,
            request_id=uuid.uuid4().hex,
            lora_request=self._lora,
        ):
            last = output
        assert last is not None, "vLLM ends a request with an output"
        return last

    def _content_length(self, request: GenerateRequest, sample: Any) -> int:
        """Tokens of a sample that are content: a finished pattern is followed by an end token."""
        count = len(sample.token_ids)
        if request.sampling.regex is not None and count and sample.token_ids[-1] in self._eos_ids:
            return count - 1
        return count

    async def _init_merging(self) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        info = {"folder": str(self._model.path)}
        await self._running.init_weight_transfer_engine(WeightTransferInitRequest(init_info=info))

    def _check_names(self, policy: Policy) -> None:
        """A name the base lacks must fail here: half a reload would leave a broken model."""
        if policy.adapter is None:
            return
        known: set[str] = set()
        for file in self._model.path.glob("*.safetensors"):
            with safe_open(file, framework="pt") as base:
                known.update(base.keys())
        unknown = [name for name in read_pairs(policy.adapter) if name not in known]
        if unknown:
            raise ModelError(
                f"expected an adapter of {self._model.name!r}, it changes layers that this model "
                f"does not have: {unknown[:5]}; was it trained on another model?"
            )

    async def _load_merged(self, policy: Policy) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        path = self._scratch / "adapter.safetensors"
        if policy.adapter is not None:
            path.write_bytes(policy.adapter)
        info = {
            "path": "" if policy.adapter is None else str(path),
            "scaling": policy.scaling,
        }
        # `wait` drains what is in flight; the cleared prefix cache belongs to the old policy.
        await self._running.pause_generation(mode="wait", clear_cache=True)
        try:
            await self._running.start_weight_update()
            await self._running.update_weights(WeightTransferUpdateRequest(update_info=info))
            await self._running.finish_weight_update()
        finally:
            await self._running.resume_generation()
            path.unlink(missing_ok=True)

    async def _load_adapter(self, policy: Policy) -> None:
        from vllm.lora.request import LoRARequest

        old = self._lora
        self._num_loaded += 1
        if policy.adapter is None:
            self._lora = None
        else:
            # vLLM keys its prefix cache by name and path: both are new for every policy.
            name = f"{policy.version.lineage}-{policy.version.version}-{self._num_loaded}"
            folder = self._scratch / name
            write_peft_folder(policy, folder)
            request = LoRARequest(name, self._num_loaded, str(folder))
            await self._running.add_lora(request)
            self._lora = request
        if old is not None:
            await self._running.remove_lora(old.lora_int_id)
            shutil.rmtree(old.lora_path, ignore_errors=True)


def _remember_patterns() -> None:
    """Keeps compiled patterns: vLLM checks a request by compiling its pattern once more.

    A run has a handful of them; a list of names takes milliseconds.
    """
    import xgrammar

    if not hasattr(xgrammar.Grammar.from_regex, "cache_info"):
        remembered = lru_cache(maxsize=_PATTERNS_KEPT)(xgrammar.Grammar.from_regex)
        xgrammar.Grammar.from_regex = staticmethod(remembered)


def _merged_backend() -> str:
    from services.merged_weights import BACKEND

    return BACKEND


def _end_ids(folder: Path) -> frozenset[int]:
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        found = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        if found is not None:
            return frozenset(found if isinstance(found, list) else [found])
    return frozenset()


def _logprob(row: "Mapping[int, Logprob] | None", token: int) -> float:
    assert row is not None, "only the first token of a prompt has no log-probability"
    return row[token].logprob


def _completion(
    output: "RequestOutput", index: int, length: int, version: PolicyVersion, checksum: str
) -> Completion:
    sample = output.outputs[index]
    assert sample.logprobs is not None, "log-probabilities were asked for"
    token_ids = tuple(sample.token_ids)[:length]
    rows = list(sample.logprobs)[:length]
    return Completion(
        token_ids=token_ids,
        text=sample.text,
        logprobs=tuple(_logprob(row, token) for row, token in zip(rows, token_ids, strict=True)),
        finish_reason=sample.finish_reason or "stop",
        policy_version=version,
        policy_checksum=checksum,
        num_prompt_tokens=len(output.prompt_token_ids or ()),
        num_cached_tokens=output.num_cached_tokens or 0,
    )
