"""Which epoch a member of the expert keeps, and what that choice has seen.

With the validation split each member keeps its own best epoch. A split as small as TJH's (21
patients) cannot tell neighbouring epochs apart. Members come in pairs on complementary halves, so
each one's loss on the other half of the training patients is there for nothing: the epoch with the
lowest mean of these losses over an ensemble's members is kept by all of them. No member has been
trained on a patient that judged it. What the choice leaks is one integer an ensemble, to which all
training patients have contributed: a patient's out-of-fold opinion comes from parameters its label
has not moved, taken at an epoch to which its loss is one of as many terms as there are training
patients. Test patients are not involved, and neither are validation patients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ehr.cohorts.cohort import Cohort, cohort_hash
from ehr.config import ExpertSection
from ehr.expert.ensemble import ExpertEnsemble
from ehr.expert.member import (
    Member,
    MemberState,
    fit_member,
    settled,
    trace_member,
)
from ehr.expert.member_file import member_key
from ehr.expert.plans import (
    MemberPlan,
    all_patients,
    halves,
    whole_plans,
)
from ehr.expert.view import ExpertInput, ExpertScaler

LEAST_VALIDATION_PATIENTS = 50
"""Of the rarer class, for the validation split to choose an epoch: a mean over m patients has a
standard error of 1 / sqrt(m) of their spread, 14 % here and 32 % with TJH's ten deaths."""

Rule = Literal["validation", "cross_validation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The rule that chooses epochs, and why."""

    rule: Rule
    asked: str
    """`expert.selection` as it was set."""
    reason: str
    num_validation_patients: int
    num_validation_positives: int


def choose_rule(
    section: ExpertSection, validation_ids: Sequence[str], labels: Mapping[str, int]
) -> Selection:
    """The rule that `expert.selection` means for this cohort.

    Args:
        section: the expert section.
        validation_ids: patients of the validation split.
        labels: holds theirs.
    """
    num_positives = sum(labels[patient] for patient in validation_ids)
    rarer = min(num_positives, len(validation_ids) - num_positives)
    rule: Rule
    if section.members == 1:
        rule, reason = "validation", "a single member has no other half"
    elif section.selection != "auto":
        rule, reason = section.selection, "as set"
    elif rarer < LEAST_VALIDATION_PATIENTS:
        rule = "cross_validation"
        reason = f"validation has {rarer} patients of the rarer class, fewer than "
        reason += f"{LEAST_VALIDATION_PATIENTS}"
    else:
        rule = "validation"
        reason = f"validation has {rarer} patients of the rarer class, at least "
        reason += f"{LEAST_VALIDATION_PATIENTS}"
    return Selection(
        rule=rule,
        asked=section.selection,
        reason=reason,
        num_validation_patients=len(validation_ids),
        num_validation_positives=num_positives,
    )


def held_out_ids(
    plan: MemberPlan, training_ids: Sequence[str], validation_ids: Sequence[str], rule: Rule
) -> tuple[str, ...]:
    """Patients whose loss judges a member: the validation split, or the other half.

    A whole member has no other half. Its loss on the validation split is recorded, and chooses its
    epoch by the rule `validation`; by `cross_validation` it takes the epoch of the half-samples.
    """
    if rule == "validation" or plan.whole:
        return tuple(validation_ids)
    return tuple(sorted(set(training_ids) - set(plan.train_ids)))


def train_member(
    plan: MemberPlan,
    inputs: Mapping[str, ExpertInput],
    labels: Mapping[str, int],
    held_out: Sequence[str],
    section: ExpertSection,
    **options: object,
) -> MemberState:
    """Trains a plan by the rule that `section.selection` names, which is not `auto` any more.

    Args:
        plan: whom to train on, and the seed.
        inputs: holds the patients of the plan and those held out.
        labels: holds theirs.
        held_out: of `held_out_ids`.
        section: the expert section.
        options: `on_epoch` and `device` of `fit_member`.

    Returns:
        A finished member, or one that `settle` finishes.
    """
    ids = [*plan.train_ids, *held_out]
    train = trace_member if section.selection == "cross_validation" else fit_member
    return train(
        [inputs[patient] for patient in ids],
        [labels[patient] for patient in ids],
        range(len(plan.train_ids)),
        range(len(plan.train_ids), len(ids)),
        section,
        plan.seed,
        **options,  # pyright: ignore[reportArgumentType]
    )


def common_epoch(losses: Sequence[Sequence[float]]) -> int:
    """The epoch (from 1) with the lowest mean loss over members; the first of equals.

    Args:
        losses: of each member, after each epoch; all equally many.
    """
    return 1 + int(np.mean(losses, axis=0).argmin())


def settle(members: Sequence[Member]) -> list[Member]:
    """An ensemble's members at the one epoch they choose together.

    Members that are settled already have kept their losses, so that a choice that was interrupted
    comes out the same.
    """
    judges = [member for member in members if not member.plan.whole]
    epoch = common_epoch([member.state.losses for member in judges])
    return [
        member if member.state.best_epoch else replace(member, state=settled(member.state, epoch))
        for member in members
    ]


def assembled(
    members: Sequence[Member], scaler: ExpertScaler, section: ExpertSection, data_sha256: str
) -> ExpertEnsemble:
    """The ensemble of these members, half-sample and whole ones in any order."""
    return ExpertEnsemble(
        [member for member in members if not member.plan.whole],
        scaler,
        section,
        data_sha256,
        whole=[member for member in members if member.plan.whole],
    )


def fit_ensembles(cohort: Cohort, section: ExpertSection) -> list[ExpertEnsemble]:
    """The ensembles that the expert stage trains, in this process."""
    scaler = ExpertScaler.fit(cohort, cohort.splits["train"])
    inputs = {patient: scaler.transform(case) for patient, case in cohort.cases.items()}
    rule = choose_rule(section, cohort.splits["val"], cohort.labels).rule
    section = section.model_copy(update={"selection": rule})
    data_sha256 = cohort_hash(cohort)
    plans = halves(cohort.splits["train"], cohort.labels, section)
    plans += whole_plans(cohort.splits["train"], section)
    training = all_patients(plans)
    ensembles: list[ExpertEnsemble] = []
    for ensemble in range(section.num_ensembles):
        members: list[Member] = []
        for plan in (plan for plan in plans if plan.ensemble == ensemble):
            held_out = held_out_ids(plan, training, cohort.splits["val"], rule)
            state = train_member(plan, inputs, cohort.labels, held_out, section)
            key = member_key(plan, section, data_sha256)
            members.append(Member(plan=plan, state=state, key=key))
        if rule == "cross_validation":
            members = settle(members)
        ensembles.append(assembled(members, scaler, section, data_sha256))
    return ensembles
