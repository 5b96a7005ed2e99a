"""The scripts in examples/, run as their readers do: from another folder."""

import json
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from math import log
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedTokenizerFast

from benchmarks.learner.random_model import write_random_model
from ehr.cohorts.cohort import save_cohort
from ehr.salience.table import salience_table, salient_sets
from ehr.tables import rows
from tests.expert_cohort import fit_in_process, tiny_cohort, tiny_section
from tests.integration.test_wheel import run, unreachable
from tests.run_folder_sample import write_sample_run
from tests.unit.services.test_conversion import CHATML, bare_tokenizer
from training.config.run import RunConfig
from training.run.folder import RunFolder

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def output(script: str, *arguments: str | Path, cwd: Path, python: str | Path = sys.executable):
    """What an example prints; of one that fails, its last line on standard error."""
    done = run(
        [python, EXAMPLES / script, *arguments],
        cwd,
        PYTHONPATH=str(ROOT),
        HF_HUB_OFFLINE="1",
        XDG_CACHE_HOME=str(cwd / "cache"),
    )
    return done.stdout if done.returncode == 0 else done.stderr.splitlines()[-1]


def opinions_of(printed: str) -> pd.DataFrame:
    rows = re.findall(r"^ *(\S+) +([01]) +(\d\.\d+) +(\S.*)$", printed, re.M)
    table = pd.DataFrame(rows, columns=["patient", "outcome", "risk", "salient"])
    return table.assign(outcome=table["outcome"].astype(int), risk=table["risk"].astype(float))


def test_the_made_up_cohorts_signal_is_salient(tmp_path: Path):
    printed = output("own_cohort.py", cwd=tmp_path)

    opinions = opinions_of(printed)
    assert printed.startswith("{'train': 76, 'val': 14, 'test': 30}\n")
    assert len(opinions) == 30
    first = opinions["salient"].str.split(", ").str[0]
    assert first.isin(["Lactate", "Creatinine"]).mean() > 0.7
    reached = float(re.findall(r"AUROC of the expert on 30 test patients: (\S+)", printed)[0])
    # Risks are printed with two digits: ties change the area a little.
    assert reached == pytest.approx(roc_auc_score(opinions["outcome"], opinions["risk"]), abs=0.02)
    assert reached > 0.85
    assert list(tmp_path.iterdir()) == []


def test_a_csv_of_ones_own_is_read(tmp_path: Path):
    own = tmp_path / "hospital.csv"
    write_csv(own)

    opinions = opinions_of(output("own_cohort.py", own, cwd=tmp_path))

    # Every sixth patient has no value of what decides: it cannot be salient there.
    number = opinions["patient"].astype(int)
    told = opinions.assign(known=number % 6 != 0, outcome_of_file=number % 2)
    assert len(told) == 24
    assert list(told["outcome"]) == list(told["outcome_of_file"])
    assert not told.loc[~told["known"], "salient"].str.contains("Ferritin").any()
    assert told.loc[told["known"], "salient"].str.startswith("Ferritin").mean() > 0.8


def test_two_outcomes_of_a_patient_are_refused(tmp_path: Path):
    own = tmp_path / "hospital.csv"
    write_csv(own)
    table = pd.read_csv(own, dtype={"patient_id": str})
    table.loc[0, "outcome"] = 1 - table.loc[0, "outcome"]
    table.to_csv(own, index=False)

    said = output("own_cohort.py", own, cwd=tmp_path)

    assert said == f"{own}: expected one outcome for all rows of a patient, found two"


