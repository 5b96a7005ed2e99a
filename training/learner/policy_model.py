"""The policy as the learner holds it: a frozen base and fp32 LoRA weights on all linear layers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load, load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ehr.errors import ModelError
from services.precision import ParameterType
from training.config.learner import LearnerSection
from training.learner.attention import ATTENTION_NAME, attend_shared_prompt
from training.learner.checkpoints import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from training.learner.lora_linear import FrozenBaseLinear
from training.learner.own_logits import (
    logit_shape,
    own_logprobs,
    probe_row,
    require_same,
)
from training.learner.packing import Choices, PackedRow
from training.objective.logprob import FORBIDDEN, LogitShape, choice_logprobs, response_logprobs

ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, attend_shared_prompt)
# The layout of a row travels as spans; no mask is built.
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, lambda *_, **__: None)


class RowOutput(NamedTuple):
    """What the policy says of a packed row."""

    logprobs: Float[Tensor, " targets"]
    """Of the trained tokens."""
    entropies: Float[Tensor, " targets"] | None
    """Of their distributions in nats, without gradient; None = not asked for."""
    choices: Float[Tensor, "responses places tokens"] | None
    """Log-probability of each token of `PackedRow.choices` at each of its places, where nothing
    else can be written, those of `whole` last (`FORBIDDEN` behind a branch); None = no response has
    branches."""


class PolicyModel(nn.Module):
    """Base and adapter as one module whose parameters are the adapter's alone.

    The base is reached through a plain attribute, so an optimizer, a checkpoint or DeepSpeed sees
    nothing but the fp32 adapter and casts, broadcasts or saves nothing else.
    """

    def __init__(self, peft_model: PeftModel) -> None:
        super().__init__()
        object.__setattr__(self, "_peft_model", peft_model)
        self.adapter = nn.ParameterList(p for p in peft_model.parameters() if p.requires_grad)

    @property
    def peft_model(self) -> PeftModel:
        """The wrapped model."""
        return self._peft_model  # pyright: ignore[reportReturnType] set past nn.Module's registry

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.adapter[0].device

    @property
    def scaling(self) -> float:
        """lora_alpha / rank."""
        config = self.peft_model.peft_config["default"]
        return config.lora_alpha / config.r  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, row: PackedRow, with_entropy: bool = False) -> RowOutput:
        """Log-probability of each trained token of a row, and the entropy of its distribution.

        Args:
            row: on the model's device.
            with_entropy: also return the full-vocabulary entropy in nats, without gradient.
        """
        causal: Any = self.peft_model.get_base_model()
        head = causal.get_output_embeddings()
        hidden = causal.base_model(
            input_ids=row.token_ids[None],
            position_ids=row.position_ids[None],
            use_cache=False,
            spans=row.spans,
        ).last_hidden_state[0]
        shape = logit_shape(causal)
        logprobs, entropies = response_logprobs(
            hidden.index_select(0, row.predictors),
            head.weight,
            row.targets,
            shape=shape,
            allowed=row.allowed,
            with_entropy=with_entropy,
        )
        choices = None
        if row.choices is not None:
            choices = _choices(hidden, row.choices, head.weight, shape)
        return RowOutput(logprobs, entropies, choices)


def _choices(
    hidden: Float[Tensor, "tokens width"],
    choices: Choices,
    head_weight: Float[Tensor, "vocabulary width"],
    shape: LogitShape,
) -> Float[Tensor, "responses places tokens"]:
    """`RowOutput.choices`."""
    places = hidden[choices.predictors]
    tokens = torch.cat([choices.tokens, choices.whole])
    first = choice_logprobs(places[:, :1], head_weight, tokens, shape)
    behind = choice_logprobs(places[:, 1:], head_weight, choices.tokens, shape)
    impossible = behind.new_full((*behind.shape[:2], len(choices.whole)), FORBIDDEN)
    return torch.cat([first, torch.cat([behind, impossible], 2)], 1)


def load_policy_model(
    model_path: Path,
    section: LearnerSection,
    *,
    dtype: ParameterType,
    seed: int,
    device: torch.device | None = None,
    served_merged: bool = True,
) -> PolicyModel:
    """The base in `dtype`, frozen, with a fresh adapter (B = 0: it starts as the base).

    Args:
        model_path: folder in transformers' format.
        section: rank, alpha and checkpointing.
        dtype: of the base, as the engine has it.
        seed: of the adapter's initial weights.
        device: where to put it; the CPU by default.
        served_merged: engines merge its adapter into the base, else they add its product to the
            base's: in bfloat16 a small update is rounded otherwise (`FrozenBaseLinear.rounds_once`)
            and the learner does as they do.

    Raises:
        ModelError: if the folder holds no causal language model; one whose layers do not attend
            fully (sliding window, linear attention), since packed rows would be wrong there; or one
            whose log-probabilities here are not those of its own logits.
    """
    base = _frozen_base(model_path, getattr(torch, dtype))
    if device is not None:
        base.to(device)
    with _understood(base), torch.no_grad():
        row = probe_row(base.get_output_embeddings().weight.shape[0]).to(base.device)
        own = own_logprobs(base, row)
        base.set_attn_implementation(ATTENTION_NAME)
        model = PolicyModel(_with_adapter(base, section, seed))
        for module in model.peft_model.modules():
            if isinstance(module, FrozenBaseLinear):
                module.rounds_once = served_merged and dtype == "bfloat16"
        if section.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        # Checkpointing acts in training mode only; without dropout the mode changes nothing else,
        # and dropout that is no module would be seen here.
        model.peft_model.train(section.gradient_checkpointing)
        logprobs, entropies, _ = model(row, with_entropy=True)
    require_same(base.config.model_type, base.dtype, own, (logprobs, entropies))
    return model


def _frozen_base(model_path: Path, dtype: torch.dtype) -> Any:
    """The model with an attention of transformers', without dropout."""
    config = _checked_config(model_path)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model_path,
            config=config,
            dtype=dtype,
            attn_implementation="eager",  # the one that has every model's peculiarities
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"expected the weights of a causal language model in {str(model_path)!r}; transformers "
            f"says: {error}"
        ) from error
    base, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"expected all weights of model type {config.model_type!r} in {str(model_path)!r}, "
            f"{len(missing)} are missing and would be random: {missing[:5]!r}; save the model "
            "again as a causal language model"
        )
    base.requires_grad_(False)
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return base


