import json
import shutil
from functools import partial
from statistics import fmean

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ehr.errors import TrainingError
from services.adapters import adapter_checksum
from tests.learner_fakes import LEARNER, tiny_model, token_groups
from tests.rank_functions import die_once, refuse
from tests.typed import known
from training.config.sft import SftSection
from training.learner.canary import Canary, CanaryRecord
from training.learner.worker_group import WorkerGroup
from training.sft.inputs import SftExample, SftInputs
from training.sft.train import train_sft


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("m"))


def examples(num=4, size=2):
    return tuple(
        SftExample(
            patient_id=group.patient_id,
            prompt_token_ids=group.prompt,
            responses=group.responses,
            model_written=group.trained,
        )
        for group in token_groups(num, size)
    )


def inputs(model_path, folder, **changes):
    fields = {
        "run_id": folder.name,
        "stage": "sft",
        "examples": examples(),
        "held_out": examples(7, 2)[4:],
        "model_path": model_path,
        "dtype": "float32",
        "served_merged": True,
        "learner": LEARNER,
        "sft": SftSection(epochs=2, batch_size=4, learning_rate=1e-2),
        "canary": Canary(prompt_token_ids=(1, 2, 3), response_token_ids=(4, 5, 6, 7)),
        "out_dir": folder / "sft",
        "storage": folder / "ray_train",
    }
    return SftInputs(**{**fields, **changes})


