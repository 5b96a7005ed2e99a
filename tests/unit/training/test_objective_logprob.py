import pytest
import torch

from training.objective.logprob import response_logprobs


def inputs(tokens=7):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 5, generator=generator, requires_grad=True)
    head_weight = torch.randn(11, 5, generator=generator, requires_grad=True)
    targets = torch.randint(0, 11, (tokens,), generator=generator)
    return hidden, head_weight, targets


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_equal_the_full_computation_with_gradients(chunk):
    hidden, head_weight, targets = inputs()
    weights = torch.arange(1.0, 8.0)
    full = torch.log_softmax(hidden @ head_weight.T, -1)
    expected = full.gather(-1, targets[:, None])[:, 0]
    expected_gradients = torch.autograd.grad((expected * weights).sum(), (hidden, head_weight))
    expected_entropy = -(full.exp() * full).sum(-1)

    logprob, entropy = response_logprobs(
        hidden, head_weight, targets, chunk=chunk, with_entropy=True
    )
    gradients = torch.autograd.grad((logprob * weights).sum(), (hidden, head_weight))

    torch.testing.assert_close(logprob, expected)
    torch.testing.assert_close(gradients, expected_gradients)
    torch.testing.assert_close(entropy, expected_entropy)
    assert not entropy.requires_grad


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_a_frozen_head_gives_the_same_values_and_state_gradient(chunk, with_entropy):
    hidden, head_weight, targets = inputs()
    weights = torch.arange(-3.0, 4.0)
    expected, expected_entropy = response_logprobs(
        hidden, head_weight, targets, with_entropy=with_entropy
    )
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), hidden)

    logprob, entropy = response_logprobs(
        hidden, head_weight.detach(), targets, chunk=chunk, with_entropy=with_entropy
    )
    (gradient,) = torch.autograd.grad((logprob * weights).sum(), hidden)

    torch.testing.assert_close(logprob, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    torch.testing.assert_close(entropy, expected_entropy)
    assert entropy is None or not entropy.requires_grad


def test_entropy_is_left_out_unless_wanted():
    assert response_logprobs(*inputs())[1] is None


def test_no_targets_give_no_log_probabilities():
    logprob, entropy = response_logprobs(*inputs(0), with_entropy=True)

    assert logprob.shape == entropy.shape == (0,)


def test_low_precision_states_give_float32_log_probabilities():
    hidden, head_weight, targets = inputs()

    logprob, _ = response_logprobs(hidden.bfloat16(), head_weight.bfloat16(), targets)

    assert logprob.dtype == torch.float32
    assert (logprob < 0).all()
