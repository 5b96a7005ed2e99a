"""What a patient's search leaves: counts, the tree as it is drawn, ranked trajectories."""

from dataclasses import dataclass

from actors.steps import Step, path_name, path_pieces
from actors.trajectories import SearchedTrajectory
from actors.tree import Node
from ehr.language.pieces import join_text, join_token_ids, model_written


@dataclass(slots=True, kw_only=True)
class SearchCounts:
    """What happened in a patient's search; nothing a model does wrong goes uncounted."""

    scores: int = 0
    """Candidates that were scored."""
    invalid_scores: int = 0
    """Scores unreadable twice, replaced by the neutral one."""
    duplicate_questions: int = 0
    dropped_questions: int = 0
    """Candidates without a usable question."""
    cut_questions: int = 0
    cut_answers: int = 0
    empty_answers: int = 0
    untagged_openings: int = 0
    """Candidates without an opening tag, taken to be subquestions."""
    misnumbered_openings: int = 0
    """Candidates whose tag has another number than their step; the search writes the right one."""
    non_latin_texts: int = 0
    """Questions and answers that were used although most of their letters are not Latin ones."""
    resample_requests: int = 0
    """Requests for further questions after repeated or unusable ones."""
    retry_requests: int = 0
    """Requests that ask again for an unreadable score or final."""
    forced_finals: int = 0
    exhausted_expansions: int = 0
    """Finals forced because no new question came."""
    context_finals: int = 0
    """Finals forced because another step might not have fitted into the context."""
    final_retries: int = 0
    unreadable_finals: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A node as the report draws it."""

    id: int
    """Place in the record, parents first; the root is 0."""
    parent: int | None
    path: tuple[int, ...]
    """Child indices from the root."""
    question: str
    answer: str | None
    """None where the node was never visited."""
    visit_count: int
    q: float | None
    """Mean reward of the simulations through the node."""
    usefulness: float | None
    """None for the root, and for a forced final, which has no rivals and is not scored."""
    score_is_neutral: bool
    terminal: bool
    reward: float | None
    on_best_path: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientResult:
    """A finished search of one patient."""

    patient_id: str
    trajectories: tuple[SearchedTrajectory, ...]
    """All unique terminals, ranked; the SFT set is marked."""
    nodes: tuple[NodeRecord, ...]
    """The tree, parents first."""
    counts: SearchCounts
    root_value: float
    """Mean reward of the simulations."""


def trajectory_of(
    terminal: Node[Step], patient_id: str, prompt_token_ids: tuple[int, ...]
) -> SearchedTrajectory:
    """A rewarded terminal as a row of the trajectories table, not yet ranked."""
    pieces = path_pieces(terminal)
    step, verdict = terminal.content, terminal.content.verdict
    assert verdict is not None, "a rewarded terminal has a verdict"
    return SearchedTrajectory(
        patient_id=patient_id,
        text=join_text(pieces),
        token_ids=join_token_ids(pieces),
        prompt_token_ids=prompt_token_ids,
        model_written=model_written(pieces),
        value_kind=verdict.kind,
        reward=verdict.value,
        reward_cls=verdict.cls,
        reward_att=verdict.att,
        readable=verdict.format_failure is None,
        correct=verdict.correct,
        probability=step.parsed.probability if step.parsed else None,
        features=verdict.features,
        num_steps=terminal.depth,
        visit_count=terminal.visit_count,
        path=path_name(terminal.path),
    )


def node_records(root: Node[Step], best_path: tuple[int, ...]) -> tuple[NodeRecord, ...]:
    """The whole tree, parents first; nodes above `best_path` and its end are marked."""
    nodes = list(root.subtree())
    ids = {node.path: number for number, node in enumerate(nodes)}
    return tuple(
        NodeRecord(
            id=ids[node.path],
            parent=None if node.parent is None else ids[node.parent.path],
            path=node.path,
            question=node.content.question,
            answer=node.content.answer,
            visit_count=node.visit_count,
            q=node.value if node.visit_count else None,
            usefulness=node.usefulness if node.content.scored else None,
            score_is_neutral=node.content.score_is_neutral,
            terminal=node.terminal,
            reward=node.reward,
            on_best_path=best_path[: node.depth] == node.path,
        )
        for node in nodes
    )