def _with_adapter(base: Any, section: LearnerSection, seed: int) -> PeftModel:
    lora = LoraConfig(
        r=section.lora_rank,
        lora_alpha=section.lora_alpha,  # pyright: ignore[reportArgumentType] peft accepts floats
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    lora._register_custom_module({nn.Linear: FrozenBaseLinear})
    with torch.random.fork_rng(devices=[]):  # initialised on the CPU, wherever the base is
        torch.manual_seed(seed)
        return get_peft_model(base, lora)


@contextmanager
def _understood(base: Any) -> Iterator[None]:
    """What a model of another build than the learner expects raises, said as such."""
    try:
        yield
    except ModelError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"the learner cannot compute log-probabilities of model type "
            f"{base.config.model_type!r}: {error}; choose another model, such as one of Llama or "
            "Qwen2.5"
        ) from error


def adapter_weights(model: PolicyModel) -> dict[str, Tensor]:
    """A copy of the adapter's weights under peft's names, fp32 on the CPU."""
    state = get_peft_model_state_dict(model.peft_model, save_embedding_layers=False)
    return {
        name: value.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, value in state.items()
    }


def adapter_bytes(model: PolicyModel) -> bytes:
    """The adapter as the content of peft's `adapter_model.safetensors`."""
    return to_safetensors(adapter_weights(model), metadata={"format": "pt"})


def adapter_config_text(model: PolicyModel) -> str:
    """The content of peft's `adapter_config.json`."""
    config = model.peft_model.peft_config["default"].to_dict()
    config["inference_mode"] = True
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    return json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n"


def save_adapter(model: PolicyModel, folder: Path) -> None:
    """Write the adapter as a folder that peft and vLLM read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER_FILE).write_bytes(adapter_bytes(model))
    (folder / ADAPTER_CONFIG_FILE).write_text(adapter_config_text(model))


def load_adapter(model: PolicyModel, adapter: Path | bytes) -> None:
    """Replace the adapter's weights.

    Args:
        model: receives them.
        adapter: a folder in peft's format, or the content of its weight file.

    Raises:
        ModelError: if names or shapes do not fit the model's adapter.
    """
    if isinstance(adapter, bytes):
        state, source = load(adapter), "the adapter's bytes"
    else:
        path = adapter / ADAPTER_FILE
        if not path.is_file():
            raise ModelError(
                f"expected an adapter in peft's format at {str(adapter)!r}; {ADAPTER_FILE} is "
                "missing; run the stage that makes it again"
            )
        state, source = load_file(path), repr(str(path))
    expected = {name: tuple(value.shape) for name, value in adapter_weights(model).items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if expected != found:
        differing = sorted({n for n, _ in expected.items() ^ found.items()})[:5]
        raise ModelError(
            f"expected an adapter of this model at rank "
            f"{model.peft_model.peft_config['default'].r}; {source} "  # pyright: ignore
            f"differs in {differing!r}; use the same model and learner.lora_rank"
        )
    set_peft_model_state_dict(model.peft_model, state)


def _checked_config(model_path: Path) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(model_path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"expected a folder in transformers' format at {str(model_path)!r}; transformers says: "
            f"{error}"
        ) from error
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None)
    uses_window = window is not None and getattr(text, "use_sliding_window", True)
    if kinds != {"full_attention"} or (uses_window and not getattr(text, "layer_types", None)):
        raise ModelError(
            f"the learner trains models whose layers all attend fully, got model type "
            f"{text.model_type!r} with layers {sorted(kinds)!r} and sliding window {window!r}; "
            "choose a Llama or Qwen2.5 model without sliding windows"
        )
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    supports = getattr(model_class, "_supports_attention_backend", False)
    if model_class is None or not supports:
        raise ModelError(
            f"the learner needs a causal language model with transformers' attention interface, "
            f"got model type {config.model_type!r}; choose a Llama or Qwen2.5 model"
        )
    return config
