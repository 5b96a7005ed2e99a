"""The table of an experiment: for the terminal, and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.evaluation.predictions import reading_text
from training.experiments.measures import MEASURES, headings
from training.experiments.results import Results, arm_label
from training.experiments.words import shown_sentence
from training.readable import (
    aligned,
    finite_number,
    format_number,
    format_percentage,
    markdown_list,
    markdown_table,
)
from training.run.files import as_object

SHARES = ("grounding_error_rate", "parse_failure_rate")
"""Measures that are shown as percentages."""

TERMINAL_MEASURES = (
    "auroc",
    "ece",
    "reward",
    "reward_att_excess",
    "truth_overlap",
    "parse_failure_rate",
)
"""What fits on a terminal; the page and the Markdown table have every measure."""


def learn_table(results: Results) -> list[str]:
    """The lines of the experiment's table for the terminal: arms, differences, what is missing."""
    lines = _terminal_arms(results)
    if results["differences"]:
        lines += ["", *aligned([DIFFERENCE_COLUMNS, *difference_cells(results)])]
    if (sentence := shown_sentence(results)) is not None:
        lines += ["", sentence, ""]
    elsewhere = other_cohort(results)
    if elsewhere is not None:
        lines += ["", *other_cohort_facts(elsewhere), *_terminal_arms(elsewhere)]
    return [*lines, *unfinished_lines(results), *results["problems"]]


def _terminal_arms(results: Results) -> list[str]:
    measures = [name for name in TERMINAL_MEASURES if _is_measured(results, name)]
    titles = measure_headings(results)
    lines = aligned(
        [
            ["Arm", "Seeds", *(titles[name] for name in measures), "Minutes"],
            *(
                [
                    arm["label"],
                    seeds_text(arm),
                    *(estimate_text(arm["measures"][name], name) for name in measures),
                    _minutes(arm),
                ]
                for arm in results["arms"]
            ),
            *(
                [
                    row["label"],
                    "",
                    *(estimate_text(row["measures"].get(name), name) for name in measures),
                    "",
                ]
                for row in results["references"]
            ),
        ]
    )
    notes = {str(note) for arm in results["arms"] if (note := arm.get("seeds_note")) is not None}
    return [*lines, *sorted(notes)]


def learn_markdown(results: Results) -> str:
    """What `RUN/learn/results.md` holds: facts, every seed, differences, ceilings."""
    parts = [markdown_list(facts(results)), *_markdown_tables(results, arm_rows(results))]
    elsewhere = other_cohort(results)
    if elsewhere is not None:
        rows = arm_rows(elsewhere, has_effort=False)
        parts += [
            markdown_list(other_cohort_facts(elsewhere)),
            *_markdown_tables(elsewhere, rows),
        ]
    missing = [*unfinished_lines(results), *results["problems"]]
    if missing:
        parts.append(markdown_list(missing))
    return "\n\n".join(parts) + "\n"


def _markdown_tables(results: Results, rows: Sequence[Sequence[str]]) -> list[str]:
    """Arms, what they are read against, differences; those that there are."""
    parts = [markdown_table(rows, 2)]
    if results["references"]:
        parts.append(markdown_table(reference_rows(results), 1))
    if results["differences"]:
        parts.append(markdown_table([DIFFERENCE_COLUMNS, *difference_cells(results)], 2))
    if (sentence := shown_sentence(results)) is not None:
        parts.append(sentence)
    return parts


def arm_rows(results: Results, *, has_effort: bool = True) -> list[list[str]]:
    """The table of all arms with its heading: means with intervals, below each its seeds.

    Args:
        results: of the experiment, or its part about another cohort.
        has_effort: with what each unit took.
    """
    measures = [name for name in MEASURES if _is_measured(results, name)]
    titles = measure_headings(results)
    rows = [["Arm", "Seed", *(titles[name] for name in measures), *EFFORT_COLUMNS]]
    for arm in results["arms"]:
        has_one = arm["num_planned_seeds"] == 1
        cells = [estimate_text(arm["measures"][name], name) for name in measures]
        effort = effort_cells(arm["units"][0]) if has_one else [_minutes(arm), "", ""]
        seeds = str(arm["units"][0]["seed"]) if has_one else f"mean of {seeds_text(arm)}"
        seeds += _note_behind(arm)
        rows.append([arm["label"], seeds, *cells, *effort])
        for unit in [] if has_one else arm["units"]:
            cells = [value_text(as_object(unit["measures"][name]), name) for name in measures]
            rows.append(["", str(unit["seed"]), *cells, *effort_cells(unit)])
    return rows if has_effort else [row[: -len(EFFORT_COLUMNS)] for row in rows]


