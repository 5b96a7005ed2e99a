"""The top of the report: what ran, on how many patients, and the numbers to look at first."""

from collections.abc import Mapping
from typing import Any

from training.evaluation.methods import LANGUAGE_MODEL_METHODS, method_label, ordered_rows
from training.readable import MISSING, Row, duration, finite_number, format_number, whole
from training.report.records import RunRecords
from training.report.search import search_value
from training.report.text import shown
from training.run.files import as_object

SMALL_TEST_PATIENTS = 100
"""Below this many test patients an AUROC's interval spans tens of points."""

SPLITS = ("train", "val", "test")


def header(records: RunRecords) -> list[tuple[str, str]]:
    """Label and value of what a reader asks first."""
    model = as_object(records.config.get("model"))
    task = shown(records.setting("cohort", "task"))
    if task == "readmission":
        task += f" within {shown(records.setting('cohort', 'horizon_days'))} days"
    entries = [
        ("Task", task),
        ("Cohort", shown(records.setting("cohort", "source"))),
        ("Data", shown(records.setting("run", "data_origin"))),
        ("Language model", shown(model.get("name") or records.setting("model", "name"))),
        ("Parameter type", _parameter_type(model)),
        ("Answer format", shown(records.setting("prompt", "format"))),
        ("Commit", shown(records.config.get("commit"))),
        ("Created", shown(records.config.get("created"))),
    ]
    return [(label, value) for label, value in entries if value != MISSING]


def _parameter_type(model: Mapping[str, Any]) -> str:
    """The type and, in newer run folders, why it was chosen."""
    reason = model.get("dtype_reason")
    chosen = shown(model.get("dtype"))
    return chosen if reason is None else f"{chosen}: {shown(reason)}"


def size_warning(records: RunRecords) -> str:
    """What so few test patients mean; empty where there are enough."""
    counts = [
        count
        for row in records.results
        if row.get("method") in LANGUAGE_MODEL_METHODS
        and (count := finite_number(row.get("n"))) is not None
    ]
    asked = finite_number(records.setting("evaluate", "num_patients"))
    if counts:
        fewest = int(min(counts))
        statement = f"The language model was tested on {fewest} patients."
    elif asked is not None:
        fewest = int(asked)
        statement = f"The configuration tests the language model on {fewest} patients."
    else:
        return ""
    if fewest >= SMALL_TEST_PATIENTS:
        return ""
    return f"{statement} Such sizes show that it runs and nothing else."


def switched_off(records: RunRecords) -> dict[str, str]:
    """Stages that the configuration leaves out, with the setting that does."""
    setting_of = {"search": "sft", "sft": "sft", "grpo": "grpo"}
    if records.setting("search", "value") == "label_free":
        del setting_of["search"]  # such a search is an end in itself
    return {
        stage: f"{section}.enabled: false"
        for stage, section in setting_of.items()
        if records.setting(section, "enabled") is False
    }


def tiles(records: RunRecords) -> list[tuple[str, str, str]]:
    """Label, number and remark of the run in a few tiles."""
    splits = as_object((records.summary or {}).get("splits"))
    found: list[tuple[str, str, str]] = []
    if splits:
        counts = [as_object(splits.get(split)).get("patients") for split in SPLITS]
        known = [count for value in counts if (count := finite_number(value)) is not None]
        detail = " / ".join(whole(count) for count in counts)
        found.append(("Patients", whole(sum(known)), f"{detail} train / val / test"))
    expert = as_object((records.expert or {}).get("test"))
    if expert:
        found.append(("Expert", format_number(expert.get("auroc"), 3, MISSING), "test AUROC"))
    if records.trajectories is not None:
        kept = sum(bool(row["kept"]) for row in records.trajectories)
        value = search_value(records)
        remark = f"{kept} {value.kept}{', found without labels' if value.is_label_free else ''}"
        found.append(("Trajectories", whole(len(records.trajectories)), remark))
    if records.grpo:
        version = whole(records.grpo[-1].get("policy_version_out"))
        found.append(("GRPO steps", whole(len(records.grpo)), f"last policy version {version}"))
    trained = next((row for row in ordered_rows(records.results)[::-1] if _is_trained(row)), None)
    if trained is not None:
        label = method_label(trained.get("method"))
        found.append((label, format_number(trained.get("auroc"), 3, MISSING), "test AUROC"))
    seconds = [finite_number(record.get("seconds")) for record in records.stages.values()]
    known_seconds = [value for value in seconds if value is not None]
    if known_seconds:
        found.append(("Time", duration(sum(known_seconds)), "all stages"))
    return found


def _is_trained(row: Row) -> bool:
    untrained = (
        *("vanilla", "think_then_answer", "think_then_answer_json"),
        *("question_decomposition", "short_answer"),
    )
    return row.get("method") in LANGUAGE_MODEL_METHODS and row.get("method") not in untrained
