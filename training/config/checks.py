"""Settings that contradict each other: found when a configuration is loaded, before any work."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ehr.config import CohortSection

if TYPE_CHECKING:
    from training.config.run import RunConfig

TAG_TOKENS = 128
"""Room for what the caller writes around an answer, and for the chat frame."""

_RISK_BRANCHES = 10
"""Tokens that `grpo.credit: exact_risk` puts beside an answer: the digits of its risk's tens."""

_STEP_TAG_TOKENS = 32
"""Of them, the caller's tags and line ends around a step and its answer."""

_ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Sizes for which vLLM reserves room for adapters (`vllm.config.lora.MaxLoRARanks`)."""

_SHUFFLED = "shuffled_salience"
"""Name of the one row that is rewarded with other patients' salience."""


def contradictions(config: "RunConfig") -> list[str]:
    """One sentence for each pair of settings that cannot both hold; names both.

    Args:
        config: every section by itself is valid.
    """
    return [problem for check in _CHECKS for problem in check(config)]


def is_available(method: str, config: "RunConfig") -> bool:
    """Whether a run has what a row of `evaluate.methods` is asked of."""
    return {"stage1": config.sft.enabled, "stage2": config.grpo.enabled}.get(method, True)


def trains_adapters(config: "RunConfig") -> bool:
    """Whether any stage makes an adapter, which the generator serves afterwards."""
    return config.sft.enabled or config.grpo.enabled or "sft" in config.evaluate.methods


def longest_trained_answer(config: "RunConfig") -> int:
    """Tokens of the longest answer that the learner may meet, tags included.

    Stage 1 trains on what the search writes, Stage 2 on its own rollouts.
    """
    lengths = [0]
    if config.sft.enabled:
        lengths.append(_searched_tokens(config) + _tags(config, config.search.max_depth))
    if config.grpo.enabled:
        lengths.append(config.grpo.max_new_tokens + _tags(config, config.grpo.max_depth))
    return max(lengths)


def _searched_tokens(config: "RunConfig") -> int:
    search = config.search
    steps = 0 if config.prompt.kind == "short_answer" else search.max_depth - 1
    return steps * (search.question_tokens + search.answer_tokens) + search.final_tokens


def _tags(config: "RunConfig", max_depth: int) -> int:
    steps = 1 if config.prompt.kind == "short_answer" else max_depth
    return _STEP_TAG_TOKENS * (steps + 1)


def _a_method_is_left(config: "RunConfig") -> Iterator[str]:
    methods = config.evaluate.methods
    if not any(is_available(method, config) for method in methods):
        yield (
            f"evaluate.methods is {list(methods)}, of which sft.enabled="
            f"{_yaml(config.sft.enabled)} and grpo.enabled={_yaml(config.grpo.enabled)} leave none "
            "to evaluate; switch the stage on, or name another row, such as vanilla"
        )


def _adapters_fit_the_engine(config: "RunConfig") -> Iterator[str]:
    rank, most = config.learner.lora_rank, config.generator.max_lora_rank
    if not trains_adapters(config) or config.generator.merges_policies:
        return
    if most not in _ENGINE_RANKS:
        yield (
            f"generator.max_lora_rank is {most}, of which the engine has no form with "
            f"generator.sync={config.generator.sync}; take one of {list(_ENGINE_RANKS)}"
        )
    if rank > most:
        yield (
            f"learner.lora_rank is {rank}, above generator.max_lora_rank, {most}, the largest that "
            f"generator.sync={config.generator.sync} serves; raise the second or lower the first"
        )


def _rows_hold_a_prompt(config: "RunConfig") -> Iterator[str]:
    if not trains_adapters(config):
        return
    prompt, answer = config.prompt.max_prompt_tokens, longest_trained_answer(config)
    # What is sampled never leaves the model's context.
    needed = min(prompt + answer, config.model.max_model_len)
    branches = ""
    if config.grpo.enabled and config.grpo.credit == "exact_risk":
        needed += _RISK_BRANCHES
        branches = f", with {_RISK_BRANCHES} more for grpo.credit=exact_risk"
    if needed > config.learner.max_row_tokens:
        yield (
            f"learner.max_row_tokens is {config.learner.max_row_tokens}, but a row holds a prompt "
            f"and an answer: prompt.max_prompt_tokens={prompt} and {answer} tokens of the longest "
            f"answer (search.*_tokens, search.max_depth, grpo.max_new_tokens), at most "
            f"model.max_model_len={config.model.max_model_len}{branches}; set it to {needed} "
            "or more, or lower the others"
        )