def reference_rows(results: Results) -> list[list[str]]:
    """What the arms are read against, with its heading."""
    references = results["references"]
    known = [name for name in MEASURES if any(name in row["measures"] for row in references)]
    titles = measure_headings(results)
    return [
        ["Read against", *(titles[name] for name in known)],
        *(
            [row["label"], *(estimate_text(row["measures"].get(name), name) for name in known)]
            for row in references
        ),
    ]


def facts(results: Results, *, has_training_patients: bool = True) -> list[str]:
    """What an experiment's numbers are about, a sentence each.

    Args:
        results: of the experiment.
        has_training_patients: with how many patients the arms learned from; not where the same
            sentences stand for experiments over several numbers of them.
    """
    trained = _training_patients(results) if has_training_patients else ""
    patients = f"{results['num_patients']:,} test patients, {results['num_positives']:,} positive"
    left_out = results["num_patients_left_out"]
    samples = results["num_samples"]
    origin = results.get("data_origin")
    return [
        f"Model: {results['model']}.",
        f"Cohort: {results['cohort']}, {results['task']}; {trained}{patients}"
        + (f"; {left_out} that not every unit answered left out." if left_out else ".")
        + (f" Data: {origin}." if origin else ""),
        f"Prompt: {results['prompt']}, {results['format']} format; "
        + ("greedy answers; " if samples == 1 else f"the mean of {samples} sampled answers; ")
        + f"{reading_text(results.get('reading'))}.",
        f"R: {format_number(results['accuracy_weight'], 2)} R_cls + "
        f"{format_number(1 - results['accuracy_weight'], 2)} R_att for every arm, whatever it was "
        "trained on."
        # Results that were written before there was a choice have no score.
        + (" R_cls scores by 1 - 2 (p - y)^2." if results.get("score") == "brier" else ""),
        *([] if samples == 1 else [_of_answers(results)]),
        "Brackets: 95 % intervals over patients and seeds, by t with as many degrees of freedom as "
        f"the seeds leave ({results['num_resamples']:,} resamples of patients). One seed or two "
        "are too few for an interval over seeds: percentiles over patients only, for the policies "
        "that were trained. ECE before any recalibration.",
        "p: of one difference alone, by the same t; p by Holm: adjusted for all differences in "
        "their table.",
    ]


def _of_answers(results: Results) -> str:
    """Which answers stand behind what is said of names."""
    if results.get("names_of") == "every answer":
        return (
            "R, R_att and what else is said of names are of one answer: measured for each of the "
            f"{results['num_samples']} and averaged, as Stage 2 rewards them."
        )
    return (
        "R_att and what else is said of names are of each patient's first answer. R is missing: "
        "names of the other answers were not kept."
    )


def _training_patients(results: Results) -> str:
    num = finite_number(results.get("num_train_patients"))
    num_positives = finite_number(results.get("num_train_positives"))
    if num is None or num_positives is None:
        return ""
    return f"{num:,.0f} training patients, {num_positives:,.0f} positive; "


def other_cohort(results: Results) -> Results | None:
    """The part about `evaluate.other_cohort`; None where there is none, or no unit is finished."""
    found = as_object(results.get("other_cohort"))
    return found if found.get("arms") else None


def other_cohort_facts(elsewhere: Results) -> list[str]:
    """What the numbers on another cohort are about, a sentence each."""
    mapped, missing = elsewhere["num_mapped"], elsewhere["num_missing"]
    return [
        f"Another test cohort: {elsewhere['cohort']}, the same arms trained on "
        f"{elsewhere['trained_on']}; {elsewhere['num_patients']:,} test patients, "
        f"{elsewhere['num_positives']:,} positive.",
        f"Language models are shown its own features; models of the record get {mapped} of "
        f"{mapped + missing} features through a map. No R_att: no expert was trained on it.",
        *filter(None, [elsewhere.get("own_patients")]),
    ]


