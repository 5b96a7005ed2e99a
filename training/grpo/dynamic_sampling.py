"""Which groups of a stream a step trains: DAPO's dynamic sampling, as a function of the stream.

A step wants so many live groups (rewards not all equal: DAPO, arXiv 2503.14476, Eq. 11). It takes
the first ones in the order in which they were asked for, whatever the order in which they finish.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class GroupFate(StrEnum):
    """What is known of a group that was asked for."""

    PENDING = "pending"
    """Still being sampled."""
    LIVE = "live"
    """Finished, and worth training."""
    USELESS = "useless"
    """Finished, and dead or sampled by a policy that is too old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a stream gives so far."""

    places: tuple[int, ...]
    """Of the groups that are chosen for certain, ascending."""
    is_final: bool
    """Nothing that is pending can change `places`."""
    most: int
    """Groups that the stream gives if everything pending turns out live."""


def choose_groups(stream: Sequence[tuple[str, GroupFate]], wanted: int) -> Choice:
    """The first `wanted` live groups of a stream, one a patient.

    Args:
        stream: patient and fate of every group, in the order in which they were asked for.
        wanted: groups of a rollout batch.
    """
    places: list[int] = []
    patients: set[str] = set()
    is_certain = True  # of every group so far
    for place, (patient, fate) in enumerate(stream):
        if len(places) == wanted:
            break
        if fate is GroupFate.USELESS or (is_certain and patient in patients):
            continue
        is_certain &= fate is GroupFate.LIVE
        patients.add(patient)
        if is_certain:
            places.append(place)
    return Choice(
        places=tuple(places),
        is_final=is_certain,
        most=min(len(patients), wanted),
    )
