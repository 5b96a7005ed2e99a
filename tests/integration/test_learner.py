"""DeepSpeed for real, one rank in this process."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from actors.rollouts import PatternSpan
from ehr.errors import ModelError, TrainingError
from ehr.language.guided_format import PROBABILITY_REGEX
from tests.learner_fakes import LEARNER, tiny_model, token_groups
from tests.typed import known, untyped
from training.config.grpo import GrpoSection
from training.grpo.batch import RiskCredit, TrainedSequence, TrainingBatch
from training.learner.allowed_tokens import AllowedTokens
from training.learner.packing import TokenGroup, pack
from training.learner.policy_model import (
    adapter_bytes,
    adapter_weights,
    load_adapter,
    load_policy_model,
)

SECTION = LEARNER.model_copy(update={"gradient_clip": 0.05})
UNIFORM = -math.log(256)
"""About what the tiny model gives to every token."""
GRPO = GrpoSection(group_size=3, learning_rate=1e-2)


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory):
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["LOCAL_RANK"] = "0"
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("m"))


def model(path):
    return load_policy_model(path, SECTION, dtype="float32", seed=3)


def learner(path):
    from training.learner.learner import Learner

    return Learner(model(path), SECTION)


def trainer(path, section=GRPO, allowed_tokens=None):
    from training.grpo.updates import BatchTrainer

    return BatchTrainer(learner(path), section, 80, allowed_tokens or AllowedTokens(path))


class OneOfSixtyFour:
    """A pattern that leaves 64 of the 256 characters to each token, its own among them."""

    def of(self, token_ids, trained, patterns):
        if not patterns:
            return None
        words = torch.zeros(len(token_ids), 8, dtype=torch.int32)
        for place, token in enumerate(token_ids):
            words[place, [token // 32, (token // 32 + 1) % 8]] = -1
        for span in patterns:
            words[: span.start], words[span.stop :] = -1, -1
        return words[torch.tensor(trained)]


def row_loss(row, logprobs, total):
    return -(row.padded(logprobs) * row.mask).sum() / total


def train(learner, steps, budget=64):
    rows = pack(token_groups(3, 3), budget)
    total = sum(sum(row.lengths) for row in rows)
    for step in steps:
        for row in rows:
            learner.backward(row_loss(row, learner.logprobs(row), total))
        learner.step(1e-2 * step)
    return adapter_weights(learner.model)


def largest_difference(ours, theirs):
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def test_a_zero_2_step_of_several_micro_batches_is_a_step_of_plain_adam(path):
    ours = train(learner(path), [1])

    plain = model(path)
    adam = torch.optim.Adam(plain.parameters(), lr=1e-2)
    (row,) = pack(token_groups(3, 3), 4096)
    row_loss(row, plain(row)[0], sum(row.lengths)).backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), SECTION.gradient_clip)
    adam.step()

    assert largest_difference(ours, adapter_weights(plain)) < 1e-6


def test_a_restored_learner_goes_on_bit_by_bit(path, tmp_path):
    first = learner(path)
    train(first, [1, 2])
    first.save(tmp_path)
    expected = train(first, [3, 4])

    second = learner(path)
    second.load(tmp_path)

    assert largest_difference(train(second, [3, 4]), expected) == 0.0


def batch(advantages=(1.0, -1.0, 0.0), generator_logprob=UNIFORM, constrained=(), patterns=()):
    """Two groups of three; the tokens at `constrained` of every response were sampled under one."""
    groups = tuple(token_groups(2, 3))
    sequences = tuple(
        tuple(
            TrainedSequence(
                patient_id=group.patient_id,
                advantages=(advantage,) * sum(trained),
                salient=tuple(k % 2 == 0 for k in range(sum(trained))),
                generator_logprobs=(generator_logprob,) * sum(trained),
                constrained=tuple(k in constrained for k in range(sum(trained))),
                patterns=patterns,
            )
            for trained, advantage in zip(group.trained, advantages, strict=True)
        )
        for group in groups
    )
    return TrainingBatch(step=1, groups=groups, sequences=sequences, updates=((0,), (1,)))


def test_a_batch_moves_the_policy_towards_what_was_rewarded(path):
    training = trainer(path)
    before = training._learner.frozen_logprobs(pack(batch().groups[:1], 4096)[0])[0]

    metrics = training.train(batch())

    row = pack(batch().groups[:1], 4096)[0]
    after = training._learner.frozen_logprobs(row)[0]
    gain = row.padded(after - before).sum(1)
    assert gain[0] > gain[1]
    assert metrics["grad/norm"] > 0


EXACT = GRPO.model_copy(update={"credit": "exact_risk"})
OPENINGS = ("pH\n", "Age, pH\n", "Weight\n")


def risky_batch(numbers=("0.11", "0.52", "0.93"), is_exact=True):
    """Two groups of three answers, names and number; half a unit of Brier's score is one of A."""
    groups, sequences = [], []
    for label in (0, 1):
        texts = [f"{names}{n}\n" for names, n in zip(OPENINGS, numbers, strict=True)]
        groups.append(
            TokenGroup(
                patient_id=f"p{label}",
                prompt=tuple(map(ord, f"Patient {label}: the risk?\n")),
                responses=tuple(tuple(map(ord, text)) for text in texts),
                trained=tuple((True,) * len(text) for text in texts),
            )
        )
        risks = [1 - 2 * (n / 100 - label) ** 2 for n in range(100)]
        sequences.append(tuple(risky(label, text, risks, is_exact) for text in texts))
    return TrainingBatch(
        step=1, groups=tuple(groups), sequences=tuple(sequences), updates=((0, 1),)
    )


