"""A run's trajectories and patients as JSON lines, in the chat form that other trainers read."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from actors.case_prompts import case_prompt
from ehr.cohorts.cohort import load_cohort
from ehr.errors import DataError
from ehr.language.chat import ChatFrame
from ehr.language.pieces import TextTokenizer
from ehr.language.prompts import PromptContext
from ehr.salience.table import stored_salience
from ehr.whole_files import whole_file
from services.config import ModelSection
from services.models import load_tokenizer, resolve_model
from training.rewarded import reward_contexts
from training.run.folder import RunFolder

__all__ = [
    "FOLDER",
    "PATIENTS_FILE",
    "TRAJECTORIES_FILE",
    "OpenModel",
    "export",
    "open_model",
]

FOLDER = "export"
"""Below the run folder, which is closed to others: prompts are patients' records."""
TRAJECTORIES_FILE = "trajectories.jsonl"
"""A chat for every trajectory, for supervised fine-tuning."""
PATIENTS_FILE = "patients.jsonl"
"""The prompt of every training patient and the columns that `TrajectoryReward` reads."""

OpenModel = Callable[[ModelSection], tuple[TextTokenizer, ChatFrame]]
"""Finds the tokenizer and the chat template of a configured model."""


def open_model(section: ModelSection) -> tuple[TextTokenizer, ChatFrame]:
    """The tokenizer and chat template of a configured model."""
    model = resolve_model(section)
    return load_tokenizer(model.path), model.chat


def export(
    run_dir: Path, *, every_trajectory: bool = False, open_model: OpenModel = open_model
) -> list[str]:
    """Write what a run has of both files; says per file how many lines it got, or what is missing.

    Args:
        run_dir: a run folder.
        every_trajectory: all trajectories of the search instead of the SFT set.
        open_model: finds the tokenizer and chat template of the run's model.

    Raises:
        RunFolderError: if there is no run in the folder.
        DataError: if it has neither a finished search nor a trained expert.
        ModelError: if the run's language model is not on this machine.
    """
    folder = RunFolder(run_dir)
    config = folder.read_config("search", "grpo")
    sources = {
        TRAJECTORIES_FILE: (run_dir / "search" / "trajectories.parquet", "search"),
        PATIENTS_FILE: (run_dir / "expert" / "salience.parquet", "expert"),
    }
    if not any(source.exists() for source, _ in sources.values()):
        raise DataError(
            f"expected trajectories or the expert's salience in {run_dir}, found neither; run "
            "`eag-rl search CONFIG` first"
        )
    tokenizer, chat = open_model(config.model)
    said = []
    for name, (source, stage) in sources.items():
        if not source.exists():
            said.append(f"{name}: not written, the stage {stage} has not run")
            continue
        table = pd.read_parquet(source)
        if name == TRAJECTORIES_FILE:
            chosen = table if every_trajectory else table.loc[table["kept"]]
            lines = trajectory_lines(chosen, tokenizer, _frame_of_search(folder) or chat)
        else:
            lines = patient_lines(run_dir, table, tokenizer, chat)
        path = run_dir / FOLDER / name
        said.append(f"{path}: {_write(path, lines)} lines")
    return said


_EXPORTED = ("rank", "value_kind", "reward", "reward_cls", "reward_att", "probability", "kept")


def trajectory_lines(
    table: pd.DataFrame, tokenizer: TextTokenizer, chat: ChatFrame
) -> Iterator[dict[str, Any]]:
    """A chat of two messages for every row of a trajectories table, with its reward.

    The user's message is the one that the search showed. There is no system message: the model's
    chat template writes the same default one as in the run.
    """
    for row in table.sort_values(["patient_id", "rank"]).to_dict("records"):
        yield {
            "messages": [
                _user(row["prompt_token_ids"], tokenizer, chat),
                {"role": "assistant", "content": row["text"]},
            ],
            "patient_id": str(row["patient_id"]),
            **{name: None if pd.isna(row[name]) else row[name] for name in _EXPORTED},
        }


def patient_lines(
    run_dir: Path, salience: pd.DataFrame, tokenizer: TextTokenizer, chat: ChatFrame
) -> Iterator[dict[str, Any]]:
    """The prompt of every training patient and the columns that `TrajectoryReward` reads.

    Features and weights are those that the run's Stage 2 rewards: another patient's with
    `grpo.shuffle_salience`, weighed by rarity with `grpo.rare_features`.
    """
    config = RunFolder(run_dir).read_config("grpo", "search")
    cohort = load_cohort(run_dir / "cohort")
    context = PromptContext.of(cohort, config.prompt)
    patients = cohort.splits["train"]
    expert = RunFolder(run_dir).read_config("expert").expert
    stored = stored_salience(salience, patients, expert.num_salient_features, expert.candidates)
    contexts = reward_contexts(cohort, stored, config)
    for patient in patients:
        prompt = case_prompt(cohort.cases[patient], config.prompt.kind, context, tokenizer, chat)
        # Not a mapping: a data set in Arrow's format would give every patient every feature.
        rewarded = contexts[patient]
        features = sorted(rewarded.salient_features)
        yield {
            "prompt": [_user(prompt.token_ids, tokenizer, chat)],
            "patient_id": patient,
            "label": rewarded.label,
            "salient_features": features,
            "salient_weights": [rewarded.stability[name] for name in features],
        }


def _frame_of_search(folder: RunFolder) -> ChatFrame | None:
    """The frame that the search's prompts had: a template that writes the date has another now."""
    settings = (folder.stage("search").read() or {}).get("key", {}).get("settings", {})
    content = settings.get("model content")
    return ChatFrame.of_text(content["chat frame"]) if isinstance(content, dict) else None


def _user(token_ids: Any, tokenizer: TextTokenizer, chat: ChatFrame) -> dict[str, str]:
    text = tokenizer.decode(tuple(int(token) for token in token_ids))
    if not (text.startswith(chat.prefix) and text.endswith(chat.suffix)):
        raise DataError(
            f"expected prompts in the chat template of the run's model, got {text[:60]!r}; the "
            "search ran with another model or template: redo it with --redo search"
        )
    content = text.removeprefix(chat.prefix).removesuffix(chat.suffix)
    return {"role": "user", "content": content}


def _write(path: Path, lines: Iterator[Mapping[str, Any]]) -> int:
    num_lines = 0
    with whole_file(path) as partial, partial.open("w") as stream:
        for line in lines:
            stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            num_lines += 1
    return num_lines
