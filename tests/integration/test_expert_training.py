"""The expert stage on a real local Ray with real Ray Train."""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from ehr.config import ExpertSection
from ehr.errors import DataError
from ehr.expert.ensemble import ExpertEnsemble, expert_opinion
from ehr.salience.methods import load_scorer
from ehr.salience.table import salient_features
from services.cluster import Cluster
from tests.expert_cohort import fit_in_process, tiny_case, tiny_cohort, tiny_section
from training.expert.scores import ask_on_workers
from training.expert.train import train_expert

COHORT = tiny_cohort()
WORKER_TITLE = "RayTrainWorker"

# The main job trains a small expert in the normal suite.
pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow]


@dataclasses.dataclass
class Trained:
    out_dir: Path
    storage: Path
    section: ExpertSection
    moves: list[tuple[float, float, str]]

    def again(self, section: ExpertSection | None = None) -> None:
        train_expert(COHORT, section or self.section, self.out_dir, self.storage, lambda *_: None)

    def metrics(self) -> dict:
        return json.loads((self.out_dir / "metrics.json").read_text())

    def members(self) -> dict[str, tuple[int, bytes]]:
        files = (self.out_dir / "checkpoint").glob("*.safetensors")
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def train(folder: Path, section: ExpertSection) -> Trained:
    moves: list[tuple[float, float, str]] = []
    train_expert(
        COHORT, section, folder / "expert", folder / "ray", lambda *move: moves.append(move)
    )
    return Trained(folder / "expert", folder / "ray", section, moves)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, local_ray: Cluster) -> Trained:
    section = tiny_section(members=4, num_workers=2, cpus_per_worker=0.5, whole_members=1)
    return train(tmp_path_factory.mktemp("expert"), section)


def test_two_workers_write_everything_the_stage_promises(trained: Trained) -> None:
    metrics = trained.metrics()

    assert {"auroc", "auprc", "auroc_low", "auroc_high", "kappa", "jaccard"} <= set(metrics["test"])
    assert {"kappa", "jaccard", "jaccard_permuted", "jaccard_constant"} <= set(metrics)
    assert set(metrics["baselines"]) == {"logistic_regression", "gradient_boosting"}
    assert metrics["out_of_fold"] is True
    assert [member["whole"] for member in metrics["members"]].count(True) == 1
    assert len(metrics["members"]) == 9
    assert metrics["truth"]["test"]["auroc_of_true_risk"] == 1
    files = sorted(path.name for path in (trained.out_dir / "checkpoint").iterdir())
    assert files == [
        "expert.json",
        *(f"member-0-{m}.safetensors" for m in range(5)),
        *(f"member-1-{m}.safetensors" for m in range(4)),
        *(f"salience-logistic_regression-{e}.safetensors" for e in (0, 1)),
        *(f"salience-tree_shap-{e}.safetensors" for e in (0, 1)),
        *(f"salience-vote-{e}.json" for e in (0, 1)),
    ]


def test_predictions_hold_every_method_for_every_test_patient(trained: Trained) -> None:
    table = pd.read_parquet(trained.out_dir / "predictions.parquet")

    assert list(table.columns) == ["method", "patient_id", "split", "label", "probability"]
    for _, rows in table.groupby("method"):
        assert tuple(rows["patient_id"]) == COHORT.splits["test"]
        assert [COHORT.labels[patient] for patient in rows["patient_id"]] == list(rows["label"])
    assert set(table["method"]) == {"concare", "logistic_regression", "gradient_boosting"}


def test_progress_ends_with_every_member(trained: Trained) -> None:
    assert trained.moves[-1][:2] == (9, 9)
    assert all(0 <= done <= total == 9 for done, total, _ in trained.moves)


def test_the_folder_answers_without_the_cohort(trained: Trained) -> None:
    ensemble = ExpertEnsemble.load(trained.out_dir / "checkpoint")
    table = pd.read_parquet(trained.out_dir / "salience.parquet")
    patient = COHORT.splits["test"][0]

    scorer = load_scorer(trained.out_dir / "checkpoint", ensemble)
    opinion = expert_opinion(ensemble, COHORT.cases[patient], scorer)

    assert opinion.salient == salient_features(table, patient, 2, "observed")
    assert 0 < expert_opinion(ensemble, tiny_case("new", seed=9)).risk < 1


def test_a_second_run_trains_nothing_and_changes_nothing(trained: Trained) -> None:
    before = trained.members()
    files = ("metrics.json", "salience.parquet", "predictions.parquet", "deletion.json")
    results = [(trained.out_dir / name).read_bytes() for name in files]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.expert.train.fit_on_workers", None)  # a call would fail
        trained.again()

    assert {name: data for name, (_, data) in trained.members().items()} == {
        name: data for name, (_, data) in before.items()
    }
    assert [(trained.out_dir / name).read_bytes() for name in files] == results


def test_tasks_score_patients_as_this_process_does(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = ExpertEnsemble.load(trained.out_dir / "checkpoint")
    inputs = [ensemble.scaler.transform(case) for case in COHORT.cases.values()]
    here = ensemble.predict(inputs)
    monkeypatch.setattr("training.expert.scores.SMALL", 0)
    monkeypatch.setattr("training.expert.scores._PATIENTS", 20)
    moves: list[tuple[float, float, str]] = []

    there = ask_on_workers(
        ensemble, inputs, cpus=0.5, at_a_time=2, on_progress=lambda *move: moves.append(move)
    )

    assert there.patient_ids == here.patient_ids
    np.testing.assert_allclose(there.risk, here.risk, atol=1e-6)
    np.testing.assert_allclose(there.scores, here.scores, atol=1e-6)
    np.testing.assert_array_equal(there.seen, here.seen)
    assert moves[-1][:2] == (len(inputs), len(inputs))


def test_a_killed_worker_costs_time_and_changes_no_result(tmp_path: Path) -> None:
    section = tiny_section(num_ensembles=1, members=4, epochs=60, patience=60)
    killed: list[int] = []

    def kill_once(done: float, total: float, text: str) -> None:
        if killed or not 0 < done < total:
            return
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # ended in between
                if WORKER_TITLE in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)

    train_expert(COHORT, section, tmp_path / "expert", tmp_path / "ray", kill_once)

    assert killed
    metrics = json.loads((tmp_path / "expert" / "metrics.json").read_text())
    calm = fit_in_process(COHORT, section)
    assert metrics["model_sha256"] == [ensemble.model_sha256 for ensemble in calm]


def test_a_cohort_that_cannot_be_halved_fails_before_any_worker_starts(tmp_path: Path) -> None:
    train_ids = COHORT.splits["train"]
    labels = COHORT.labels | {patient: int(patient == train_ids[0]) for patient in train_ids}
    cohort = dataclasses.replace(COHORT, labels=labels)

    with pytest.raises(DataError, match=r"at least 2 training patients of each class"):
        train_expert(cohort, tiny_section(), tmp_path / "expert", tmp_path / "ray", lambda *_: None)