def risky(label, text, rewards, is_exact):
    """One answer of a `risky_batch`; nothing is learned from its names."""
    start = text.index("\n") + 1
    sampled = 2 * (rewards[round(100 * float(text[start:]))] - 0.5)
    return TrainedSequence(
        patient_id=f"p{label}",
        advantages=(0.0,) * start + (0.0 if is_exact else sampled,) * 5,
        salient=tuple(k < start - 1 for k in range(len(text))),
        generator_logprobs=(UNIFORM,) * start + (0.0, 0.0, *[-math.log(10)] * 2, 0.0),
        constrained=(False,) * start + (True,) * 5,
        patterns=(PatternSpan(start=start, stop=len(text), regex=PROBABILITY_REGEX),),
        risk=RiskCredit(start=start, rewards=tuple(rewards), scale=0.5) if is_exact else None,
    )


def test_the_number_that_was_sampled_changes_nothing_of_an_exact_step(path):
    found = {}
    for is_exact in (True, False):
        for numbers in (("0.11", "0.52", "0.93"), ("0.74", "0.00", "0.25")):
            training = trainer(path, EXACT)
            metrics = training.train(risky_batch(numbers, is_exact))
            found[is_exact, numbers] = adapter_weights(training._learner.model), metrics

    (one, first), (other, second), (sampled, third), (resampled, _) = found.values()
    assert largest_difference(one, other) < 1e-5
    assert first["grad/norm"] == pytest.approx(second["grad/norm"], rel=1e-4)
    assert first["reward/cls_expected"] == second["reward/cls_expected"]
    assert first["clip/risk_share"] == 0
    assert largest_difference(sampled, resampled) > 1e-3
    assert "reward/cls_expected" not in third
    assert "clip/risk_share" not in third


def test_exact_steps_teach_two_patients_their_risks(path):
    training = trainer(path, EXACT)
    base = untyped(training._learner.model.peft_model).get_base_model()
    base.get_output_embeddings().weight.data.mul_(20)  # else it can be sure of nothing

    expected = [training.train(risky_batch())["reward/cls_expected"] for _ in range(16)]

    # All numbers alike earn 1/3 on average; who tells the two apart earns 1, and .5 who does not.
    assert expected[0] < 0.4
    assert expected[-1] > 0.8