def write_csv(path: Path) -> None:
    """Two visits of 96 patients in falling order; ferritin is high in every second patient."""
    rng = np.random.default_rng(3)
    visits = pd.DataFrame(
        [
            {
                "patient_id": f"{number:03d}",
                "date": f"2023-11-0{2 - visit}",
                "age": 40 + number % 40,
                "sex": "",
                "outcome": number % 2,
                "Ferritin": np.nan if number % 6 == 0 else rng.normal(900 * (number % 2), 200),
                **{f"Noise {letter}": rng.normal() for letter in "ABCDEFG"},
            }
            for number in range(96)
            for visit in range(2)
        ]
    )
    visits.to_csv(path, index=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up run; age and sex are always observed, as in a real one."""
    folder = write_sample_run(tmp_path_factory.mktemp("run"))
    path = folder / "expert" / "salience.parquet"
    table = pd.read_parquet(path)
    first = table.groupby(["patient_id", "feature"])["observed"].transform("first")
    table["observed"] = first | (table["feature"] == "Age & Sex")
    table.to_parquet(path, index=False)
    return folder


def test_a_run_is_read(finished: Path, tmp_path: Path):
    printed = output("read_run.py", finished, cwd=tmp_path)

    check_tables(printed, finished)
    # The environment of the tests has no matplotlib.
    assert "\nNo plot: matplotlib is not installed; pip install matplotlib==" in printed
    assert list(tmp_path.iterdir()) == []


def check_tables(printed: str, folder: Path) -> None:
    results = json.loads((folder / "evaluate" / "results.json").read_text())
    predictions = pd.read_parquet(folder / "evaluate" / "predictions.parquet")
    for row in results:
        own = rows(predictions, predictions["method"] == row["method"])
        readable = rows(own, ~own["parse_failed"])
        risks = [readable.loc[readable["label"] == each, "probability"].mean() for each in (0, 1)]
        wanted = [row["auroc"], row["auroc_low"], row["auroc_high"], *risks]
        wanted.append(own["parse_failed"].mean())
        (shown,) = re.findall(rf"^{row['method']} +(\d+) +(.+)$", printed, re.M)
        assert int(shown[0]) == row["n"]
        assert [float(each) for each in shown[1].split()] == pytest.approx(wanted, abs=6e-4)
    salience = pd.read_parquet(folder / "expert" / "salience.parquet")
    sets = salient_sets(rows(salience, salience["split"] == "test"), 5, "observed")
    share = pd.Series([name for names in sets.values() for name in names]).value_counts() / len(
        sets
    )
    shown = re.findall(r"^(\S.*?) {2,}(0\.\d{3})$", printed.split("is salient:\n")[1], re.M)
    assert [float(each) for _, each in shown] == pytest.approx(share.iloc[:5].tolist(), abs=6e-4)
    assert {name: float(each) for name, each in shown} == pytest.approx(
        {name: share[name] for name, _ in shown}, abs=6e-4
    )
    rewards = [
        json.loads(line)["reward/mean"]
        for line in (folder / "grpo" / "metrics.jsonl").read_text().splitlines()
    ]
    assert f"Stage 2: {rewards[0]:.3f} at step 1, {rewards[-1]:.3f} at the last" in printed


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Goes with the module."""
    with tempfile.TemporaryDirectory(prefix="eag-examples-") as folder:
        yield Path(folder).resolve()


@pytest.fixture(scope="module")
def with_extras(place: Path, finished: Path) -> Path:
    """Python of an environment with this one's packages and what the examples say to install."""
    python = place / "environment" / "bin" / "python"
    made = run([sys.executable, "-m", "venv", "--without-pip", place / "environment"], place)
    assert made.returncode == 0, made.stderr
    (packages,) = (place / "environment").glob("lib/python*/site-packages")
    ours = next(each for each in sys.path if each.endswith("site-packages"))
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    advice = output("reward_in_trl.py", finished, cwd=place)
    advice += "\n" + output("read_run.py", finished, cwd=place)
    commands = re.findall(r"\bpip install .+$", advice, re.M)
    assert len(commands) == 2, advice
    for command in commands:
        installed = run([python, "-m", *shlex.split(command)], place)
        if installed.returncode:
            refusal = unreachable(place)
            if refusal is not None:
                pytest.skip(f"no package index can be reached: {refusal}")
            pytest.fail(installed.stderr)
    return python


def test_a_run_is_drawn(finished: Path, with_extras: Path, tmp_path: Path):
    printed = output("read_run.py", finished, "--plot", "own.svg", cwd=tmp_path, python=with_extras)

    check_tables(printed, finished)
    assert printed.endswith("\nThe plot is in own.svg\n")
    drawn = (tmp_path / "own.svg").read_text()
    # Texts are outlines; the comments beside them say what they are.
    for text in ("AUROC [95 %]", "eag_rl", "concare", "reward/att_mean", "step"):
        assert f"<!-- {text} -->" in drawn


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """A run folder whose expert is trained, with a random model of bytes as its language model."""
    model, folder = place / "model", place / "run"
    write_random_model("tiny", model)
    PreTrainedTokenizerFast(
        tokenizer_object=bare_tokenizer(),
        eos_token="<|im_end|>",
        pad_token="</s>",
        chat_template=CHATML,
    ).save_pretrained(model)
    cohort, section = tiny_cohort(), tiny_section()
    config = RunConfig.model_validate(
        {"model": {"name": str(model)}, "expert": section.model_dump(mode="json")}
    )
    (folder / "expert").mkdir(parents=True)
    RunFolder(folder).write_config(config, None)
    save_cohort(cohort, folder / "cohort")
    table = salience_table(cohort, fit_in_process(cohort, section))
    table.to_parquet(folder / "expert" / "salience.parquet", index=False)
    return folder


def test_trl_trains_with_the_reward(trained: Path, with_extras: Path, place: Path):
    model = place / "model"

    printed = output(
        "reward_in_trl.py",
        *(trained, "--model", model, "--steps", "2", "--answers", "4", "--tokens", "16"),
        cwd=place,
        python=with_extras,
    )

    assert f"{trained / 'export' / 'patients.jsonl'}: 24 lines" in printed
    # A random model's answers cannot be read: the worst probability, .01, and no feature (Eq. 7).
    weight = json.loads((trained / "config.json").read_text())["config"]["reward"]
    total = weight["accuracy_weight"] * log(0.01)
    for step in (1, 2):
        assert (
            f"step {step}: reward {total:.4f}, prediction {log(0.01):.4f}, overlap 0.0000, "
            "format failures 100%"
        ) in printed