EFFORT_COLUMNS = ("Minutes", "Tokens sampled", "Clip by entropy")
"""What a unit took; the last is the share of trained tokens where the adaptive bound decided."""


def effort_cells(unit: Mapping[str, Any]) -> list[str]:
    """One unit's cells in the order of `EFFORT_COLUMNS`."""
    return [
        _minutes(unit),
        format_number(unit["tokens"]["sampled"], 0),
        format_percentage(unit["step_means"]["clip/adaptive_share"]),
    ]


def _minutes(row: Mapping[str, Any]) -> str:
    return format_number(row["seconds"] / 60, 1)


DIFFERENCE_COLUMNS = [
    "Difference",
    "Measure",
    "Value [95 %]",
    "Detectable",
    "p",
    "p by Holm",
    "Seeds",
    "n",
]
"""`Detectable`: smallest true difference that such a comparison finds with 80 % power (5 %), from
the standard error over patients and seeds and its t. `p by Holm`: adjusted for all rows."""


def difference_cells(results: Results) -> list[list[str]]:
    """The paired differences in the order of `DIFFERENCE_COLUMNS`."""
    titles = measure_headings(results)
    return [
        [
            f"{arm_label(row['arm'])} - {arm_label(row['minus'])}",
            titles[row["measure"]],
            estimate_text({**row, "value": row["difference"]}, row["measure"], is_signed=True),
            format_number(row["minimal_detectable"]),
            p_text(row.get("p")),
            p_text(row.get("p_holm")),
            f"{len(row['seeds'])}{_note_behind(row)}",
            str(row["n"]),
        ]
        for row in results["differences"]
    ]


def measure_headings(results: Results) -> dict[str, str]:
    """Headings of the measures, which say where they are of the mean of several answers."""
    return headings(int(finite_number(results.get("num_samples")) or 1))


def p_text(value: object) -> str:
    """A p-value with three decimals."""
    p = finite_number(value)
    return "< 0.001" if p is not None and p < 0.001 else format_number(p)


def _note_behind(row: Mapping[str, Any]) -> str:
    """`: too few for an interval over seeds ...`, behind the number of seeds; empty if enough."""
    note = row.get("seeds_note")
    return "" if note is None else f": {str(note).partition(': ')[2]}"


def unfinished_lines(results: Results) -> list[str]:
    """A sentence for each unit that is not finished and enters no number."""
    lines = []
    for unit in results["unfinished"]:
        planned = finite_number(unit["planned_steps"])
        steps = f"{unit['steps']} of {planned:.0f} steps" if planned else f"{unit['steps']} steps"
        at = unit["state"] if unit["stage"] is None else f"{unit['stage']} {unit['state']}, {steps}"
        lines.append(f"unfinished: {unit['label']}, seed {unit['seed']} ({at})")
    return lines


def seeds_text(arm: Mapping[str, Any]) -> str:
    """How many of an arm's seeds are finished."""
    done, planned = arm["num_seeds"], arm["num_planned_seeds"]
    return str(done) if done == planned else f"{done} of {planned}"


def value_text(found: Mapping[str, Any], measure: str, *, is_signed: bool = False) -> str:
    """A value without its interval."""
    value = finite_number(found.get("value"))
    if measure in SHARES:
        return format_percentage(value)
    if is_signed and value is not None:
        return f"{value:+.3f}"
    return format_number(value)


def estimate_text(found: object, measure: str, *, is_signed: bool = False) -> str:
    """A value with its interval: `0.712 [0.511, 0.893]`."""
    row = as_object(found)
    low, high = finite_number(row.get("low")), finite_number(row.get("high"))
    text = value_text(row, measure, is_signed=is_signed)
    if low is None or high is None:
        return text
    if measure in SHARES:
        return f"{text} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{text} [{low:+.3f}, {high:+.3f}]" if is_signed else f"{text} [{low:.3f}, {high:.3f}]"


def _is_measured(results: Results, name: str) -> bool:
    """Whether any arm has the measure."""
    return any(arm["measures"].get(name) is not None for arm in results["arms"])
