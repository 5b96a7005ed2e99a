from hypothesis import given
from hypothesis import strategies as st

from training.grpo.dynamic_sampling import GroupFate, choose_groups

LIVE, USELESS, PENDING = GroupFate.LIVE, GroupFate.USELESS, GroupFate.PENDING


def test_the_first_live_groups_are_taken_in_the_order_in_which_they_were_asked_for():
    stream = [("a", LIVE), ("b", USELESS), ("c", LIVE), ("d", LIVE)]

    choice = choose_groups(stream, 2)

    assert (choice.places, choice.is_final, choice.most) == ((0, 2), True, 2)


def test_a_group_behind_one_that_is_pending_is_not_taken_yet():
    stream = [("a", LIVE), ("b", PENDING), ("c", LIVE)]

    choice = choose_groups(stream, 2)

    assert (choice.places, choice.is_final, choice.most) == ((0,), False, 2)


def test_a_stream_that_cannot_give_enough_says_so_before_the_rest_is_finished():
    stream = [("a", USELESS), ("b", PENDING)]

    assert choose_groups(stream, 2).most == 1


def test_a_patient_is_taken_once_and_a_dead_group_does_not_count_as_taken():
    stream = [("a", LIVE), ("b", USELESS), ("a", LIVE), ("b", LIVE)]

    assert choose_groups(stream, 2).places == (0, 3)


ENDINGS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from([LIVE, USELESS]), st.booleans()),
    max_size=12,
)


@given(ENDINGS, st.integers(1, 5))
def test_what_is_certain_before_the_end_is_what_comes_out_at_the_end(stream, wanted):
    end = choose_groups([(patient, fate) for patient, fate, _ in stream], wanted)

    so_far = choose_groups(
        [(patient, fate if is_done else PENDING) for patient, fate, is_done in stream], wanted
    )

    assert end.is_final
    assert so_far.places == end.places[: len(so_far.places)]
    assert so_far.most >= len(end.places)
    assert not so_far.is_final or so_far.places == end.places
