import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.typed import known
from training.objective.logprob import LogitShape, response_logprobs


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
    assert not known(entropy).requires_grad


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
    assert entropy is None or not known(entropy).requires_grad


def random_allowed(tokens, vocabulary, targets):
    """Which tokens may be chosen, as flags and as bits; the target always may."""
    generator = torch.Generator().manual_seed(1)
    flags = torch.rand(tokens, vocabulary, generator=generator) < 0.4
    flags[torch.arange(tokens), targets] = True
    padded = torch.nn.functional.pad(flags, (0, -vocabulary % 32)).long().unflatten(1, (-1, 32))
    words = (padded << torch.arange(32)).sum(-1)
    return flags, torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@pytest.mark.parametrize("vocabulary", [11, 32, 71])
@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_allowed_tokens_alone_share_the_probability(vocabulary, chunk, is_frozen):
    hidden, _, _ = inputs()
    generator = torch.Generator().manual_seed(2)
    head_weight = torch.randn(vocabulary, 5, generator=generator)
    targets = torch.randint(0, vocabulary, (7,), generator=generator)
    flags, allowed = random_allowed(7, vocabulary, targets)
    weights = torch.arange(-3.0, 4.0)
    scores = hidden @ head_weight.T
    every = scores - torch.where(flags, scores, -torch.inf).logsumexp(-1, keepdim=True)
    expected = every.gather(-1, targets[:, None])[:, 0]
    expected_entropy = -torch.where(flags, every.exp() * every, 0.0).sum(-1)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), hidden)

    logprob, entropy = response_logprobs(
        hidden,
        head_weight.requires_grad_(not is_frozen),
        targets,
        allowed=allowed,
        chunk=chunk,
        with_entropy=True,
    )
    (gradient,) = torch.autograd.grad((logprob * weights).sum(), hidden)

    torch.testing.assert_close(logprob, expected)
    torch.testing.assert_close(entropy, expected_entropy.detach())
    torch.testing.assert_close(gradient, expected_gradient)


def shapes():
    bias = torch.randn(11, generator=torch.Generator().manual_seed(3))
    return {
        "bias": LogitShape(bias=bias),
        "scale": LogitShape(scale=0.25),
        "softcap": LogitShape(softcap=1.5),
        "all": LogitShape(bias=bias, scale=0.5, softcap=2.0),
    }


@pytest.mark.parametrize("name", shapes())
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_bias_scale_and_soft_cap_are_in_values_entropy_and_gradient(name, is_masked, is_frozen):
    hidden, head_weight, targets = inputs()
    shape, weights = shapes()[name], torch.arange(-3.0, 4.0)
    flags, allowed = random_allowed(7, 11, targets)
    scores = hidden @ head_weight.detach().T
    if shape.bias is not None:
        scores = scores + shape.bias
    scores = scores * shape.scale
    if shape.softcap is not None:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    if is_masked:
        scores = scores.masked_fill(~flags, -1e9)
    every = scores.log_softmax(-1)
    expected = every.gather(-1, targets[:, None])[:, 0]
    expected_entropy = -(every.exp() * every).sum(-1).detach()
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), hidden)

    logprob, entropy = response_logprobs(
        hidden,
        head_weight.detach() if is_frozen else head_weight,
        targets,
        shape=shape,
        allowed=allowed if is_masked else None,
        chunk=3,
        with_entropy=True,
    )
    (gradient,) = torch.autograd.grad((logprob * weights).sum(), hidden)

    torch.testing.assert_close(logprob, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    torch.testing.assert_close(gradient, expected_gradient)


def test_a_head_in_float32_is_not_rounded_to_the_states_precision():
    hidden, head_weight, targets = inputs()
    low = hidden.detach().bfloat16().requires_grad_()
    expected, _ = response_logprobs(low.detach().float(), head_weight.detach(), targets)

    logprob, _ = response_logprobs(low, head_weight.detach(), targets)
    (gradient,) = torch.autograd.grad(logprob.sum(), low)

    assert torch.equal(logprob, expected)
    assert gradient.dtype == torch.bfloat16


def test_a_token_that_had_no_alternative_is_certain_and_teaches_nothing():
    hidden, head_weight, targets = inputs()
    words = (torch.ones(7, dtype=torch.int32) << targets.int())[:, None]

    logprob, entropy = response_logprobs(
        hidden, head_weight.detach(), targets, allowed=words, with_entropy=True
    )
    (gradient,) = torch.autograd.grad(logprob.sum(), hidden)

    assert logprob.tolist() == known(entropy).tolist() == [0.0] * 7
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_what_could_not_be_chosen_is_neither_pushed_up_nor_down():
    hidden, head_weight, targets = inputs()
    allowed = random_allowed(7, 11, targets)[1] & ~(1 << 4)
    kept = targets != 4

    logprob, _ = response_logprobs(hidden[kept], head_weight, targets[kept], allowed=allowed[kept])
    (gradient,) = torch.autograd.grad(-logprob.sum(), head_weight)
    free, _ = response_logprobs(hidden[kept], head_weight, targets[kept])
    (free_gradient,) = torch.autograd.grad(-free.sum(), head_weight)

    assert (gradient[4] == 0).all()
    assert (gradient != 0).any()
    assert (free_gradient[4] != 0).any()


def test_words_with_all_bits_change_nothing():
    hidden, head_weight, targets = inputs()
    every = torch.full((7, 1), -1, dtype=torch.int32)

    for head in (head_weight, head_weight.detach()):
        free = response_logprobs(hidden, head, targets, with_entropy=True)
        torch.testing.assert_close(
            response_logprobs(hidden, head, targets, allowed=every, with_entropy=True), free
        )


def test_entropy_is_left_out_unless_wanted():
    assert response_logprobs(*inputs())[1] is None


def test_no_targets_give_no_log_probabilities():
    logprob, entropy = response_logprobs(*inputs(0), with_entropy=True)

    assert logprob.shape == known(entropy).shape == (0,)


def test_low_precision_states_give_float32_log_probabilities():
    hidden, head_weight, targets = inputs()

    logprob, _ = response_logprobs(hidden.bfloat16(), head_weight.bfloat16(), targets)

    assert logprob.dtype == torch.float32
    assert (logprob < 0).all()


class LargestTensor(TorchDispatchMode):
    """Sees every tensor that an operation makes, in the backward pass too."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                self.numel = max(self.numel, each.numel())
        return made


@pytest.mark.parametrize("is_frozen", [True, False])
def test_no_tensor_of_tokens_times_vocabulary_ever_exists(is_frozen):
    tokens, vocabulary, width, chunk = 64, 200, 4, 8
    hidden = torch.randn(tokens, width, requires_grad=True)
    head_weight = torch.randn(vocabulary, width, requires_grad=not is_frozen)
    targets = torch.randint(0, vocabulary, (tokens,))

    with LargestTensor() as largest:
        logprob, _ = response_logprobs(hidden, head_weight, targets, chunk=chunk, with_entropy=True)
        logprob.sum().backward()

    assert largest.numel == chunk * vocabulary
