"""What a merged policy keeps of its training, and what keeping it costs.

    python -m benchmarks.served_share [--updates 4 12] [--draws 5] [--quick] [--json PATH]

`share`: SmolLM2 with an adapter of rank 64 on all linear layers takes Adam updates at 1e-4 towards
a fixed answer behind the ends of prompts about patients of the synthetic cohort. Then the adapter
is merged in several ways and other patients' answers are scored: the served share of the change
(slope through the origin over tokens, `training.learner.served_change`), and mean |served -
learner|, in nats. Everything is computed in float32, so that the rounding of weights is all that
differs. `bfloat16`: learner and engine both in bfloat16, against the change that the adapter makes
in float32, and against a bfloat16 learner that rounds once. `cost`: seconds of merging the whole
model, and of one decoding step's linear layers with the adapter multiplied beside them.

Decoding with merged weights costs the same however they were rounded: same shapes, same kernels.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import RESULTS, write_result
from services.environment import prepare_process

RANK, ALPHA = 64, 32
LEARNING_RATE = 1e-4
ANSWER = (
    "<Final subquestion>\nNow we can answer the question: what is the risk?\n</Final subquestion>\n"
    "<Important Features>\nHeart Rate, pH, Glucose\n</Important Features>\n"
    "<Final answer>\n0.80\n</Final answer>\n"
)
NUM_TRAINED, NUM_SCORED = 8, 3
PROMPT_TOKENS = 160
"""The last ones of each prompt: what rounding does to a weight depends on no length."""
ROWS = 64
"""Sequences of the timed decoding step."""
REPEATS = 15

Weights = dict[str, Tensor]
Ids = tuple[tuple[int, ...], tuple[int, ...]]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, nargs="+", default=[4, 12])
    parser.add_argument("--draws", type=int, default=5, help="of the rounding at random")
    parser.add_argument("--quick", action="store_true", help="4 updates, one draw, one text")
    parser.add_argument("--json", type=Path, default=RESULTS / "served_share.json")
    arguments = parser.parse_args()
    updates = [4] if arguments.quick else sorted(arguments.updates)
    prepare_process()
    path, texts = _texts(1 if arguments.quick else NUM_SCORED)
    rows: list[dict[str, Any]] = []
    for num, adapter in _adapters(path, texts[0], updates):
        for row in share_rows(path, adapter, texts[1], 1 if arguments.quick else arguments.draws):
            rows.append({"part": "share", "updates": num, **row})
            _say(rows[-1])
        if num == updates[0]:
            for row in bfloat16_rows(path, adapter, texts[1]):
                rows.append({"part": "bfloat16", "updates": num, **row})
                _say(rows[-1])
    for row in (*merge_seconds(path), *decode_seconds(path)):
        rows.append({"part": "cost", **row})
        _say(rows[-1])
    write_result(arguments.json, rows, ratios(rows))


def _say(row: dict[str, Any]) -> None:
    shown = {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()}
    print(", ".join(f"{name} {value}" for name, value in shown.items()), flush=True)


def _texts(num_scored: int) -> tuple[Path, tuple[list[Ids], list[Ids]]]:
    """The model's folder; prompts with the answer, to train on and to score."""
    from actors.case_prompts import case_prompt
    from ehr.cohorts.loaders import build_cohort
    from ehr.config import CohortSection, PromptSection
    from ehr.language.prompts import PromptContext
    from services.config import ModelSection
    from services.models import load_tokenizer, resolve_model

    model = resolve_model(ModelSection())
    tokenizer = load_tokenizer(model.path)
    cohort = build_cohort(CohortSection(num_patients=60, num_visits=2))
    context = PromptContext.of(cohort, PromptSection())
    answer = tuple(tokenizer.encode(ANSWER))
    chosen = cohort.splits["train"][: NUM_TRAINED + num_scored]
    ids = [
        (
            case_prompt(
                cohort.cases[patient], "question_decomposition", context, tokenizer, model.chat
            ).token_ids[-PROMPT_TOKENS:],
            answer,
        )
        for patient in chosen
    ]
    return model.path, (ids[:NUM_TRAINED], ids[NUM_TRAINED:])


def _adapters(path: Path, texts: list[Ids], updates: list[int]) -> Iterator[tuple[int, bytes]]:
    """The adapter after each of these numbers of updates, two prompts an update."""
    from training.learner.policy_model import adapter_bytes

    policy = _policy(path, "float32")
    adam = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0)
    for step in range(1, updates[-1] + 1):
        for prompt, answer in texts[(2 * step) % NUM_TRAINED :][:2]:
            (-_scores(policy, prompt, answer).mean() / 2).backward()
        adam.step()
        adam.zero_grad()
        if step in updates:
            yield step, adapter_bytes(policy)


