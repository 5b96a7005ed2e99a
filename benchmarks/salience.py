"""Which salience method is worth imitating: agreement, deletion curves, overlap with the truth.

    python -m benchmarks.salience CONFIG... [section.key=value ...] [--methods NAME ...]

All methods are fitted on the half-samples of the configuration's expert section, in this process.
Agreement and curves are about training patients (out of fold), whose C_exp the reward uses;
`--split test` asks about others. The expert's AUROC is always that of the test patients.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import RESULTS, write_result
from ehr.cohorts.cohort import SPLITS, Cohort, cohort_hash
from ehr.cohorts.loaders import build_cohort
from ehr.config import ExpertSection
from ehr.errors import ConfigurationError, DataError
from ehr.expert.ensemble import ExpertEnsemble
from ehr.expert.opinions import Opinions, SalienceEnsemble
from ehr.expert.selection import fit_ensembles
from ehr.expert.view import ExpertInput, ExpertScaler
from ehr.metrics import auroc, bootstrap_interval
from ehr.salience.agreement import agreement
from ehr.salience.deletion import (
    Bench,
    Judge,
    bench,
    common_judges,
    own_judge,
)
from ehr.salience.deletion_json import deletion_curves, judged_patients
from ehr.salience.integrated_gradients import IntegratedGradients
from ehr.salience.methods import (
    CHEAP_METHODS,
    CONCARE_METHODS,
    cheap_plans,
    fit_cheap,
)
from ehr.salience.table import salience_table, salient_sets, true_overlap
from ehr.salience.vote import Vote, vote_weights
from training.config.loading import load_config

METHODS = (*CONCARE_METHODS, *CHEAP_METHODS)
MAX_PATIENTS = 500
"""Patients of the curves by default: a curve asks each judge some 200 times about each."""
JUDGES = ("own", "forest", "gaussian_process")

ROOT = Path(__file__).resolve().parent.parent

Inputs = Mapping[str, ExpertInput]


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="*", help="YAML files and section.key=value")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--split", choices=SPLITS, default="train", help="patients of the curves")
    parser.add_argument("--max-patients", type=int, default=MAX_PATIENTS, help="of the curves")
    parser.add_argument("--run-dir", type=Path, help="take ConCare from this finished run")
    parser.add_argument("--quick", action="store_true", help="only methods that fit in seconds")
    parser.add_argument("--json", type=Path, default=RESULTS / "salience.json")
    arguments = parser.parse_args()
    files = [Path(name) for name in arguments.config if "=" not in name]
    overrides = [name for name in arguments.config if "=" in name]
    try:
        config = load_config(files or [ROOT / "configs" / "demo.yaml"], overrides)
        cohort = build_cohort(config.cohort)
        methods = tuple(CHEAP_METHODS) if arguments.quick else tuple(arguments.methods)
        rows = study(
            cohort,
            config.expert,
            methods,
            arguments.split,
            arguments.run_dir,
            arguments.max_patients,
        )
    except (ConfigurationError, DataError) as error:
        parser.error(str(error))
    print(table(rows))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    write_result(arguments.json, rows, {})


def study(
    cohort: Cohort,
    section: ExpertSection,
    methods: Sequence[str],
    split: str,
    run_dir: Path | None = None,
    max_patients: int = MAX_PATIENTS,
) -> list[dict[str, Any]]:
    """One row a method, and one for the vote of all if there are several."""
    scaler = ExpertScaler.fit(cohort, cohort.splits["train"])
    inputs = {patient: scaler.transform(case) for patient, case in cohort.cases.items()}
    plans = cheap_plans(cohort.splits["train"], cohort.labels, section)
    chosen = judged_patients(cohort.splits[split], max_patients, section.seed)
    asked = [inputs[patient] for patient in chosen]
    labels = [cohort.labels[patient] for patient in chosen]

    def against(judge: Judge) -> Bench:
        return bench(judge, scaler, asked, seed=section.seed)

    common = {
        name: against(judge)
        for name, judge in common_judges(plans[0], inputs, cohort.labels).items()
    }
    ensembles = _fitted(cohort, section, methods, inputs, run_dir)
    own: dict[str, Bench] = {}
    rows: list[dict[str, Any]] = []
    for method, both in ensembles.items():
        started = time.perf_counter()
        # The two methods that read ConCare have one model, and so one judge.
        model = "concare" if method in CONCARE_METHODS else method
        if model not in own:
            own[model] = against(own_judge(both[0]))
        judges = {"own": own[model], **common}
        rows.append(
            {"cohort": cohort.name, "method": method, "members": len(both[0].plans), "split": split}
            | _risk(cohort, inputs, both[0], section.seed)
            | _agreement(cohort, both, method, section, split)
            | {"judged_patients": len(asked)}
            | {
                "judges": {
                    name: deletion_curves(judged, both[0].predict(asked).mean_scores(), labels)
                    for name, judged in judges.items()
                }
            }
            | {"seconds": time.perf_counter() - started}
        )
    return rows


def _fitted(
    cohort: Cohort,
    section: ExpertSection,
    methods: Sequence[str],
    inputs: Inputs,
    run_dir: Path | None,
) -> dict[str, list[SalienceEnsemble]]:
    """Two ensembles of each method, and of the vote if there are several."""
    scaler = ExpertScaler.fit(cohort, cohort.splits["train"])
    plans = cheap_plans(cohort.splits["train"], cohort.labels, section)
    ensembles: dict[str, list[SalienceEnsemble]] = {}
    if set(methods) & set(CONCARE_METHODS):
        torch.set_num_threads(1)  # as a worker of the expert stage
        concare = _load_concare(cohort, run_dir) if run_dir else fit_ensembles(cohort, section)
        ensembles["attention"] = list(concare)
        ensembles["integrated_gradients"] = [IntegratedGradients(each) for each in concare]
    for method in CHEAP_METHODS:
        if method in methods:
            ensembles[method] = fit_cheap(method, plans, inputs, cohort.labels, scaler)
    ensembles = {
        method: [_Remembering(each, inputs) for each in ensembles[method]] for method in methods
    }
    if len(methods) > 1:
        size, candidates = section.num_salient_features, section.candidates
        votes = [
            Vote(parts, vote_weights(parts, inputs, size, candidates))
            for parts in zip(*ensembles.values(), strict=True)
        ]
        ensembles["vote"] = [_Remembering(vote, inputs) for vote in votes]
    return ensembles


class _Remembering:
    """An ensemble that is asked for the scores of the cohort's patients once.

    Masked patients keep their names: only `risks`, which forgets everything, may be asked for them.
    """

    def __init__(self, ensemble: SalienceEnsemble, inputs: Inputs) -> None:
        self._ensemble = ensemble
        self._inputs = inputs
        self.scaler = ensemble.scaler
        self.plans = ensemble.plans
        self._position = {patient: index for index, patient in enumerate(inputs)}

    def risks(self, inputs: Sequence[ExpertInput]) -> np.ndarray:
        return self._ensemble.risks(inputs)

    def predict(self, inputs: Sequence[ExpertInput]) -> Opinions:
        rows = [self._position[entry.patient_id] for entry in inputs]
        return Opinions(
            patient_ids=tuple(entry.patient_id for entry in inputs),
            risk=self._all.risk[:, rows],
            scores=self._all.scores[:, rows],
            seen=self._all.seen[:, rows],
        )

    @cached_property
    def _all(self) -> Opinions:
        return self._ensemble.predict(list(self._inputs.values()))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures to look at first, one line a method."""
    width = 19
    head = f"{'':<21} {'':>3} {'test':>5} {'':>5} {'':>5} {'':>6} {'':>7} {'truth':>5} {'truth':>5}"
    for judge in JUDGES:
        head += " | " + f"{judge + ': deletion area against':^{2 * width + 2}}"
    names = f"{'method':<21} {'mem':>3} {'auroc':>5} {'kappa':>5} {'J':>5} {'J_perm':>6} "
    names += f"{'J_const':>7} {'J':>5} {'const':>5}"
    names += f" | {'random':^{width}}  {'constant':^{width}}" * len(JUDGES)
    lines = [head, names]
    for row in rows:
        truth = row["truth"] or {}
        line = f"{row['method']:<21} {row['members']:>3} {_text(row['auroc'])} "
        line += f"{_text(row['kappa'])} {_text(row['jaccard'])} "
        line += f"{_text(row['jaccard_permuted']):>6} {_text(row['jaccard_constant']):>7} "
        line += f"{_text(truth.get('jaccard'))} {_text(truth.get('jaccard_constant'))}"
        for judge in JUDGES:
            deletion = row["judges"][judge]["deletion"]
            line += f" | {_interval(deletion['vs_random'])}  {_interval(deletion['vs_constant'])}"
        lines.append(line)
    return "\n".join(lines)


