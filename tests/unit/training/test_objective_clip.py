import pytest
import torch

from training.objective.clip import min_max_clip_high

ALL = torch.ones(3, dtype=torch.bool)


def test_bounds_are_attained_and_the_middle_is_linear():
    clip_high = min_max_clip_high(torch.tensor([1.0, 3.0, 1.5]), ALL, 0.2, 0.4)

    torch.testing.assert_close(clip_high, torch.tensor([0.2, 0.4, 0.25]))


def test_equal_entropies_give_the_smallest_clip():
    clip_high = min_max_clip_high(torch.tensor([1.0, 1.0 + 5e-7, 1.0]), ALL, 0.2, 0.4)

    assert clip_high.tolist() == torch.full((3,), 0.2).tolist()


def test_trajectories_without_salient_tokens_neither_count_nor_widen():
    valid = torch.tensor([True, False, True, True])

    clip_high = min_max_clip_high(torch.tensor([1.0, 9.0, 2.0, 1.5]), valid, 0.2, 0.4)

    torch.testing.assert_close(clip_high, torch.tensor([0.2, 0.2, 0.4, 0.3]))


def test_fewer_than_two_valid_trajectories_give_the_smallest_clip():
    entropy = torch.tensor([1.0, 2.0, 3.0])

    one = min_max_clip_high(entropy, torch.tensor([False, True, False]), 0.2, 0.4)
    none = min_max_clip_high(entropy, torch.zeros(3, dtype=torch.bool), 0.2, 0.4)

    torch.testing.assert_close(one, torch.full((3,), 0.2))
    torch.testing.assert_close(none, torch.full((3,), 0.2))


def test_equal_limits_are_a_fixed_clip():
    clip_high = min_max_clip_high(torch.tensor([1.0, 3.0, 1.5]), ALL, 0.28, 0.28)

    torch.testing.assert_close(clip_high, torch.full((3,), 0.28))


def test_nearly_equal_entropies_are_stretched_over_the_whole_range_unless_a_span_is_asked_for():
    entropy = torch.tensor([1.0, 1.02, 1.01])

    as_in_the_paper = min_max_clip_high(entropy, ALL, 0.2, 0.4)
    with_span = min_max_clip_high(entropy, ALL, 0.2, 0.4, least_span=0.1)
    wide = min_max_clip_high(10 * entropy, ALL, 0.2, 0.4, least_span=0.1)

    assert as_in_the_paper.tolist() == pytest.approx([0.2, 0.4, 0.3], abs=1e-5)
    assert with_span.tolist() == pytest.approx([0.2, 0.24, 0.22], abs=1e-5)
    assert wide.tolist() == pytest.approx([0.2, 0.4, 0.3], abs=1e-5)