def _the_search_fits_the_context(config: "RunConfig") -> Iterator[str]:
    search, prompt = config.search, config.prompt.max_prompt_tokens
    if not (config.sft.enabled or search.value == "label_free"):
        return
    # A search ends where one more step and the final no longer fit.
    steps = 0 if config.prompt.kind == "short_answer" else 1
    written = steps * (search.question_tokens + search.answer_tokens) + search.final_tokens
    room = TAG_TOKENS if steps else _tags(config, 1)
    names = (
        "search.question_tokens, answer_tokens and final_tokens" if steps else "search.final_tokens"
    )
    needed = prompt + written + room
    if needed > config.model.max_model_len:
        yield (
            f"model.max_model_len is {config.model.max_model_len}, but prompt.max_prompt_tokens="
            f"{prompt}, {written} tokens of {names} and {room} for tags are {needed}; raise the "
            "first or lower the others"
        )


def _enough_rollouts_to_keep(config: "RunConfig") -> Iterator[str]:
    kept, made = config.search.num_kept_trajectories, config.search.num_rollouts
    if config.sft.enabled and kept > made:
        yield (
            f"search.num_kept_trajectories is {kept}, more than the {made} of search.num_rollouts "
            "that a patient has; lower the first or raise the second"
        )


def _risks_have_a_pattern(config: "RunConfig") -> Iterator[str]:
    if config.evaluate.reading == "expected" and config.prompt.format == "free":
        yield (
            "evaluate.reading is expected, which reads the numbers that a pattern allows, but "
            "prompt.format=free has no pattern; set evaluate.reading to sampled or auto, or "
            "prompt.format to guided"
        )


def _refills_are_allowed(config: "RunConfig") -> Iterator[str]:
    grpo = config.grpo
    if grpo.enabled and grpo.dynamic_sampling and grpo.max_refills == 0:
        yield (
            "grpo.dynamic_sampling replaces groups whose rewards are equal, grpo.max_refills=0 "
            "allows no batch for that; raise the second or set the first to false"
        )


def _exact_risks_are_guided(config: "RunConfig") -> Iterator[str]:
    if (
        config.grpo.enabled
        and config.grpo.credit == "exact_risk"
        and config.prompt.format == "free"
    ):
        yield (
            "grpo.credit=exact_risk counts the numbers that the guided format's pattern allows, "
            "prompt.format=free has none; set prompt.format to guided, or grpo.credit to "
            "reward_to_go"
        )


def _controls_reach_the_reward(config: "RunConfig") -> Iterator[str]:
    grpo = config.grpo
    setting = "reward" if grpo.accuracy_weight is None else "grpo"
    for name in ("shuffle_salience", "rare_features"):
        if grpo.enabled and getattr(grpo, name) and _accuracy_weight(config) == 1:
            yield (
                f"grpo.{name} changes the attention reward, which {setting}.accuracy_weight=1 "
                "switches off; set one of them otherwise"
            )


def _accuracy_weight(config: "RunConfig") -> float:
    own = config.grpo.accuracy_weight
    return config.reward.accuracy_weight if own is None else own