def _text(value: float | None) -> str:
    return f"{'-':>5}" if value is None else f"{value:5.2f}"


def _interval(area: Mapping[str, float]) -> str:
    return f"{area['area']:5.2f} [{area['low']:5.2f},{area['high']:5.2f}]"


def _risk(
    cohort: Cohort, inputs: Inputs, ensemble: SalienceEnsemble, seed: int
) -> dict[str, float | None]:
    test = cohort.splits["test"]
    labels = [cohort.labels[patient] for patient in test]
    risks = ensemble.predict([inputs[patient] for patient in test]).mean_risk()
    low, high = bootstrap_interval(labels, risks, "auroc", seed=seed)
    return {"auroc": auroc(labels, risks), "auroc_low": low, "auroc_high": high}


def _agreement(
    cohort: Cohort,
    ensembles: Sequence[SalienceEnsemble],
    method: str,
    section: ExpertSection,
    split: str,
) -> dict[str, Any]:
    ids, size = cohort.splits[split], section.num_salient_features
    scores = salience_table(cohort, ensembles, method)
    sets = [
        salient_sets(scores, size, section.candidates, ensemble)
        for ensemble in range(len(ensembles))
    ]
    keys = ("kappa", "jaccard", "jaccard_permuted", "jaccard_constant")
    row: dict[str, Any] = dict.fromkeys(keys)
    if len(sets) == 2:
        first, second = ([chosen[patient] for patient in ids] for chosen in sets)
        measured = agreement(first, second, size)
        row = {key: getattr(measured, key) for key in keys}
    row["truth"] = None
    if cohort.truth is not None:
        reached, constant = true_overlap(cohort, sets[0], ids, size)
        row["truth"] = {"jaccard": reached, "jaccard_constant": constant}
    return row


def _load_concare(cohort: Cohort, run_dir: Path) -> list[ExpertEnsemble]:
    folder = run_dir / "expert" / "checkpoint"
    first = ExpertEnsemble.load(folder)
    if first.data_sha256 != cohort_hash(cohort):
        raise DataError(
            f"{folder} must hold an expert of this cohort, but it was trained on other data. Give "
            "the configuration of that run."
        )
    numbers = range(1, first.section.num_ensembles)
    return [first, *(ExpertEnsemble.load(folder, number) for number in numbers)]


if __name__ == "__main__":
    main()
