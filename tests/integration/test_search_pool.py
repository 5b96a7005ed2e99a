"""The search pool on a real local Ray, with scripted models."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray

from actors import pool
from actors.config import SearchSection
from actors.pool import run_search
from actors.rollout_actor import RolloutActor
from actors.rollouts import RolloutBatch, RolloutPlan, RolloutPrompt, RolloutSampler
from actors.search_actor import SearchSetup
from actors.search_totals import SearchProgress
from ehr.cohorts.cohort import Cohort
from ehr.config import RewardSection, Task
from ehr.errors import ResourceError, SearchError, ServiceError
from services.clients import GeneratorClient
from services.cluster import Cluster
from services.config import GeneratorSection, ModelSection
from services.generator import start_generator, stop_generator
from services.types import BASE_POLICY, Generator
from tests.fakes import fake_model
from tests.scripted import (
    CONTEXT,
    FRAME,
    CharTokenizer,
    DiesOnce,
    RefusesPatient,
    ScriptedGenerator,
    case_of,
    fixed_salience,
    unreadable_scores,
)
from tests.scripted_engine import load_scripted
from tests.typed import untyped

pytestmark = pytest.mark.usefixtures("local_ray")

PATIENTS = tuple(f"p/{i}" for i in range(6))  # a slash must not make a folder

SECTION = SearchSection(
    num_rollouts=4,
    max_depth=3,
    question_tokens=120,
    final_tokens=300,
    num_actors=2,
    cpus_per_actor=0.1,
    trees_in_flight=2,
)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return Cohort(
        name="hand-made",
        task=Task.MORTALITY,
        horizon_days=30,
        features=CONTEXT.features,
        cases={patient: case_of(patient) for patient in PATIENTS},
        labels={patient: i % 2 for i, patient in enumerate(PATIENTS)},
        splits={"train": PATIENTS, "val": (), "test": ()},
        has_dates=True,
    )


def _setup(
    make_generator: Callable[[], Generator] = ScriptedGenerator, **section: object
) -> SearchSetup:
    return SearchSetup(
        search=SECTION.model_copy(update=section),
        prompt=CONTEXT.section,
        reward=RewardSection(),
        max_model_len=100_000,
        frame=FRAME,
        least=BASE_POLICY,
        make_generator=make_generator,
        make_tokenizer=CharTokenizer,
        make_ask_salience=fixed_salience,
    )


def _ignore(progress: SearchProgress) -> None:
    pass


def _search(
    cohort: Cohort,
    setup: SearchSetup,
    out_dir: Path,
    patients: Sequence[str] = PATIENTS,
    on_progress: Callable[[SearchProgress], None] = _ignore,
) -> pd.DataFrame:
    run_search(cohort, patients, setup, out_dir, on_progress)
    return pd.read_parquet(out_dir / "trajectories.parquet")


def _ledger(out_dir: Path) -> dict[str, Any]:
    return json.loads((out_dir / "ledger.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(
    local_ray: Cluster, cohort: Cohort, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A search of all patients without any fault."""
    out_dir = tmp_path_factory.mktemp("undisturbed")
    _search(cohort, _setup(), out_dir)
    return out_dir


def test_the_search_folder_has_what_the_contract_says(undisturbed: Path) -> None:
    table = pd.read_parquet(undisturbed / "trajectories.parquet")
    ledger = _ledger(undisturbed)

    columns = {"patient_id", "rank", "text", "token_ids", "reward", "reward_cls", "reward_att"}
    assert columns | {"kept", "prompt_token_ids", "model_written"} <= set(table.columns)
    assert table["patient_id"].unique().tolist() == list(PATIENTS)
    assert [of_one["kept"].sum() for _, of_one in table.groupby("patient_id")] == [2] * 6
    assert {
        "patients", "requests", "prefill_tokens", "prefill_computed_tokens", "decode_tokens",
        "seconds", "invalid_scores",
    } <= set(ledger)  # fmt: skip
    assert (ledger["patients"], ledger["replayed_requests"]) == (6, 0)
    trees = sorted((undisturbed / "trees").glob("*.json"))
    assert [json.loads(path.read_text())["patient_id"] for path in trees] == list(PATIENTS)