def _rows_are_what_they_are_called(config: "RunConfig") -> Iterator[str]:
    grpo, method = config.grpo, config.grpo.method
    if not grpo.enabled:
        return
    weight = _accuracy_weight(config)
    one_reward = ("grpo.accuracy_weight", "1", weight == 1, f"{weight:g}")
    clips = f"{grpo.clip_high_min:g} and {grpo.clip_high_max:g}"
    is_fixed = grpo.clip_high_min == grpo.clip_high_max
    one_clip = ("grpo.clip_high_min and clip_high_max", "the same", is_fixed, clips)
    shuffled = ("grpo.shuffle_salience", "true", grpo.shuffle_salience, "false")
    rare = ("grpo.rare_features", "true", grpo.rare_features, "false")
    selected = ("grpo.select", "validation", grpo.select == "validation", grpo.select)
    stage1 = ("sft.enabled", "true", config.sft.enabled, _yaml(config.sft.enabled))
    no_stage1 = ("sft.enabled", "false", not config.sft.enabled, _yaml(config.sft.enabled))
    needs = {
        "eag_rl_selected": (selected,),
        "stage1_grpo": (stage1, one_reward, one_clip),
        "stage1_dapo": (stage1, one_reward, one_clip),
        "without_stage1": (no_stage1,),
        "without_attention_reward": (one_reward,),
        "without_adaptive_clip": (one_clip,),
        _SHUFFLED: (shuffled,),
        "rare_features": (rare,),
    }
    for setting, wanted, holds, found in needs.get(method, ()):
        if not holds:
            yield (
                f"grpo.method names this row {method!r}, which needs {setting} to be {wanted}, got "
                f"{found}; see configs/presets, or give the row another name"
            )
    if grpo.shuffle_salience and method != _SHUFFLED:
        yield (
            f"grpo.shuffle_salience=true rewards another patient's features, which the row "
            f"{method!r} of grpo.method does not; it belongs to grpo.method={_SHUFFLED}"
        )


def _cohorts_have_patients(config: "RunConfig") -> Iterator[str]:
    cohorts = {"cohort": config.cohort, "evaluate.other_cohort": config.evaluate.other_cohort}
    for name, cohort in cohorts.items():
        if cohort is None:
            continue
        if cohort.source == "synthetic":
            yield from _synthetic(name, cohort)
        if cohort.gap_days and cohort.source != "tjh":
            yield (
                f"{name}.gap_days is {cohort.gap_days}, but {name}.source is {cohort.source!r}, of "
                "which no discharge is known: no record would be dropped; leave it at 0"
            )


def _synthetic(name: str, cohort: CohortSection) -> Iterator[str]:
    if cohort.path is not None:
        yield (
            f"{name}.path is {cohort.path!r}, but {name}.source is 'synthetic', which reads no "
            f"files; set {name}.source to tjh or physionet2012, or leave the path out"
        )
    if cohort.min_visits > cohort.num_visits:
        yield (
            f"{name}.min_visits is {cohort.min_visits}, more than {name}.num_visits, "
            f"{cohort.num_visits}, the most that a synthetic patient has: all would be dropped"
        )


def _members_have_another_half(config: "RunConfig") -> Iterator[str]:
    expert = config.expert
    if expert.members == 1 and expert.selection == "cross_validation":
        yield (
            "expert.selection=cross_validation chooses an epoch by the half that a member was not "
            "trained on, but expert.members=1 is trained on all; use more members, or "
            "expert.selection=validation"
        )


def _whole_gpus(config: "RunConfig") -> Iterator[str]:
    shares = {
        "generator.gpus_per_replica": config.generator.gpus_per_replica,
        "learner.gpus_per_worker": config.learner.gpus_per_worker,
        "expert.gpus_per_worker": config.expert.gpus_per_worker,
    }
    for name, share in shares.items():
        if share > 1 and not share.is_integer():
            yield f"{name} is {share:g}: Ray gives a share of one GPU, or whole ones"


def _two_ports(config: "RunConfig") -> Iterator[str]:
    if config.cluster.dashboard and config.serve.port == config.cluster.dashboard_port:
        yield (
            f"serve.port and cluster.dashboard_port are both {config.serve.port}, and the "
            "dashboard comes first; choose another for one of them"
        )


def _yaml(value: bool) -> str:
    return str(value).lower()


_CHECKS: tuple[Callable[["RunConfig"], Iterator[str]], ...] = (
    _a_method_is_left,
    _adapters_fit_the_engine,
    _rows_hold_a_prompt,
    _the_search_fits_the_context,
    _enough_rollouts_to_keep,
    _risks_have_a_pattern,
    _refills_are_allowed,
    _exact_risks_are_guided,
    _controls_reach_the_reward,
    _rows_are_what_they_are_called,
    _cohorts_have_patients,
    _members_have_another_half,
    _whole_gpus,
    _two_ports,
)
