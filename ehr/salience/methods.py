"""Every salience method by its name in the settings: how its ensembles come about, and their files.

Two methods read the ConCare ensembles that are there anyway. Two fit models of their own, in
seconds, so they have at least `CHEAP_MEMBERS` members; `halves` draws pairs one after the other,
and their first plans are ConCare's. `expert.members: 1` means one member on all patients for all.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

from safetensors.numpy import save

from ehr.config import ExpertSection
from ehr.errors import DataError
from ehr.expert.ensemble import ExpertEnsemble
from ehr.expert.member_file import FORMAT_VERSION, plan_of, read_described
from ehr.expert.opinions import SalienceEnsemble
from ehr.expert.plans import MemberPlan, all_patients, halves
from ehr.expert.view import ExpertInput, ExpertScaler
from ehr.salience.integrated_gradients import IntegratedGradients
from ehr.salience.linear import LinearEnsemble
from ehr.salience.trees import TreeEnsemble
from ehr.salience.vote import Vote, vote_weights
from ehr.whole_files import write_bytes

CHEAP_MEMBERS = 10
"""Members of the methods that fit in seconds: five pairs."""

CHEAP_METHODS: Mapping[str, type[LinearEnsemble] | type[TreeEnsemble]] = MappingProxyType(
    {"logistic_regression": LinearEnsemble, "tree_shap": TreeEnsemble}
)
"""Methods with models of their own."""

CONCARE_METHODS = ("attention", "integrated_gradients")
"""Methods that read the ConCare ensembles."""

VOTERS = (*CONCARE_METHODS, *CHEAP_METHODS)
"""Methods that take part in a vote, in the order of its weights."""


def cheap_plans(
    ids: Sequence[str], labels: Mapping[str, int], section: ExpertSection
) -> list[list[MemberPlan]]:
    """Half-samples of the methods with models of their own, one list an ensemble.

    Raises:
        DataError: if a class has too few patients for every member to see it.
    """
    members = 1 if section.members == 1 else max(section.members, CHEAP_MEMBERS)
    plans = halves(ids, labels, section.model_copy(update={"members": members}))
    return [
        [plan for plan in plans if plan.ensemble == ensemble]
        for ensemble in range(section.num_ensembles)
    ]


def fit_cheap(
    method: str,
    plans: Sequence[Sequence[MemberPlan]],
    inputs: Mapping[str, ExpertInput],
    labels: Mapping[str, int],
    scaler: ExpertScaler,
) -> list[SalienceEnsemble]:
    """The ensembles of a method with models of its own.

    Args:
        method: a key of `CHEAP_METHODS`.
        plans: of each ensemble's members.
        inputs: holds the patients of all plans.
        labels: holds theirs.
        scaler: made the inputs.
    """
    family = CHEAP_METHODS[method]
    return [family.fit(part, inputs, labels, scaler) for part in plans]


def salience_ensembles(
    method: str,
    concare: Sequence[ExpertEnsemble],
    inputs: Mapping[str, ExpertInput],
    labels: Mapping[str, int],
    section: ExpertSection,
) -> list[SalienceEnsemble]:
    """One method's ensembles, one for each of ConCare's.

    Args:
        method: a value of `expert.salience`.
        concare: trained ensembles.
        inputs: expert views of all training patients, and perhaps of others.
        labels: of the same.
        section: the expert section.
    """
    if method == "attention":
        return list(concare)
    if method == "integrated_gradients":
        return [IntegratedGradients(ensemble) for ensemble in concare]
    # The halves of one pair hold all training patients.
    ids = all_patients(concare[0].plans)
    plans = cheap_plans(ids, labels, section)
    fitted = {
        name: fit_cheap(name, plans, inputs, labels, concare[0].scaler)
        for name in (CHEAP_METHODS if method == "vote" else [method])
    }
    if method != "vote":
        return fitted[method]
    both = [
        [ensemble, IntegratedGradients(ensemble), *own]
        for ensemble, *own in zip(concare, *fitted.values(), strict=True)
    ]
    size, candidates = section.num_salient_features, section.candidates
    return [Vote(voters, vote_weights(voters, inputs, size, candidates)) for voters in both]


def save_scorers(scorers: Sequence[SalienceEnsemble], folder: Path) -> None:
    """Writes the models that methods have beside ConCare, so that unknown patients get scores."""
    for index, scorer in enumerate(scorers):
        for method, fitted in _fitted(scorer):
            described = {
                "format_version": FORMAT_VERSION,
                "plans": [asdict(plan) for plan in fitted.plans],
            }
            data = save(fitted.arrays(), metadata={"salience": json.dumps(described)})
            write_bytes(folder / _file(method, index), data)
        if isinstance(scorer, Vote):
            weights = dict(zip(VOTERS, scorer.weights, strict=True))
            vote = {"format_version": FORMAT_VERSION, "weights": weights}
            write_bytes(folder / _vote_file(index), (json.dumps(vote) + "\n").encode())


def load_scorer(folder: Path, ensemble: ExpertEnsemble, index: int = 0) -> SalienceEnsemble:
    """What scores features of unknown patients in the expert of a checkpoint folder.

    Args:
        folder: where `save_scorers` wrote.
        ensemble: the ConCare ensemble of that folder; its section names the method.
        index: the ensemble's number.

    Raises:
        DataError: if a file that the method needs is missing or of another format.
    """
    method = ensemble.section.salience
    if method == "attention":
        return ensemble
    if method == "integrated_gradients":
        return IntegratedGradients(ensemble)
    if method != "vote":
        return _read(folder, method, index, ensemble.scaler)
    own = [_read(folder, name, index, ensemble.scaler) for name in CHEAP_METHODS]
    return Vote([ensemble, IntegratedGradients(ensemble), *own], _read_weights(folder, index))


def _fitted(scorer: SalienceEnsemble) -> Iterator[tuple[str, LinearEnsemble | TreeEnsemble]]:
    for part in scorer.voters if isinstance(scorer, Vote) else [scorer]:
        for method, family in CHEAP_METHODS.items():
            if isinstance(part, family):
                yield method, part


def _read(
    folder: Path, method: str, index: int, scaler: ExpertScaler
) -> LinearEnsemble | TreeEnsemble:
    path = folder / _file(method, index)
    described, arrays = read_described(path, "salience", f"the members of {method}", "numpy")
    plans = [plan_of(plan) for plan in described["plans"]]
    return CHEAP_METHODS[method].from_arrays(plans, scaler, arrays)


def _read_weights(folder: Path, index: int) -> list[float]:
    path = folder / _vote_file(index)
    try:
        vote = json.loads(path.read_text())
        if vote["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {vote['format_version']!r}")
        return [float(vote["weights"][name]) for name in VOTERS]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} must hold the weights of a vote of {', '.join(VOTERS)} in format version "
            f"{FORMAT_VERSION}, but does not ({error!r}). Run the expert stage again "
            "(--redo expert)."
        ) from error


def _vote_file(index: int) -> str:
    return f"salience-vote-{index}.json"


def _file(method: str, index: int) -> str:
    return f"salience-{method}-{index}.safetensors"