def _policy(path: Path, dtype: Any, served_merged: bool = True) -> Any:
    from training.config.learner import LearnerSection
    from training.learner.policy_model import load_policy_model

    return load_policy_model(
        path,
        LearnerSection(lora_rank=RANK, lora_alpha=ALPHA),
        dtype=dtype,
        seed=13,
        served_merged=served_merged,
    )


def _scores(policy: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> Tensor:
    from training.learner.packing import TokenGroup, pack

    group = TokenGroup(
        patient_id="p", prompt=prompt, responses=(answer,), trained=((True,) * len(answer),)
    )
    (row,) = pack([group], len(prompt) + len(answer))
    return policy(row)[0]


@torch.inference_mode()
def _score_all(policy: Any, texts: list[Ids]) -> list[float]:
    return [value for text in texts for value in _scores(policy, *text).tolist()]


def share_rows(path: Path, adapter: bytes, texts: list[Ids], draws: int) -> list[dict[str, Any]]:
    """The share of every way to merge, weights rounded and arithmetic in float32."""
    policy = _policy(path, "float32")
    before, learner = _before_and_after(policy, adapter, texts)
    served = _Served(path, "float32")
    rows = []
    for name, merge in methods(draws).items():
        scores = served.scores(adapter, merge, texts)
        rows.append(_row(name, learner, scores, before, before))
    rows.append(_row("bfloat16 adapter beside", learner, _beside(policy, texts), before, before))
    return rows


def bfloat16_rows(path: Path, adapter: bytes, texts: list[Ids]) -> list[dict[str, Any]]:
    """The same in bfloat16: its own noise is in every number.

    `of_exact` is the share of the change in float32, `share` that of a learner in bfloat16.
    """
    from training.learner.served_change import served_change

    exact_before, exact = _before_and_after(_policy(path, "float32"), adapter, texts)
    once_before, once = _before_and_after(_policy(path, "bfloat16"), adapter, texts)
    twice = _before_and_after(_policy(path, "bfloat16", served_merged=False), adapter, texts)
    served = _Served(path, "bfloat16")
    base = served.scores(None, _nearest, texts)
    found = {
        "learner that rounds once": (once_before, once),
        "adapter beside, rounded twice (native LoRA)": twice,
        **{
            f"merged, {name}": (base, served.scores(adapter, merge, texts))
            for name, merge in methods(1).items()
            if name != "float32"
        },
    }
    return [
        {
            **_row(name, once, after, once_before, before),
            "of_exact": served_change(exact, after, exact_before, before).share,
        }
        for name, (before, after) in found.items()
    ]


def _before_and_after(
    policy: Any, adapter: bytes, texts: list[Ids]
) -> tuple[list[float], list[float]]:
    from training.learner.policy_model import load_adapter

    before = _score_all(policy, texts)
    load_adapter(policy, adapter)
    return before, _score_all(policy, texts)


def _row(
    name: str,
    learner: list[float],
    served: list[float],
    before: list[float],
    served_before: list[float],
) -> dict[str, Any]:
    from training.learner.served_change import served_change

    change = served_change(learner, served, before, served_before)
    return {
        "method": name,
        "tokens": len(learner),
        "share": change.share,
        "standard_error": change.standard_error,
        "trained_rms": change.trained,
        "trained_mean": fmean(learner) - fmean(before),
        "served_mean": fmean(served) - fmean(served_before),
        "mean_abs": fmean(abs(a - b) for a, b in zip(learner, served, strict=True)),
    }


Merge = Callable[[Tensor, Tensor, str], Tensor]
"""A base weight, what the adapter adds, and the weight's name; what is served."""


def _nearest(base: Tensor, update: Tensor, name: str) -> Tensor:
    return (base + update).bfloat16()


def methods(draws: int) -> dict[str, Merge]:
    """Ways to merge; the base weights are bfloat16 values."""
    from services.merging import rounded_at_random

    at_random = {
        f"at random, draw {draw}": lambda base, update, name, draw=draw: rounded_at_random(
            base + update, f"{draw} {name}"
        )
        for draw in range(draws)
    }
    return {"nearest": _nearest, **at_random, "float32": lambda base, update, name: base + update}


class _Served:
    """The model that an engine would hold, in transformers."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._policy = _policy(path, dtype)  # its adapter is zero: the base alone
        self._weights: Weights = {
            name.replace(".base_layer", "").removeprefix("base_model.model."): parameter
            for name, parameter in self._policy.peft_model.named_parameters()
            if "lora_" not in name
        }
        self._base = {name: value.detach().clone() for name, value in self._weights.items()}

    @torch.inference_mode()
    def scores(self, adapter: bytes | None, merge: Merge, texts: list[Ids]) -> list[float]:
        from services.adapters import read_pairs

        pairs = read_pairs(adapter) if adapter else {}
        for name, pair in pairs.items():
            update = (ALPHA / RANK) * (pair.b @ pair.a)
            self._weights[name].copy_(merge(self._base[name].float(), update, name))
        return _score_all(self._policy, texts)


@torch.inference_mode()
def _beside(policy: Any, texts: list[Ids]) -> list[float]:
    """The adapter itself in bfloat16 beside the base, as native LoRA serves it."""
    kept = [parameter.clone() for parameter in policy.parameters()]
    for parameter in policy.parameters():
        parameter.copy_(parameter.bfloat16())
    scores = _score_all(policy, texts)
    for parameter, value in zip(policy.parameters(), kept, strict=True):
        parameter.copy_(value)
    return scores


def merge_seconds(path: Path) -> list[dict[str, Any]]:
    """Seconds of one thread to merge every adapted weight of the model."""
    from services.adapters import LoraPair
    from services.merging import merged_weight

    weights = _linear_weights(path)
    pairs = {
        name: LoraPair(a=torch.randn(RANK, each.shape[1]), b=torch.randn(each.shape[0], RANK))
        for name, each in weights.items()
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ways: dict[str, Callable[[str], Tensor]] = {
        "nearest": lambda name: (
            weights[name].float() + 1e-4 * (pairs[name].b @ pairs[name].a)
        ).bfloat16(),
        "at random": lambda name: merged_weight(
            weights[name], pairs[name], 1e-4, torch.bfloat16, name
        ),
        "float32": lambda name: merged_weight(
            weights[name], pairs[name], 1e-4, torch.float32, name
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(5):
        for way, merge in ways.items():
            start = time.perf_counter()
            for name in weights:
                merge(name)
            seconds[way].append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return [{"method": f"merge, {way}", "seconds": median(each)} for way, each in seconds.items()]


@torch.inference_mode()
def decode_seconds(path: Path) -> list[dict[str, Any]]:
    """Seconds of a decoding step's linear layers in float32, with and without an adapter beside."""
    weights = {name: each.float() for name, each in _linear_weights(path).items()}
    rows = {each.shape[1]: torch.randn(ROWS, each.shape[1]) for each in weights.values()}
    ranks = (0, 16, RANK)
    factors = {
        rank: {
            name: (torch.randn(rank, each.shape[1]), torch.randn(each.shape[0], rank))
            for name, each in weights.items()
        }
        for rank in ranks
    }

    def step(rank: int) -> float:
        start = time.perf_counter()
        for name, weight in weights.items():
            x = rows[weight.shape[1]]
            output = torch.nn.functional.linear(x, weight)
            if rank:
                a, b = factors[rank][name]
                output.addmm_(x @ a.t(), b.t())
        return time.perf_counter() - start

    seconds: dict[int, list[float]] = {rank: [] for rank in ranks}
    for _ in range(REPEATS):
        for rank in ranks:
            seconds[rank].append(step(rank))
    return [
        {
            "method": f"decoding step, adapter of rank {rank} beside" if rank else "decoding step",
            "seconds": median(seconds[rank]),
        }
        for rank in ranks
    ]


def _linear_weights(path: Path) -> Weights:
    from safetensors.torch import load_file

    tensors = load_file(path / "model.safetensors")
    return {name: each for name, each in tensors.items() if "_proj" in name}


def ratios(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """What the documents quote."""
    found: dict[str, float | None] = {}
    for num in sorted({row["updates"] for row in rows if row["part"] == "share"}):
        of = [row for row in rows if row["part"] == "share" and row["updates"] == num]
        at_random = [row for row in of if row["method"].startswith("at random")]
        nearest = next(row for row in of if row["method"] == "nearest")
        found[f"share_nearest_{num}"] = nearest["share"]
        found[f"mean_abs_nearest_{num}"] = nearest["mean_abs"]
        found[f"share_at_random_{num}"] = fmean(row["share"] for row in at_random)
        found[f"least_share_at_random_{num}"] = min(row["share"] for row in at_random)
        found[f"mean_abs_at_random_{num}"] = fmean(row["mean_abs"] for row in at_random)
    for row in rows:
        if row["part"] == "bfloat16":
            found[f"bfloat16, {row['method']}: share of the exact change"] = row["of_exact"]
    seconds = {row["method"]: row["seconds"] for row in rows if row["part"] == "cost"}
    found["merge_at_random_vs_nearest"] = seconds["merge, at random"] / seconds["merge, nearest"]
    for rank in (16, RANK):
        name = f"decoding step, adapter of rank {rank} beside"
        found[f"decode_rank_{rank}_beside_vs_merged"] = seconds[name] / seconds["decoding step"]
    return found


if __name__ == "__main__":
    main()
