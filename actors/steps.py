"""What a node of a search tree says, and the tokens and text of a path."""

from dataclasses import dataclass

from actors.judge import Verdict
from actors.tree import Node
from ehr.language.pieces import Piece, join_text, join_token_ids
from ehr.language.trajectory import ParsedTrajectory


@dataclass(slots=True)
class Step:
    """What a node says: a subquestion or the final, and what has been written of it so far."""

    question: str = ""
    final: bool = False
    forced: bool = False
    scored: bool = False
    score_is_neutral: bool = False
    """Whether the usefulness stands for a score that could not be read."""
    answer: str | None = None
    """None until the node is first visited."""
    pieces: tuple[Piece, ...] = ()
    """The whole step once it is answered."""
    verdict: Verdict | None = None
    parsed: ParsedTrajectory | None = None


def parent_of(node: Node[Step]) -> Node[Step]:
    """The node above; the root is neither asked nor answered and has none."""
    assert node.parent is not None, "the root has no parent"
    return node.parent


def path_pieces(node: Node[Step]) -> tuple[Piece, ...]:
    """Everything written from the root to a node."""
    return tuple(piece for above in node.lineage() for piece in above.content.pieces)


def path_token_ids(node: Node[Step]) -> tuple[int, ...]:
    """Tokens of a path, those of its parent's path first."""
    return join_token_ids(path_pieces(node))


def path_text(node: Node[Step]) -> str:
    """The assistant's turn up to a node."""
    return join_text(path_pieces(node))


def path_name(path: tuple[int, ...]) -> str:
    """A path as it stands in tables, seeds and logs: "0/2/1", "" for the root."""
    return "/".join(map(str, path))