def test_the_branches_of_exact_risks_need_a_number_in_the_response(path):
    one = risky_batch()
    (first, *others), second = one.sequences
    risk = known(first.risk)
    broken = replace(first, risk=replace(risk, start=risk.start - 1))

    with pytest.raises(ModelError, match="check that it honours the pattern"):
        trainer(path, EXACT).train(replace(one, sequences=((broken, *others), second)))


def test_the_metrics_of_a_batch_are_complete_finite_and_json(path):
    metrics = trainer(path).train(batch())

    wanted = {
        "loss", "grad/norm", "entropy/salient_mean", "entropy/all_mean", "clip/low_share",
        "clip/high_share", "clip/adaptive_share", "clip/high_mean", "mismatch/k3",
        "mismatch/mean_abs", "mismatch/max_abs", "mismatch/measured_share", "constraint/gap_mean",
        "tis/mean_weight", "tis/capped_share", "time/old_logprob_s", "time/train_s",
        "tokens/learner",
    }  # fmt: skip
    assert wanted <= metrics.keys()
    json.dumps(metrics, allow_nan=False)
    assert metrics["mismatch/mean_abs"] < 0.5
    assert metrics["mismatch/k3"] >= 0
    assert metrics["mismatch/measured_share"] == 1
    assert metrics["constraint/gap_mean"] is None
    assert metrics["entropy/all_mean"] == pytest.approx(5.5, abs=0.1)
    assert 0.2 <= metrics["clip/high_mean"] <= 0.4


def test_constrained_tokens_weigh_one_and_are_no_part_of_the_mismatch(path):
    # The learner gives every token about 1/256; the generator claims e^-9, so the ratio is cut.
    some = batch(generator_logprob=-9.0, constrained=(0,))

    metrics = trainer(path).train(some)

    counts = [sum(trained) for group in some.groups for trained in group.trained]
    free = 1 - len(counts) / sum(counts)
    assert metrics["mismatch/measured_share"] == pytest.approx(free)
    assert metrics["mismatch/mean_abs"] == pytest.approx(9 - math.log(256), abs=0.5)
    assert metrics["constraint/gap_mean"] == pytest.approx(math.log(256) - 9, abs=0.5)
    assert metrics["tis/capped_share"] == pytest.approx(free)
    assert metrics["tis/mean_weight"] == pytest.approx((1 - free) + 2 * free)


def test_where_every_token_is_constrained_there_is_no_mismatch_to_report(path):
    metrics = trainer(path).train(batch(constrained=range(99)))

    assert metrics["mismatch/measured_share"] == 0
    assert metrics["mismatch/k3"] is metrics["mismatch/mean_abs"] is None
    assert metrics["mismatch/max_abs"] is None
    assert metrics["tis/mean_weight"] == 1


def test_tokens_of_a_pattern_are_judged_among_what_it_allowed(path):
    everything = (PatternSpan(start=0, stop=99, regex="any"),)
    some = batch(generator_logprob=-math.log(64), constrained=range(99), patterns=everything)

    metrics = trainer(path, allowed_tokens=OneOfSixtyFour()).train(some)

    # Learner and generator have the same alternatives, so what is left is a mismatch.
    assert metrics["mismatch/measured_share"] == 1
    assert metrics["constraint/gap_mean"] is None
    assert metrics["mismatch/mean_abs"] < 0.5
    assert metrics["entropy/all_mean"] == pytest.approx(math.log(64), abs=0.1)


def test_a_token_off_every_pattern_stays_out_of_the_mismatch(path):
    first = (PatternSpan(start=0, stop=1, regex="any"),)
    some = batch(generator_logprob=-math.log(64), constrained=range(99), patterns=first)

    metrics = trainer(path, allowed_tokens=OneOfSixtyFour()).train(some)

    counts = [sum(trained) for group in some.groups for trained in group.trained]
    assert metrics["mismatch/measured_share"] == pytest.approx(len(counts) / sum(counts))
    assert metrics["constraint/gap_mean"] == pytest.approx(math.log(256 / 64), abs=0.5)


