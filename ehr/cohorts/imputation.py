"""Missing values filled from the same patient's record."""

import numpy as np


def carry_forward(values: np.ndarray) -> np.ndarray:
    """Values [visits, features] with each NaN replaced by the column's last value before it."""
    visit = np.arange(values.shape[0])[:, None]
    # Row of the last recorded value up to each visit; row 0 where there is none, which is NaN then.
    source = np.maximum.accumulate(np.where(np.isnan(values), 0, visit), axis=0)
    return np.take_along_axis(values, source, axis=0)
