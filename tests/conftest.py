from hypothesis import settings

# An example's first call may build or load something, and the machine may be busy: no test has a
# time of its own to keep.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