def lines(folder):
    text = (folder / "sft" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def adapter(folder):
    return load_file(folder / "sft" / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def finished(local_ray, model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    seen = []
    train_sft(inputs(model_path, folder), lambda done, total, text: seen.append((done, total)))
    return folder, seen


@pytest.mark.slow
def test_sft_lowers_the_loss_and_writes_an_adapter_and_a_line_a_step(finished):
    folder, _ = finished

    written = lines(folder)

    assert [line["step"] for line in written] == [1, 2, 3, 4]
    assert [line["epoch"] for line in written] == [1, 1, 2, 2]
    assert written[-1]["sft/loss"] < written[0]["sft/loss"]
    assert any(weight.any() for name, weight in adapter(folder).items() if "lora_B" in name)


@pytest.mark.slow
def test_the_loss_of_held_out_patients_is_measured_at_the_end_of_every_epoch(finished):
    folder, _ = finished

    measured = [line.get("sft/validation_loss") for line in lines(folder)]

    assert [value is not None for value in measured] == [False, True, False, True]


@pytest.mark.slow
def test_the_validation_loss_is_that_of_stock_peft_on_one_trajectory_at_a_time(
    finished, model_path
):
    folder, _ = finished
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder / "sft" / "adapter")

    expected = fmean(dense_loss(model, example) for example in examples(7, 2)[4:])

    assert lines(folder)[-1]["sft/validation_loss"] == pytest.approx(expected, abs=1e-4)


def dense_loss(model, example):
    """Mean over a patient's trajectories of the mean over their trained tokens, padding-free."""
    return fmean(
        -float(dense_logprobs(model, example.prompt_token_ids, response)[list(trained)].mean())
        for response, trained in zip(example.responses, example.model_written, strict=True)
    )


def dense_logprobs(model, prompt, response):
    """Log-probability of each response token, by the model's own forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1)[range(len(response)), list(response)]


@pytest.mark.slow
def test_the_canary_is_what_stock_peft_gives_the_adapter_and_transformers_the_base_model(
    finished, model_path
):
    stage = finished[0] / "sft"
    record = known(CanaryRecord.read(stage))
    prompt, response = record.canary.prompt_token_ids, record.canary.response_token_ids
    # float32 of two layers: what is left are sums in another order
    assert_close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    before = dense_logprobs(base, prompt, response)
    after = dense_logprobs(PeftModel.from_pretrained(base, stage / "adapter"), prompt, response)

    checksum = adapter_checksum((stage / "adapter" / "adapter_model.safetensors").read_bytes())

    assert list(record.learner) == [checksum]
    assert_close(torch.tensor(record.learner_before), before)
    assert_close(torch.tensor(record.learner[checksum]), after)
    # far above that tolerance: an adapter that is not applied would be seen
    assert float((after - before).abs().mean()) > 0.01


@pytest.mark.slow
def test_sft_tells_its_progress(finished):
    assert all(total == 4 for _, total in finished[1])


@pytest.mark.slow
def test_an_sft_that_was_stopped_after_an_epoch_goes_on_to_the_same_adapter(
    finished, local_ray, model_path, tmp_path
):
    reference, _ = finished
    shutil.copytree(reference / "sft", tmp_path / "sft")
    # As if it had been stopped during the second epoch.
    for path in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        (tmp_path / "sft" / path).unlink()
    newest = tmp_path / "sft" / "checkpoint" / "step_4"
    newest.rename(tmp_path / "gone")
    (tmp_path / "sft" / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines(tmp_path)[:3])
    )

    train_sft(inputs(model_path, tmp_path), lambda *_: None)

    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    for name, weight in adapter(reference).items():
        assert torch.equal(weight, adapter(tmp_path)[name])


@pytest.mark.slow
def test_an_sft_that_was_stopped_inside_an_epoch_repeats_only_what_no_checkpoint_has(
    finished, local_ray, model_path, tmp_path
):
    reference, _ = finished
    section = SftSection(epochs=2, batch_size=4, learning_rate=1e-2, checkpoint_steps=3)
    train_sft(inputs(model_path, tmp_path, sft=section), lambda *_: None)
    # As if it had been stopped in step 4, the last one of the second epoch: step 3 is kept.
    before = lines(tmp_path)
    shutil.rmtree(tmp_path / "sft" / "adapter")
    shutil.rmtree(tmp_path / "sft" / "checkpoint" / "step_4")
    (tmp_path / "sft" / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in before[:3])
    )

    train_sft(inputs(model_path, tmp_path, sft=section), lambda *_: None)

    assert lines(tmp_path)[:3] == before[:3]  # their seconds too: they were not repeated
    assert lines(tmp_path)[3]["sft/loss"] == before[3]["sft/loss"]
    assert lines(tmp_path)[3]["sft/validation_loss"] == before[3]["sft/validation_loss"]
    for name, weight in adapter(reference).items():
        assert torch.equal(weight, adapter(tmp_path)[name])


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(finished, local_ray, model_path, tmp_path):
    reference, _ = finished
    learner = LEARNER.model_copy(update={"num_workers": 2, "max_row_tokens": 128})

    train_sft(inputs(model_path, tmp_path, learner=learner), lambda *_: None)

    for ours, theirs in zip(lines(tmp_path), lines(reference), strict=True):
        assert ours["sft/loss"] == pytest.approx(theirs["sft/loss"], abs=1e-4)
        assert ours.get("sft/validation_loss") == pytest.approx(
            theirs.get("sft/validation_loss"), abs=1e-4
        )
    for name, weight in adapter(reference).items():
        torch.testing.assert_close(weight, adapter(tmp_path)[name], atol=1e-4, rtol=1e-3)


def test_nothing_to_train_on_is_said_before_ray_train_starts(model_path, tmp_path):
    with pytest.raises(TrainingError, match="keeps no trajectory"):
        train_sft(inputs(model_path, tmp_path, examples=()), lambda *_: None)


@pytest.mark.slow
def test_a_killed_rank_is_started_again(local_ray, tmp_path):
    # More than the one kill: beside other work Ray may take a starting group's place away as well.
    section = LEARNER.model_copy(update={"max_failures": 3})
    group = WorkerGroup(name="killed", section=section, storage=tmp_path / "ray_train")

    group.run(die_once, {"marker": tmp_path / "died"}, lambda: None)

    assert (tmp_path / "died").exists()


@pytest.mark.slow
def test_the_error_of_a_rank_arrives_as_it_was_raised(local_ray, tmp_path):
    section = LEARNER.model_copy(update={"max_failures": 0})
    group = WorkerGroup(name="refused", section=section, storage=tmp_path / "ray_train")

    with pytest.raises(TrainingError, match=r"^expected something else$"):
        group.run(refuse, {}, lambda: None)