def test_the_importance_weights_scale_the_gradient_and_null_turns_them_off(path):
    off = GRPO.model_copy(update={"importance_cap": None})

    twice = trainer(path).train(batch(generator_logprob=-9.0))
    once = trainer(path, off).train(batch(generator_logprob=-9.0))

    # Every weight is the cap, 2, and Adam forgets the gradient's scale: both see the same weights.
    assert twice["grad/norm"] == pytest.approx(2 * once["grad/norm"], rel=1e-3)
    assert "tis/mean_weight" not in once
    assert once["mismatch/k3"] == pytest.approx(twice["mismatch/k3"])


def test_a_generator_log_probability_that_is_not_finite_names_the_patient(path):
    with pytest.raises(TrainingError, match=r"learner and generator.*patient p0=inf"):
        trainer(path).train(batch(generator_logprob=-math.inf))


def test_the_first_update_has_ratio_one_so_that_nothing_is_clipped(path):
    one = replace(batch(constrained=range(99)), updates=((0, 1),))

    metrics = trainer(path).train(one)

    assert metrics["clip/low_share"] == metrics["clip/high_share"] == 0
    # Ratio and weights are 1: the loss is minus the mean advantage, which is 0 in every group.
    assert metrics["loss"] == pytest.approx(0.0, abs=1e-6)


def test_a_step_moves_by_the_learning_rate_of_its_schedule(path):
    section = GRPO.model_copy(update={"steps": 4, "schedule": "linear"})
    one = replace(batch(), updates=((0, 1),))

    moves = []
    for step in (1, 3):
        training = trainer(path, section)
        before = adapter_weights(training._learner.model)
        metrics = training.train(replace(one, step=step))
        moves.append(largest_difference(adapter_weights(training._learner.model), before))
        assert metrics["learning_rate"] == pytest.approx(1e-2 * (5 - step) / 4)

    # Adam's first step is as long as the learning rate.
    assert moves == pytest.approx([1e-2, 5e-3], rel=1e-3)


def test_dead_groups_leave_the_policy_where_it_is(path):
    training = trainer(path)
    before = adapter_weights(training._learner.model)

    training.train(batch(advantages=(0.0, 0.0, 0.0)))

    assert largest_difference(adapter_weights(training._learner.model), before) == 0.0


def test_a_loss_that_is_not_finite_names_the_patient(path):
    broken = batch(advantages=(math.nan, 0.0, 0.0))

    with pytest.raises(TrainingError, match=r"finite loss.*patient p0=nan"):
        trainer(path).train(broken)


def test_a_policy_that_is_not_finite_names_the_patient(path):
    training = trainer(path)
    for weight in training._learner.model.parameters():
        weight.data.fill_(math.inf)

    with pytest.raises(TrainingError, match=r"finite log-probability.*patient p0=nan"):
        training.train(batch())


def test_a_gradient_that_is_not_finite_names_the_patients_of_its_update(path):
    training = trainer(path)
    training._learner.model.adapter[0].register_hook(lambda gradient: gradient * math.nan)

    with pytest.raises(
        TrainingError, match=r"finite gradient.*norm (nan|inf).*of this update: \['p0'\]"
    ):
        training.train(batch())