@pytest.mark.slow
def test_one_actor_with_a_full_cache_finds_the_same_one_tree_at_a_time(
    cohort: Cohort, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_LOOK_S", 0.1)
    slow = partial(ScriptedGenerator, latency_s=0.02)
    setup = replace(_setup(slow, num_actors=1, trees_in_flight=6), cache_tokens=1)
    seen: list[SearchProgress] = []

    table = _search(cohort, setup, tmp_path, on_progress=seen.append)

    pd.testing.assert_frame_equal(table, pd.read_parquet(undisturbed / "trajectories.parquet"))
    same = {k: v for k, v in _ledger(undisturbed).items() if k != "seconds"}
    assert {k: v for k, v in _ledger(tmp_path).items() if k != "seconds"} == same
    assert max(each.num_trees for each in seen) == 1
    assert max(each.num_held for each in seen) == 5


def test_three_actors_another_order_and_any_latency_find_the_same(
    cohort: Cohort, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_LOOK_S", 0.1)
    slow = partial(ScriptedGenerator, latency_s=0.05)
    patients = [PATIENTS[number] for number in (3, 0, 5, 1, 4, 2)]
    seen: list[SearchProgress] = []

    table = _search(cohort, _setup(slow, num_actors=3), tmp_path, patients, seen.append)

    assert table["patient_id"].drop_duplicates().to_list() == patients
    in_order = table.sort_values("patient_id", kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(in_order, pd.read_parquet(undisturbed / "trajectories.parquet"))
    same = {k: v for k, v in _ledger(undisturbed).items() if k != "seconds"}
    assert {k: v for k, v in _ledger(tmp_path).items() if k != "seconds"} == same
    # What a person sees moves within a patient, never back, and ends with the ledger's sums.
    rollouts = [each.num_rollouts for each in seen]
    assert rollouts == sorted(rollouts)
    assert any(each.num_rollouts > 4 * each.num_finished for each in seen)
    assert (seen[0].num_rollouts, seen[-1].num_rollouts, seen[-1].num_finished) == (0, 24, 6)
    assert seen[-1].requests == same["requests"]
    assert seen[-1].best_reward == same["best_reward"]


def _late_tokenizer(births: Path, finished: Path) -> CharTokenizer:
    """A tokenizer that loads at once in two actors; in a third when three patients are finished."""
    births.mkdir(parents=True, exist_ok=True)
    (births / str(os.getpid())).touch()
    is_third = len(list(births.iterdir())) > 2
    for _ in range(600):
        if not is_third or len(list(finished.glob("*.json"))) >= 3:
            break
        time.sleep(0.05)
    return CharTokenizer()


def test_a_killed_actors_patients_are_searched_again_from_their_logs_while_others_work_on(
    cohort: Cohort, undisturbed: Path, tmp_path: Path
) -> None:
    dies = partial(DiesOnce, marker=tmp_path / "died", die_at=20)
    # Its replacement is up when the other actor has finished three patients, not before.
    late = partial(_late_tokenizer, tmp_path / "births", tmp_path / "search" / "patients")

    table = _search(cohort, replace(_setup(dies), make_tokenizer=late), tmp_path / "search")

    assert (tmp_path / "died").exists()
    pd.testing.assert_frame_equal(table, pd.read_parquet(undisturbed / "trajectories.parquet"))
    ledger, whole = _ledger(tmp_path / "search"), _ledger(undisturbed)
    assert ledger["replayed_requests"] > 0
    for counted in ("requests", "prefill_tokens", "decode_tokens", "patients"):
        assert ledger[counted] == whole[counted]


def test_a_resumed_search_skips_the_finished_and_continues_the_interrupted(
    cohort: Cohort, undisturbed: Path, tmp_path: Path
) -> None:
    refuses = partial(
        RefusesPatient,
        patient_id=PATIENTS[-1],
        refuse_at=5,
        finished=tmp_path / "patients",
    )
    with pytest.raises(ServiceError, match="does not answer") as failure:
        _search(cohort, _setup(refuses), tmp_path)
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "patients").glob("*.json")}
    num_logged = sum(
        len((tmp_path / "requests" / f"p%2F{number}.jsonl").read_text().splitlines())
        for number in range(6)
        if tmp_path / "patients" / f"p%2F{number}.json" not in finished
    )

    table = _search(cohort, _setup(num_actors=1), tmp_path)

    assert len(finished) >= 3
    assert f"{len(finished)} of 6 patients finished" in str(failure.value)
    assert f"({num_logged} answered requests of theirs are logged)" in str(failure.value)
    assert "the same command goes on from there" in str(failure.value)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert _ledger(tmp_path)["replayed_requests"] >= 5
    pd.testing.assert_frame_equal(table, pd.read_parquet(undisturbed / "trajectories.parquet"))


def test_a_label_free_search_needs_no_label_and_says_what_it_maximised(
    cohort: Cohort, undisturbed: Path, tmp_path: Path
) -> None:
    setup = _setup(value="label_free", balance=False, num_actors=1)

    table = _search(replace(cohort, labels={}), setup, tmp_path)

    assert set(table["value_kind"]) == {_ledger(tmp_path)["value"]} == {"label_free"}
    assert table[["correct", "reward_cls"]].isna().to_numpy().all()
    rewarded = pd.read_parquet(undisturbed / "trajectories.parquet")
    assert set(rewarded["value_kind"]) == {_ledger(undisturbed)["value"]} == {"reward"}
    assert rewarded[["correct", "reward_cls"]].notna().to_numpy().all()


def test_a_finished_search_starts_no_actor(cohort: Cohort, undisturbed: Path) -> None:
    before = (undisturbed / "trajectories.parquet").read_bytes()

    _search(cohort, _setup(partial(ScriptedGenerator, fail_at=0)), undisturbed)

    assert (undisturbed / "trajectories.parquet").read_bytes() == before


@pytest.fixture
def two_replicas(local_ray: Cluster, tmp_path: Path) -> Iterator[str]:
    """A run with two replicas of a scripted model on a real Serve."""
    section = GeneratorSection(num_replicas=2, cpus_per_replica=0.1, startup_timeout_s=120)
    start_generator("scripted", tmp_path, fake_model(tmp_path), ModelSection(), section,
                    load_scripted)  # fmt: skip
    yield "scripted"
    stop_generator("scripted")


@pytest.mark.slow
def test_a_replica_that_dies_in_the_middle_changes_nothing(
    cohort: Cohort,
    undisturbed: Path,
    two_replicas: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "_LOOK_S", 0.1)
    killed: list[int] = []

    def kill_once(progress: SearchProgress) -> None:
        if progress.requests >= 20 and not killed:
            named = untyped(ray.util.list_named_actors(all_namespaces=True))
            names = [each["name"] for each in named if f"{two_replicas}#" in each["name"]]
            ray.kill(ray.get_actor(names[0], namespace="serve"))
            killed.append(progress.num_finished)

    make_client = partial(GeneratorClient, two_replicas, 120.0)
    table = _search(cohort, _setup(make_client), tmp_path / "search", on_progress=kill_once)

    assert killed
    assert killed[0] < 6
    pd.testing.assert_frame_equal(table, pd.read_parquet(undisturbed / "trajectories.parquet"))
    same = {k: v for k, v in _ledger(undisturbed).items() if k != "seconds"}
    assert {k: v for k, v in _ledger(tmp_path / "search").items() if k != "seconds"} == same


@pytest.mark.slow
def test_too_many_unreadable_scores_fail_the_search(cohort: Cohort, tmp_path: Path) -> None:
    unreadable = partial(ScriptedGenerator, script=unreadable_scores)

    with pytest.raises(SearchError, match="unreadable usefulness scores"):
        _search(cohort, _setup(unreadable), tmp_path)


@pytest.mark.slow
def test_a_few_scores_cannot_fail_the_search(cohort: Cohort, tmp_path: Path) -> None:
    unreadable = partial(ScriptedGenerator, script=unreadable_scores)

    _search(cohort, _setup(unreadable, num_rollouts=1, max_depth=2), tmp_path)

    assert (_ledger(tmp_path)["scores"], _ledger(tmp_path)["invalid_scores"]) == (18, 18)


@pytest.mark.slow
def test_a_patient_that_kills_every_actor_is_named(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MAX_ATTEMPTS", 2)

    with pytest.raises(SearchError, match="died while they searched patient"):
        _search(
            cohort, _setup(partial(DiesOnce, die_at=3), num_actors=1, trees_in_flight=1), tmp_path
        )


@pytest.mark.slow
def test_actors_that_cannot_be_placed_are_an_error_with_the_fix(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "START_TIMEOUT_S", 2.0)

    with pytest.raises(ResourceError, match=r"lower search\.num_actors"):
        _search(cohort, _setup(cpus_per_actor=99.0), tmp_path)


def test_the_rollout_actor_samples_what_the_sampler_does() -> None:
    plan = RolloutPlan(
        format="guided",
        kind="question_decomposition",
        max_depth=3,
        max_new_tokens=500,
        temperature=1.0,
    )
    prompts = (RolloutPrompt(patient_id="p", token_ids=(65, 66)),)
    batch = RolloutBatch(prompts=prompts, group_size=3, least=BASE_POLICY, seed=5)
    actor = untyped(RolloutActor.options(num_cpus=0.1).remote(ScriptedGenerator, CharTokenizer))

    groups = ray.get(actor.sample_groups.remote(plan, batch), timeout=60)

    here = RolloutSampler(ScriptedGenerator(), CharTokenizer(), plan)
    assert groups == asyncio.run(here.sample_groups(batch))
    ray.kill(actor)
