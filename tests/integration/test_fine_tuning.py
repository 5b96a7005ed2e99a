"""The stage behind the `sft` row, from a cohort to an adapter, with a tiny model."""

import json

import pytest
from safetensors.torch import load_file

from actors.case_prompts import case_prompt
from actors.rollouts import RolloutPrompt
from ehr.cohorts.loaders import build_cohort
from ehr.config import CohortSection
from ehr.language.prompts import PromptContext
from services.models import LocalModel
from tests.learner_fakes import LEARNER, tiny_model
from tests.scripted import FRAME, CharTokenizer
from tests.typed import untyped
from training.config.run import RunConfig
from training.run.folder import RunFolder
from training.run.session import chosen_precision
from training.sft.stages import fine_tune_on_predictions


class CohortSession:
    """What the stage needs of a session: a cohort, a model of two layers, a Ray that is up."""

    def __init__(self, folder):
        self.config = RunConfig.model_validate(
            {
                "prompt": {"max_prompt_tokens": 3500, "worked_example": False},
                "model": {"max_model_len": 4096, "dtype": "float32"},
                "direct_sft": {"num_predictions": 40, "validation_share": 0.1, "batch_size": 10},
            }
        ).model_copy(update={"learner": LEARNER.model_copy(update={"max_row_tokens": 4096})})
        self.cohort = build_cohort(CohortSection(num_patients=120, num_visits=1))
        self.tokenizer = CharTokenizer()
        self.model = LocalModel(
            path=tiny_model(folder / "model"),
            name="tiny",
            source="",
            sha256="",
            description="",
            chat=FRAME,
        )
        self.precision = chosen_precision(self.config)
        self.folder = RunFolder(folder)
        self.train_storage = folder / "ray_train"
        self.asked = []

    def path(self, stage):
        return self.folder.path / stage

    def connect(self):
        """Ray is up."""

    def prompts(self, patients, kind):
        self.asked.append(kind)
        context = PromptContext.of(self.cohort, self.config.prompt)
        return tuple(
            RolloutPrompt(
                patient_id=patient,
                token_ids=case_prompt(
                    self.cohort.cases[patient], kind, context, self.tokenizer, FRAME
                ).token_ids,
            )
            for patient in patients
        )


@pytest.mark.slow
def test_the_sft_row_trains_an_adapter_on_probabilities_alone(local_ray, tmp_path):
    session = CohortSession(tmp_path)

    fine_tune_on_predictions(untyped(session), lambda *_: None)

    text = (tmp_path / "direct_sft" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    weights = load_file(tmp_path / "direct_sft" / "adapter" / "adapter_model.safetensors")
    assert set(session.asked) == {"vanilla"}
    assert [line["sft/trajectories"] for line in lines] == [10, 10, 10, 10]
    assert [line["sft/tokens"] for line in lines] == [50] * 4  # "0.99" and a line end
    assert lines[-1]["sft/loss"] < lines[0]["sft/loss"]
    assert lines[-1]["sft/validation_loss"] > 0
    assert any(weight.any() for name, weight in weights.items() if "lora_B" in name)
