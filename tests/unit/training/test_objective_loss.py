import math

import pytest
import torch

from ehr.errors import TrainingError
from tests.objective_cases import flat_policy_loss
from tests.typed import known
from training.objective.loss import LossDenominators


def reference_loss(logp, old_logp, advantage, mask, clip_low, clip_high, aggregation):
    """Eq. 12 and 15-18 with Python floats, token by token."""
    per_sequence, lengths = [], []
    for i, a in enumerate(advantage):
        terms = []
        for t, is_model_written in enumerate(mask[i]):
            if is_model_written:
                ratio = math.exp(logp[i][t] - old_logp[i][t])
                bounded = max(1 - clip_low, min(ratio, 1 + clip_high[i]))
                terms.append(min(ratio * a, bounded * a))
        per_sequence.append(terms)
        lengths.append(len(terms))
    if aggregation == "sequence_mean":
        return -sum(sum(terms) / max(len(terms), 1) for terms in per_sequence) / len(advantage)
    total = sum(sum(terms) for terms in per_sequence)
    return -total / (sum(lengths) if aggregation == "token_mean" else len(advantage))


def batch(seed=0, sequences=8, tokens=6):
    generator = torch.Generator().manual_seed(seed)
    old_logp = -torch.rand(sequences, tokens, generator=generator, dtype=torch.float64)
    noise = torch.randn(sequences, tokens, generator=generator, dtype=torch.float64)
    mask = torch.rand(sequences, tokens, generator=generator) > 0.3
    mask[0] = False  # a trajectory in which the caller wrote everything
    return {
        "logp": old_logp + 0.4 * noise,
        "old_logp": old_logp,
        "advantage": torch.randn(sequences, generator=generator, dtype=torch.float64),
        "mask": mask,
        "clip_low": 0.2,
        "clip_high": 0.2 + 0.2 * torch.rand(sequences, generator=generator, dtype=torch.float64),
    }


def whole(inputs):
    return LossDenominators(
        num_sequences=len(inputs["advantage"]), num_tokens=int(inputs["mask"].sum())
    )


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "sum"])
def test_one_advantage_for_all_tokens_may_be_written_for_each(aggregation):
    inputs = batch()
    spread = inputs["advantage"][:, None].expand(-1, 6)

    one = flat_policy_loss(**inputs, aggregation=aggregation, denominators=whole(inputs))
    each = flat_policy_loss(
        **inputs | {"advantage": spread}, aggregation=aggregation, denominators=whole(inputs)
    )

    assert each == one


def test_a_tokens_own_advantage_moves_that_token():
    inputs = batch()
    inputs["logp"] = inputs["old_logp"].clone().requires_grad_()
    advantage = inputs["advantage"][:, None].repeat(1, 6)
    advantage[:, 3:] *= -2
    counts = whole(inputs)

    loss = flat_policy_loss(
        **inputs | {"advantage": advantage}, aggregation="token_mean", denominators=counts
    ).loss
    loss.backward()

    # At ratio 1 the surrogate's slope is the advantage.
    torch.testing.assert_close(inputs["logp"].grad, -advantage * inputs["mask"] / counts.num_tokens)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "sum"])
