"""The expert: a cross-fitted ConCare ensemble, its opinions, and the salience read from them.

Attention of a single seed is mostly noise, and a member flatters the patients it was trained on.
So members come in pairs on complementary halves of the training patients, and a training
patient's opinion averages the members that did not see that patient.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from ehr.cohorts.cohort import PatientCase
from ehr.config import ExpertSection
from ehr.errors import DataError
from ehr.expert.concare import ConCare
from ehr.expert.member import (
    PREDICT_PATIENTS,
    ExpertBatch,
    Member,
    collate,
    concare_shape,
)
from ehr.expert.member_file import (
    FORMAT_VERSION,
    member_file,
    read_member,
    write_member,
)
from ehr.expert.opinions import (
    Opinions,
    SalienceEnsemble,
    token_names,
    was_seen,
)
from ehr.expert.plans import MemberPlan, all_patients
from ehr.expert.view import ExpertInput, ExpertScaler
from ehr.whole_files import write_bytes

MANIFEST = "expert.json"
"""File that makes a checkpoint folder complete; it is written last."""

_TOGETHER_PATIENTS = 8
"""Up to so many patients all members are one batched recurrence, as the expert service asks; the
states of more do not fit a core's cache, and one member after the other is faster
(`benchmarks/concare.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """The ensemble's opinion of one patient."""

    risk: float
    attention: dict[str, float]
    """Score of every feature by the expert's salience method, in schema order, `Age & Sex` last;
    sums to 1."""
    salient: tuple[str, ...]
    """C_exp, heaviest first; shorter than asked if the patient has fewer candidates."""


class ExpertEnsemble:
    """Trained members of one ensemble and all it takes to answer for a new patient."""

    def __init__(
        self,
        members: Sequence[Member],
        scaler: ExpertScaler,
        section: ExpertSection,
        data_sha256: str,
        whole: Sequence[Member] = (),
    ) -> None:
        """An ensemble of members of one architecture.

        Args:
            members: at least one.
            scaler: makes the members' inputs, and names their features.
            section: settings the members were trained with.
            data_sha256: hash of the cohort they were trained on.
            whole: members trained on all of `members`' patients; they give strangers' risk.
        """
        if not members:
            raise DataError("An expert ensemble needs at least one member, got none.")
        self.members = tuple(members)
        self.scaler = scaler
        self.section = section
        self.data_sha256 = data_sha256
        self._shape = concare_shape(section, len(scaler.features))
        self.whole = ExpertEnsemble(whole, scaler, section, data_sha256) if whole else None

    @property
    def plans(self) -> tuple[MemberPlan, ...]:
        """Which patients each member was trained on."""
        return tuple(member.plan for member in self.members)

    @cached_property
    def model_sha256(self) -> str:
        """SHA-256 over the parameters of all members."""
        digest = hashlib.sha256()
        for member in self.all_members:
            for name, value in sorted(member.state.parameters.items()):
                digest.update(name.encode() + value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def all_members(self) -> tuple[Member, ...]:
        """The half-sample members, then the whole ones."""
        return self.members + (self.whole.members if self.whole else ())

    def fair_risk(self, inputs: Sequence[ExpertInput]) -> Float[np.ndarray, " patients"]:
        """Each patient's risk by members that were not trained on it.

        A training patient's is out of fold, by the half-sample members that did not see it.
        Anybody else's is the mean of the whole members, which have seen twice as many patients; of
        all half-sample members if there are none.

        Raises:
            DataError: if there is no patient, or one has no visit or values that are not finite.
        """
        if self.whole is None:
            return self.predict(inputs).mean_risk()
        trained_on = set(all_patients(self.plans))
        is_inside = np.array([entry.patient_id in trained_on for entry in inputs], dtype=bool)
        risk = np.empty(len(inputs))
        for ensemble, asked in ((self, is_inside), (self.whole, ~is_inside)):
            if asked.any() or not len(inputs):
                chosen = [entry for entry, one in zip(inputs, asked, strict=True) if one]
                risk[asked] = ensemble.predict(chosen).mean_risk()
        return risk

    def predict(self, inputs: Sequence[ExpertInput]) -> Opinions:
        """Every half-sample member's risk and final attention.

        Raises:
            DataError: if there is no patient, or one has no visit or values that are not finite.
        """
        risks: list[np.ndarray] = []
        attentions: list[np.ndarray] = []
        network, parameters = self.stacked
        for start in range(0, max(len(inputs), 1), PREDICT_PATIENTS):
            batch = collate(inputs[start : start + PREDICT_PATIENTS], torch.device("cpu"))

            def answer(
                member: dict[str, Tensor], batch: ExpertBatch = batch
            ) -> tuple[Float[Tensor, " patients"], Float[Tensor, "patients tokens"]]:
                output = functional_call(network, member, batch.arguments())
                return torch.sigmoid(output.logit.double()), output.attention.double()

            with torch.inference_mode():
                if len(batch.lengths) <= _TOGETHER_PATIENTS:
                    risk, attention = vmap(answer)(parameters)
                else:
                    answers = [
                        answer({name: values[member] for name, values in parameters.items()})
                        for member in range(len(self.members))
                    ]
                    risk, attention = map(torch.stack, zip(*answers, strict=True))
            risks.append(risk.numpy())
            attentions.append(attention.numpy())
        ids = tuple(entry.patient_id for entry in inputs)
        return Opinions(
            patient_ids=ids,
            risk=np.concatenate(risks, axis=1),
            scores=np.concatenate(attentions, axis=1),
            seen=was_seen(self.plans, ids),
        )

    def risks(self, inputs: Sequence[ExpertInput]) -> Float[np.ndarray, "members patients"]:
        """Every member's risk; the attention comes for nothing."""
        return self.predict(inputs).risk

    @cached_property
    def stacked(self) -> tuple[ConCare, dict[str, Tensor]]:
        """A network to call and the parameters of all members, stacked along a first axis."""
        networks: list[ConCare] = []
        for member in self.members:
            network = ConCare(self._shape).eval()
            network.load_state_dict(member.state.parameters)
            networks.append(network)
        parameters, _ = stack_module_state(networks)  # pyright: ignore[reportArgumentType]
        return networks[0], parameters

    @classmethod
    def load(cls, folder: Path, ensemble: int = 0) -> "ExpertEnsemble":
        """The ensemble saved in a checkpoint folder; number 0 is the one that is served.

        Raises:
            DataError: if the folder is missing, incomplete, of another format, or lacks that
                ensemble.
        """
        path = Path(folder) / MANIFEST
        try:
            manifest = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} must describe a trained expert, but cannot be read ({error}). Run the "
                "expert stage of this run folder."
            ) from error
        if manifest.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{path} must have format version {FORMAT_VERSION}, got "
                f"{manifest.get('format_version')!r}. Train the expert again (--redo expert)."
            )
        entries = [entry for entry in manifest["members"] if entry["ensemble"] == ensemble]
        if not entries:
            raise DataError(
                f"{path} has no ensemble {ensemble}: use one of "
                f"{sorted({entry['ensemble'] for entry in manifest['members']})}."
            )
        return cls(
            members=[read_member(Path(folder) / e["file"]) for e in entries if not e["whole"]],
            whole=[read_member(Path(folder) / e["file"]) for e in entries if e["whole"]],
            scaler=ExpertScaler.from_dict(manifest["scaler"]),
            section=ExpertSection.model_validate(manifest["section"]),
            data_sha256=manifest["data_sha256"],
        )


def save_ensembles(ensembles: Sequence[ExpertEnsemble], folder: Path) -> None:
    """Writes every member, then the manifest that completes the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    members = [member for ensemble in ensembles for member in ensemble.all_members]
    for member in members:
        write_member(folder / member_file(member.plan), member)
    leader = ensembles[0]
    manifest = {
        "format_version": FORMAT_VERSION,
        "data_sha256": leader.data_sha256,
        "model_sha256": [ensemble.model_sha256 for ensemble in ensembles],
        "section": leader.section.model_dump(mode="json"),
        "scaler": leader.scaler.to_dict(),
        "members": [
            {
                "ensemble": member.plan.ensemble,
                "file": member_file(member.plan),
                "whole": member.plan.whole,
            }
            for member in members
        ],
    }
    write_bytes(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def expert_opinion(
    ensemble: ExpertEnsemble, case: PatientCase, scorer: SalienceEnsemble | None = None
) -> Opinion:
    """The ensemble's opinion of one case, which need not belong to any cohort.

    Arguments and errors are those of `expert_opinions`.
    """
    return expert_opinions(ensemble, [case], scorer)[0]


def expert_opinions(
    ensemble: ExpertEnsemble, cases: Sequence[PatientCase], scorer: SalienceEnsemble | None = None
) -> list[Opinion]:
    """The ensemble's opinion of each case.

    Args:
        ensemble: gives the risk.
        cases: at least one.
        scorer: gives the scores; the ensemble's own attention by default.

    Raises:
        DataError: if a case has no visit, other features, or values that are not finite.
    """
    inputs = [ensemble.scaler.transform(case) for case in cases]
    risks = ensemble.fair_risk(inputs)
    all_scores = (scorer or ensemble).predict(inputs).mean_scores()
    section = ensemble.section
    tokens = token_names(ensemble.scaler)
    opinions: list[Opinion] = []
    for entry, risk, scores in zip(inputs, risks, all_scores, strict=True):
        order = heaviest_tokens(scores, candidate_tokens(entry.observed, section.candidates))
        salient = order[: section.num_salient_features]
        opinions.append(
            Opinion(
                risk=float(risk),
                attention={name: float(score) for name, score in zip(tokens, scores, strict=True)},
                salient=tuple(tokens[token] for token in salient),
            )
        )
    return opinions


def candidate_tokens(
    observed: Bool[np.ndarray, " features"], candidates: str
) -> Bool[np.ndarray, " tokens"]:
    """Which tokens may be salient for a patient: `paper` keeps all, `observed` the seen ones.

    Args:
        observed: features recorded at least once.
        candidates: `observed` or `paper`, as in the expert section.
    """
    allowed = observed if candidates == "observed" else np.ones_like(observed)
    return np.append(allowed, True)  # age and sex are always known


def heaviest_tokens(
    scores: Float[np.ndarray, " tokens"], allowed: Bool[np.ndarray, " tokens"]
) -> list[int]:
    """Allowed tokens by falling score; equal scores stay in schema order."""
    order = np.argsort(-scores, kind="stable")
    return [int(token) for token in order if allowed[token]]
