"""A policy that is evaluated is compared with the learner that trained it, before it answers."""

import json
from types import SimpleNamespace

import pytest

from ehr.errors import RunFolderError, TrainingError
from services.adapters import adapter_checksum
from services.precision import ParameterType, Precision
from services.types import BASE_POLICY, Scored
from training.config.run import RunConfig
from training.evaluation.asking import Asker
from training.learner.canary import Canary, CanaryRecord
from training.learner.checkpoints import ADAPTER_FILE

CANARY = Canary(prompt_token_ids=(1, 2), response_token_ids=(3, 4, 5))
BEFORE = (-2.0, -3.0, -1.0)
TRAINED = (-1.5, -3.2, -0.6)


class Client:
    """One replica that serves a share of the trained change."""

    def __init__(self, session):
        self.session = session

    async def score(self, prompt_token_ids, response_token_ids, least):
        assert (prompt_token_ids, response_token_ids) == (
            CANARY.prompt_token_ids,
            CANARY.response_token_ids,
        )
        assert least == self.session.published
        share = self.session.share
        logprobs = tuple(b + share * (t - b) for b, t in zip(BEFORE, TRAINED, strict=True))
        return [Scored(replica="r", version=least, logprobs=logprobs)]


class FakeSession:
    """What an asker needs to have a policy served."""

    def __init__(self, folder, share=1.0, dtype: ParameterType = "float32"):
        self.folder, self.share, self.said = folder, share, []
        self.config = RunConfig()
        self.precision = Precision(parameter_type=dtype, reason="")
        self.display = SimpleNamespace(say=self.said.append)
        self.published = None

    def path(self, stage):
        path = self.folder / stage
        path.mkdir(exist_ok=True)
        return path

    def adapter(self, stage):
        folder = self.path(stage) / "adapter"
        folder.mkdir(exist_ok=True)
        (folder / ADAPTER_FILE).write_bytes(stage.encode())
        return folder

    def lineage(self, stage):
        return stage

    def serve_adapter(self, version, adapter):
        assert (adapter / ADAPTER_FILE).exists()
        self.published = version
        return version

    def serve_base(self):
        return BASE_POLICY

    def make_generator(self):
        return lambda: Client(self)


def asker(session, row):
    return Asker(session, row)


def keep(session, stage, trained=TRAINED):
    session.adapter(stage)
    record = CanaryRecord(canary=CANARY, learner_before=BEFORE)
    checksum = adapter_checksum(stage.encode())
    record.trained("another", BEFORE).trained(checksum, trained).write(session.path(stage))


@pytest.mark.parametrize(("row", "stage"), [("stage1", "sft"), ("sft", "direct_sft")])
def test_what_is_served_is_compared_with_what_was_trained_and_kept(tmp_path, row, stage):
    session = FakeSession(tmp_path)
    keep(session, stage)

    version = asker(session, row).served_policy

    assert version == session.published
    found = json.loads((tmp_path / "evaluate" / "served.json").read_text())
    assert found[row]["sync/served_share"] == pytest.approx(1)
    assert found[row]["canary/mean_abs"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_policy_that_is_not_served_as_trained_stops_the_evaluation(tmp_path, share):
    session = FakeSession(tmp_path, share=share)
    keep(session, "grpo")

    with pytest.raises(TrainingError, match="policy of stage2"):
        _ = asker(session, "stage2").served_policy


def test_in_bfloat16_a_share_within_unmeasured_noise_is_not_judged(tmp_path):
    session = FakeSession(tmp_path, share=0.0, dtype="bfloat16")
    keep(session, "sft", trained=(-1.9, -3.1, -0.9))

    _ = asker(session, "stage1").served_policy

    found = json.loads((tmp_path / "evaluate" / "served.json").read_text())["stage1"]
    assert "sync/served_share" not in found
    assert found["canary/mean_abs"] == pytest.approx(0.1)


def test_every_row_keeps_its_own_line(tmp_path):
    session = FakeSession(tmp_path)
    for row, stage in (("stage1", "sft"), ("stage2", "grpo")):
        keep(session, stage)
        _ = asker(session, row).served_policy

    assert json.loads((tmp_path / "evaluate" / "served.json").read_text()).keys() == {
        "stage1",
        "stage2",
    }


def test_an_adapter_without_a_canary_is_served_and_the_reader_is_told(tmp_path):
    session = FakeSession(tmp_path)
    session.adapter("sft")

    version = asker(session, "stage1").served_policy

    assert version == session.published
    assert "not compared" in session.said[0]


def test_the_canary_of_another_adapter_is_not_taken_for_this_ones(tmp_path):
    session = FakeSession(tmp_path)
    keep(session, "sft")
    (session.path("sft") / "adapter" / ADAPTER_FILE).write_bytes(b"trained again")

    _ = asker(session, "stage1").served_policy

    assert "not compared" in session.said[0]


def test_the_base_model_needs_no_comparison(tmp_path):
    session = FakeSession(tmp_path)

    assert asker(session, "vanilla").served_policy == BASE_POLICY
    assert session.said == []


@pytest.mark.parametrize("text", ["{", '{"canary": {}}', '{"canary": 1}', "[]", "1"])
def test_a_damaged_canary_is_named(tmp_path, text):
    session = FakeSession(tmp_path)
    session.adapter("sft")
    (session.path("sft") / "canary.json").write_text(text)

    with pytest.raises(RunFolderError, match=r"canary\.json"):
        _ = asker(session, "stage1").served_policy