def test_loss_equals_the_reference(aggregation):
    inputs = batch()

    parts = flat_policy_loss(**inputs, aggregation=aggregation, denominators=whole(inputs))

    plain = {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    assert parts.loss.item() == pytest.approx(
        reference_loss(**plain, aggregation=aggregation), rel=1e-12
    )


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "sum"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_micro_batches_add_up_to_the_whole(aggregation, size):
    inputs = batch()
    inputs["logp"].requires_grad_()
    denominators = whole(inputs)
    full = flat_policy_loss(**inputs, aggregation=aggregation, denominators=denominators).loss
    (full_gradient,) = torch.autograd.grad(full, inputs["logp"])

    losses = [
        flat_policy_loss(
            **{k: v[i : i + size] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()},
            aggregation=aggregation,
            denominators=denominators,
        ).loss
        for i in range(0, 8, size)
    ]
    total = torch.stack(losses).sum()
    (gradient,) = torch.autograd.grad(total, inputs["logp"])

    torch.testing.assert_close(total, full)
    torch.testing.assert_close(gradient, full_gradient)


def test_gradient_at_ratio_one_is_reinforce_for_any_clip():
    inputs = batch()
    logp = inputs["old_logp"].clone().requires_grad_()
    inputs |= {"logp": logp, "clip_high": torch.full_like(inputs["advantage"], 0.3)}

    loss = flat_policy_loss(**inputs, aggregation="sequence_mean", denominators=whole(inputs)).loss
    (gradient,) = torch.autograd.grad(loss, logp)

    lengths = inputs["mask"].sum(1, keepdim=True).clamp(min=1)
    expected = -inputs["advantage"][:, None] * inputs["mask"] / lengths / len(logp)
    torch.testing.assert_close(gradient, expected)


def one_token(ratio, advantage, clip_high=0.3, clip_high_min=0.2):
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    parts = flat_policy_loss(
        logp,
        torch.zeros(1, 1, dtype=torch.float64),
        torch.tensor([advantage], dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.bool),
        0.2,
        torch.tensor([clip_high], dtype=torch.float64),
        "sequence_mean",
        LossDenominators(num_sequences=1, num_tokens=1),
        clip_high_min=clip_high_min,
    )
    parts.loss.backward()
    return parts, known(logp.grad).item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "low", "high", "adaptive", "has_gradient"),
    [
        (1.4, 1.0, 0, 1, 1, False),  # above both bounds
        (1.25, 1.0, 0, 0, 1, True),  # between them: the adaptive bound lets it through
        (1.1, 1.0, 0, 0, 0, True),
        (0.7, 1.0, 0, 0, 0, True),  # a good trajectory may recover
        (0.7, -1.0, 1, 0, 0, False),
        (1.4, -1.0, 0, 0, 0, True),  # a bad trajectory may be pushed down
    ],
)
def test_clip_statistics_and_gradients(ratio, advantage, low, high, adaptive, has_gradient):
    parts, gradient = one_token(ratio, advantage)

    assert (parts.num_clipped_low, parts.num_clipped_high, parts.num_adaptive) == (
        low,
        high,
        adaptive,
    )
    assert (gradient != 0) == has_gradient


def test_a_fixed_clip_decides_nothing_adaptively():
    parts, _ = one_token(1.4, 1.0, clip_high=0.2)

    assert (parts.num_clipped_high, parts.num_adaptive) == (1, 0)


def test_what_stands_outside_the_mask_is_ignored():
    inputs = batch()
    clean = flat_policy_loss(**inputs, aggregation="token_mean", denominators=whole(inputs))
    inputs["logp"] = torch.where(inputs["mask"], inputs["logp"], math.nan).requires_grad_()

    dirty = flat_policy_loss(**inputs, aggregation="token_mean", denominators=whole(inputs))
    dirty.loss.backward()

    assert dirty.loss.item() == clean.loss.item()
    gradient = known(inputs["logp"].grad)
    assert gradient[inputs["mask"]].isfinite().all()
    assert (gradient[~inputs["mask"]] == 0).all()


def test_all_dead_groups_give_zero_loss_and_gradient():
    inputs = batch()
    inputs |= {"advantage": torch.zeros(8, dtype=torch.float64)}
    inputs["logp"].requires_grad_()

    loss = flat_policy_loss(**inputs, aggregation="sequence_mean", denominators=whole(inputs)).loss
    loss.backward()

    assert loss.item() == 0
    assert (inputs["logp"].grad == 0).all()


def test_a_huge_ratio_stays_finite():
    parts, _ = one_token(1e30, -1.0)

    assert parts.loss.isfinite()


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_log_probability_that_is_not_finite_stops_with_the_sample(bad):
    inputs = batch()
    inputs["mask"][3, 2] = True
    inputs["logp"][3, 2] = math.nan if math.isnan(bad) else bad
    inputs["old_logp"][3, 2] = bad

    with pytest.raises(TrainingError, match="p1/3=nan"):
        flat_policy_loss(
            **inputs,
            aggregation="sequence_mean",
            denominators=whole(inputs),
            sample_ids=[f"p1/{i}" for i in range(8)],
        )


def test_a_token_that_became_impossible_stops_with_the_sample_instead_of_hiding_behind_a_bound():
    inputs = batch()
    inputs["mask"][3, 2] = True
    inputs["logp"][3, 2] = -math.inf

    with pytest.raises(TrainingError, match=r"finite log-ratio.*p1/3=-inf"):
        flat_policy_loss(
            **inputs,
            aggregation="sequence_mean",
            denominators=whole(inputs),
            sample_ids=[f"p1/{i}" for i in range(8)],
        )


def test_an_importance_weight_multiplies_a_tokens_share_and_gets_no_gradient():
    inputs = batch()
    weight = torch.full_like(inputs["logp"], 1.5, requires_grad=True)
    inputs["logp"].requires_grad_()

    plain = flat_policy_loss(**inputs, aggregation="token_mean", denominators=whole(inputs)).loss
    weighted = flat_policy_loss(
        **inputs,
        aggregation="token_mean",
        denominators=whole(inputs),
        importance_weight=weight,
    ).loss
    weighted.backward()

    torch.testing.assert_close(weighted, 1.5 * plain)
    assert weight.grad is None
