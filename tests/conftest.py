"""Settings of every test session."""

from hypothesis import settings

from services.environment import prepare_process

# Before any test imports torch, which reads some of it then.
prepare_process()

# An example's first call may build or load something, and the machine may be busy: no test has a
# time of its own to keep.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
