import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError

from tests.typed import untyped
from training.run.ray_train import fit_and_watch


class Trainer:
    """Ends as it is told: the errors of Ray Train at moments that cannot be hit at will."""

    def __init__(self, endings):
        self._endings = endings

    def fit(self):
        ending = self._endings.pop(0)
        if ending is not None:
            raise ending


def run(*endings, max_failures=1):
    left = list(endings)
    fit_and_watch(lambda: untyped(Trainer(left)), lambda: None, max_failures=max_failures)
    return left


def test_a_group_that_lost_a_rank_at_its_start_is_started_again():
    assert run(ControllerError(ActorDiedError()), None) == []


def test_it_is_started_again_no_more_often_than_allowed():
    lost = ControllerError(ActorDiedError())

    with pytest.raises(ControllerError) as raised:
        run(lost, ControllerError(ActorDiedError()), None, max_failures=0)

    assert raised.value is lost


@pytest.mark.parametrize("error", [ControllerError(ValueError("no such file")), KeyError("mine")])
def test_other_errors_are_raised_at_once(error):
    with pytest.raises(type(error)):
        run(error, None)
