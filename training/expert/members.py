"""Members of the expert in their checkpoint folder: stale ones, waiting ones, finished ones.

A member's file is final when it is written. Where an ensemble chooses one epoch for all its
members, each waits in a file of another name, with the parameters of every epoch, until the last
member is there. Losses are kept in both files, so an interrupted choice comes out the same.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from ehr.config import ExpertSection
from ehr.errors import DataError
from ehr.expert.member_file import (
    member_file,
    member_key,
    read_member,
    write_member,
)
from ehr.expert.plans import MemberPlan
from ehr.expert.selection import settle

logger = logging.getLogger(__name__)


def remove_stale(
    folder: Path, plans: Sequence[MemberPlan], section: ExpertSection, data_sha256: str
) -> list[MemberPlan]:
    """Plans without a trained member on disk; files trained from anything else are removed."""
    wanted = {name: plan for plan in plans for name in (member_file(plan), trace_file(plan))}
    missing = {member_file(plan): plan for plan in plans}
    for path in sorted(folder.glob("*.safetensors")):
        plan = wanted.get(path.name)
        try:
            if plan and read_member(path).key == member_key(plan, section, data_sha256):
                missing.pop(member_file(plan), None)
                continue
        except DataError as error:
            logger.warning("expert member will be trained again: %s", error)
        path.unlink()
    return list(missing.values())


def trace_file(plan: MemberPlan) -> str:
    """File name of a member whose epoch is not chosen yet."""
    return f"epochs-{plan.ensemble}-{plan.member}.safetensors"


def is_trained(folder: Path, plan: MemberPlan) -> bool:
    """Whether a member is on disk, finished or waiting for its ensemble's epoch."""
    return (folder / member_file(plan)).exists() or (folder / trace_file(plan)).exists()


def settle_members(folder: Path, plans: Sequence[MemberPlan]) -> None:
    """Writes the members that wait for their ensemble's epoch; interrupted, it may be repeated.

    The waiting files hold every epoch's parameters: some 30 MB each with TJH's 73 features.
    """
    for ensemble in sorted({plan.ensemble for plan in plans}):
        own = [plan for plan in plans if plan.ensemble == ensemble]
        traces = [folder / trace_file(plan) for plan in own]
        if any(path.exists() for path in traces):
            finished = [folder / member_file(plan) for plan in own]
            members = [
                read_member(path if path.exists() else trace)
                for path, trace in zip(finished, traces, strict=True)
            ]
            for path, member in zip(finished, settle(members), strict=True):
                write_member(path, member)
        for path in traces:
            path.unlink(missing_ok=True)