def test_the_entropy_of_a_salient_token_is_that_of_the_logits_before_it(path):
    one = batch()
    dense = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    # With its first weights every entropy is about log 256, which would hide a slip by one.
    untyped(dense.get_output_embeddings()).weight.data.mul_(20)
    found, shifted = [], []
    training = trainer(path)
    base = untyped(training._learner.model.peft_model).get_base_model()
    base.get_output_embeddings().weight.data.mul_(20)
    for group in one.groups:
        for response, trained in zip(group.responses, group.trained, strict=True):
            logits = dense(torch.tensor([group.prompt + response])).logits[0]
            entropy = torch.distributions.Categorical(logits=logits).entropy()
            # In `batch`, every other trained token is salient.
            wanted = [i for i, is_trained in enumerate(trained) if is_trained][::2]
            at = len(group.prompt) + torch.tensor(wanted)
            found.append(float(entropy[at - 1].detach().mean()))
            shifted.append(float(entropy[at].detach().mean()))

    metrics = training.train(one)

    assert metrics["entropy/salient_mean"] == pytest.approx(fmean(found), abs=1e-4)
    assert abs(fmean(shifted) - fmean(found)) > 1e-3


def test_the_committed_bytes_are_the_fp32_masters_on_a_bf16_base(path):
    from training.learner.learner import Learner

    policy = load_policy_model(path, SECTION, dtype="bfloat16", seed=3)
    ours = Learner(policy, SECTION)
    train(ours, [1, 2])

    committed = load_policy_model(path, SECTION, dtype="bfloat16", seed=4)
    load_adapter(committed, adapter_bytes(policy))

    written = torch.cat([weight.detach().flatten() for weight in committed.parameters()])
    masters = ours._masters.detach()
    assert masters.dtype == torch.float32
    assert torch.equal(written, masters[: written.numel()])
    assert not torch.equal(written, written.bfloat16().float())  # more than bf16 could hold


def test_a_checkpoint_holds_adapter_moments_and_step_in_files_that_do_not_need_deepspeed(
    path, tmp_path
):
    ours = learner(path)
    train(ours, [1, 2])

    ours.save(tmp_path)

    saved = load_file(tmp_path / "optimizer.safetensors")
    num_weights = sum(weight.numel() for weight in ours.model.parameters())
    assert {name: value.numel() for name, value in saved.items()} == {
        "exp_avg": num_weights,
        "exp_avg_sq": num_weights,
        "step": 1,
    }
    assert saved["step"].item() == 2
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == adapter_bytes(ours.model)


def spawned(function, tmp_path, *arguments):
    """Run `tests.learner_ranks.FUNCTION` on two ranks of their own; they write into `out`."""
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-m", "tests.learner_ranks", function]
    rest = [str(tmp_path / "store"), str(tmp_path / "out"), *map(str, arguments)]
    root = Path(__file__).parents[2]
    ranks = [subprocess.Popen([*command, str(rank), *rest], cwd=root) for rank in (0, 1)]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    return tmp_path / "out"


@pytest.mark.slow
@pytest.mark.parametrize("is_exact", [False, True])
def test_two_ranks_take_the_step_of_one_and_report_the_same_metrics(path, tmp_path, is_exact):
    alone = trainer(path)
    expected = alone.train(risky_batch() if is_exact else batch())

    out = spawned("train_exact_batch" if is_exact else "train_batch", tmp_path, path)

    together = learner(path)
    together.load(out)
    ours = adapter_weights(alone._learner.model)
    assert largest_difference(adapter_weights(together.model), ours) < 1e-5
    found = json.loads((out / "metrics.json").read_text())
    names = [
        "loss", "grad/norm", "entropy/salient_mean", "clip/high_mean", "mismatch/k3",
        "tis/mean_weight", "mismatch/measured_share",
    ]  # fmt: skip
    for name in [*names, "reward/cls_expected"] if is_exact else names:
        assert found[name] == pytest.approx(expected[name], abs=1e-5)


@pytest.mark.slow
def test_zero_2_steps_of_two_ranks_are_adamw_with_an_all_reduce(path, tmp_path):
    out = spawned("zero_and_plain", tmp_path, path)

    zero, plain = load_file(out / "zero.safetensors"), load_file(out / "plain.safetensors")
    assert largest_difference(zero, plain) < 1e-6
    start = adapter_weights(model(path))
    assert largest_difference(plain, start) > 1e-2  # they went somewhere
