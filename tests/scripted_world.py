"""A language model without tokens: a maze of questions in which one path is the best.

It implements `actors.language_model.LanguageModel`, so that Algorithm 1 is tested by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.judge import Verdict
from actors.language_model import Written
from actors.reading import Content, Opening
from actors.search_prompts import PatientPrompts
from actors.steps import Step
from actors.tree import Node
from ehr.language.pieces import Author, Piece
from ehr.language.trajectory import ParsedTrajectory

PROMPTS = PatientPrompts(patient_id="p1", case=(), usefulness_head=(), usefulness_tail=())


def _question(index: int) -> str:
    return f"Door {index}?"


@dataclass
class Maze:
    """Every step offers the same doors; their scores point away from the best path."""

    best: tuple[int, ...]
    """The right door at each step; the final is forced behind the last."""
    asked: list[str] = field(default_factory=list)
    """Kind and place of every call, in order."""

    def has_room(self, node: Node[Step]) -> bool:
        """Always."""
        return True

    async def propose(self, node: Node[Step], num_samples: int, attempt: int) -> list[Opening]:
        """One door a sample; the depth makes a question new on its path."""
        self._note("question", node.path)
        return [
            Opening(
                question=Content(text=f"At {node.depth}: {_question(index)}"),
                final=False,
                tagged=True,
            )
            for index in range(num_samples)
        ]

    async def score(
        self, node: Node[Step], index: int, opening: Opening, attempt: int
    ) -> int | None:
        """Least for the right door."""
        self._note("score", (*node.path, index))
        return 1 if index == self.best[node.depth] else 50 + index

    async def answer(self, node: Node[Step]) -> Written:
        """The door that was taken."""
        self._note("answer", node.path)
        text = f"<Answer>{node.path[-1]}</Answer>"
        return Written(text="taken", pieces=(Piece(text, (), Author.MODEL),))

    async def write_final(self, node: Node[Step], *, retry: bool) -> Written:
        """Nothing; the judge reads the doors."""
        self._note("final", node.path)
        return Written(text="", pieces=())

    def _note(self, kind: str, path: tuple[int, ...]) -> None:
        self.asked.append(f"{kind} {path}")


@dataclass
class MazeJudge:
    """The share of right doors, and how often it was asked for which path."""

    best: tuple[int, ...]
    judged: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self, parsed: ParsedTrajectory, usefulness: Sequence[float]) -> Verdict:
        """The verdict on the doors of a path."""
        doors = tuple(int(step.answer) for step in parsed.steps)
        self.judged.append(doors)
        right = sum(door == best for door, best in zip(doors, self.best, strict=True))
        return Verdict(
            kind="reward",
            value=right / len(self.best),
            cls=0.0,
            att=0.0,
            format_failure=None,
            correct=doors == self.best,
            features=(),
        )
