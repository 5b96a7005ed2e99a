"""Configuration section of the search."""

from typing import Literal

from pydantic import Field, model_validator

from ehr.base import Section, Seed


class SearchSection(Section):
    """Expert-guided Monte Carlo tree search, Algorithm 1 with the readings of docs/paper_map.md."""

    method: Literal["tree", "samples"] = "tree"
    """`tree`: Algorithm 1. `samples`: `num_rollouts` plain answers a patient at
    `question_temperature`, no tree and no usefulness; the best are kept all the same."""
    value: Literal["reward", "label_free"] = "reward"
    """What the search maximises. `reward`: R of Eq. 7, which reads the label; `label_free`:
    usefulness and agreement with the expert, for patients whose outcome is unknown (needs
    `sft.enabled: false`: nothing is trained on it)."""
    usefulness_weight: float = Field(default=0.5, ge=0, le=1)
    """Label-free value: weight of the steps' mean usefulness, the rest is agreement with the
    expert."""
    split: Literal["train", "val", "test"] = "train"
    """Whose patients are searched; other splits than `train` need `value: label_free`."""
    num_patients: int | None = Field(default=6, ge=1)
    """Patients that are searched; null = all."""
    balance: bool = True
    """Half of them positives (CPU presets); false = as they come (the paper)."""
    seed: Seed = 11
    """Seeds the choice of patients and all sampling."""
    num_rollouts: int = Field(default=8, ge=1)
    """N: simulations per patient."""
    num_candidates: int = Field(default=3, ge=1)
    """d: candidate subquestions per expansion."""
    max_depth: int = Field(default=7, ge=1)
    """T: depth at which the final is forced."""
    num_kept_trajectories: int = Field(default=2, ge=1)
    """k: best trajectories per patient that go to SFT."""
    exploration_weight: float = Field(default=1.0, ge=0)
    """lambda of Eq. 1."""
    answers: Literal["lazy", "eager"] = "lazy"
    """`lazy`: a child is answered when it is first visited; `eager`: the paper's order."""
    only_correct: bool = False
    """Keep only trajectories on the right side of the decision threshold."""
    question_tokens: int = Field(default=64, ge=4)
    """Token limit of a question."""
    answer_tokens: int = Field(default=160, ge=4)
    """Token limit of an answer."""
    final_tokens: int = Field(default=96, ge=16)
    """Token limit of a final (features and probability)."""
    question_temperature: float = Field(default=0.8, ge=0)
    """Temperature of candidate questions."""
    answer_temperature: float = Field(default=0.2, ge=0)
    """Temperature of answers and of unforced finals."""
    max_resamples: int = Field(default=2, ge=0)
    """Requests spent on replacing duplicate candidates."""
    max_invalid_scores: float = Field(default=0.05, ge=0, le=1)
    """Share of unreadable usefulness scores above which the run fails."""
    num_actors: int = Field(default=1, ge=1)
    """Search actors."""
    cpus_per_actor: float = Field(default=0.5, gt=0)
    """Logical CPUs of a search actor."""
    trees_in_flight: int = Field(default=8, ge=1)
    """Trees that one actor searches at a time, or fewer where the engines' cache holds fewer."""

    @model_validator(mode="after")
    def _labels(self) -> "SearchSection":
        if self.value == "reward" and self.split != "train":
            raise ValueError(
                f"search.split is {self.split!r} and search.value 'reward', which reads labels: "
                "those of patients that results are reported on must steer nothing; use "
                "search.value=label_free, or search.split=train"
            )
        if self.value == "label_free" and (self.balance or self.only_correct):
            raise ValueError(
                "search.value=label_free reads no label, but search.balance chooses patients and "
                "search.only_correct trajectories by it; set both to false"
            )
        return self
