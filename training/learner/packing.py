"""Prompt-once packing: a group's prompt stands once in a row, its responses behind it.

A row is `[prompt 1, response 1.1, ..., response 1.G, prompt 2, response 2.1, ...]`. Positions of a
response continue its prompt's, and `training.learner.attention` lets each response see its own
prompt and itself only, so log-probabilities and gradients are those of G separate sequences at P +
sum(R) tokens in place of G (P + R).

A response may have branches: tokens that could have been written at one place of it, each standing
alone behind its prompt and what comes before that place. They stand behind the group's responses.
From one place, a token and its branches give the probability of every pair of tokens there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from ehr.errors import TrainingError

EVERY_TOKEN = -1
"""A word of `allowed` with all bits set."""


@dataclass(frozen=True, slots=True)
class Branches:
    """What could have been written at one place of a response."""

    place: int
    """Of the token in the response that they stand in for, at least 1."""
    tokens: tuple[int, ...]
    """Those behind which another one of them follows; the same for all responses of a batch."""
    whole: tuple[int, ...] = ()
    """Those that could be written there too, behind which nothing is left to choose; the same for
    all responses of a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGroup:
    """A prompt and the responses that share it."""

    patient_id: str
    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    trained: tuple[tuple[bool, ...], ...]
    """Per response token: the model wrote it, so it is trained; the rest is context."""
    allowed: tuple[Int32[Tensor, "trained words"] | None, ...] = ()
    """Per response: which tokens each trained one was chosen from
    (`training.learner.allowed_tokens`); None or nothing at all = from every token."""
    branches: tuple[Branches | None, ...] = ()
    """Per response; None or nothing at all = it has none."""

    def num_row_tokens(self, member: int) -> int:
        """Tokens that a response takes in a row, with its branches and without the prompt."""
        branches = self.branches[member] if self.branches else None
        return len(self.responses[member]) + (0 if branches is None else len(branches.tokens))


@dataclass(frozen=True, slots=True)
class BranchSpan:
    """The branches of a response as positions of a row, each `(start, stop)`."""

    tokens: tuple[int, int]
    """Each sees the prompt, `before` and itself."""
    before: tuple[int, int]
    """The response up to the place that they stand for."""


@dataclass(frozen=True, slots=True)
class Span:
    """A prompt and its responses as positions of a row, each `(start, stop)`."""

    prompt: tuple[int, int]
    responses: tuple[tuple[int, int], ...]
    branches: tuple[BranchSpan, ...] = ()
    """Behind the responses, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choices:
    """Where the responses with branches of a row choose."""

    responses: tuple[int, ...]
    """Which they are, as places in `PackedRow.sequences`."""
    predictors: Int[Tensor, "responses places"]
    """Row positions whose hidden states predict the token at a response's place, and the token
    behind each of its branches."""
    tokens: Int[Tensor, " tokens"]
    """What there is to choose from at each of these places."""
    whole: Int[Tensor, " whole"]
    """What can be written at a response's place beside them."""

    def to(self, device: torch.device) -> "Choices":
        """The same with its tensors on `device`."""
        return Choices(
            responses=self.responses,
            predictors=self.predictors.to(device),
            tokens=self.tokens.to(device),
            whole=self.whole.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedRow:
    """One micro-batch: what the model reads, and which of its outputs are wanted."""

    token_ids: Int[Tensor, " tokens"]
    position_ids: Int[Tensor, " tokens"]
    spans: tuple[Span, ...]
    predictors: Int[Tensor, " targets"]
    """Row position whose hidden state predicts each trained token."""
    targets: Int[Tensor, " targets"]
    """The trained tokens, sequence after sequence."""
    sequences: tuple[int, ...]
    """Number of each response in the batch, in row order; empty in a filler row."""
    lengths: tuple[int, ...]
    """Trained tokens of each of those responses."""
    allowed: Int32[Tensor, "targets words"] | None = None
    """Which tokens each target was chosen from, a bit each; None = all, from every token."""
    choices: Choices | None = None
    """None = no response has branches."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads."""
        return self.token_ids.numel()

    @property
    def mask(self) -> Bool[Tensor, "sequences length"]:
        """Which entries of `padded` are trained tokens."""
        steps = torch.arange(max(self.lengths, default=0), device=self.token_ids.device)
        return steps < torch.tensor(self.lengths, device=steps.device)[:, None]

    def padded(self, flat: Float[Tensor, " targets"]) -> Float[Tensor, "sequences length"]:
        """Per-target values as one line per response, zero behind its end."""
        return torch.nn.utils.rnn.pad_sequence(list(flat.split(self.lengths)), batch_first=True)

    def to(self, device: torch.device) -> "PackedRow":
        """The row with its tensors on `device`."""
        return PackedRow(
            token_ids=self.token_ids.to(device),
            position_ids=self.position_ids.to(device),
            spans=self.spans,
            predictors=self.predictors.to(device),
            targets=self.targets.to(device),
            sequences=self.sequences,
            lengths=self.lengths,
            allowed=None if self.allowed is None else self.allowed.to(device),
            choices=None if self.choices is None else self.choices.to(device),
        )


@dataclass(frozen=True, slots=True)
class _Piece:
    group: TokenGroup
    members: tuple[int, ...]
    first_sequence: int

    @property
    def num_tokens(self) -> int:
        return len(self.group.prompt) + sum(map(self.group.num_row_tokens, self.members))


def pack(groups: Sequence[TokenGroup], max_row_tokens: int) -> list[PackedRow]:
    """Rows that hold every (non-empty) response of `groups` once, none over `max_row_tokens`.

    Responses are numbered through the groups in order. A group over the budget is split and its
    prompt repeated; small pieces share a row (first fit, longest first).

    Raises:
        TrainingError: if one prompt with one of its responses exceeds the budget.
    """
    pieces: list[_Piece] = []
    first = 0
    for group in groups:
        pieces += _split(group, first, max_row_tokens)
        first += len(group.responses)
    bins: list[list[_Piece]] = []
    free: list[int] = []
    for piece in sorted(pieces, key=lambda piece: -piece.num_tokens):
        fitting = (i for i, room in enumerate(free) if room >= piece.num_tokens)
        index = next(fitting, None)
        if index is None:
            bins.append([piece])
            free.append(max_row_tokens - piece.num_tokens)
        else:
            bins[index].append(piece)
            free[index] -= piece.num_tokens
    return [_row(pieces_of_row) for pieces_of_row in bins]


def deal(rows: Sequence[PackedRow], num_ranks: int) -> list[list[PackedRow]]:
    """Rows of each rank: about equal token counts, and exactly equal row counts.

    Ranks meet in a collective after every backward pass, so a rank that is short of rows gets
    filler rows, which weigh nothing.
    """
    shares: list[list[PackedRow]] = [[] for _ in range(num_ranks)]
    for row in sorted(rows, key=lambda row: -row.num_tokens):
        min(shares, key=lambda share: sum(row.num_tokens for row in share)).append(row)
    longest = max(len(share) for share in shares)
    for share in shares:
        share.extend(filler_row() for _ in range(longest - len(share)))
    return shares


def filler_row() -> PackedRow:
    """The shortest row there is; it belongs to no sequence and must weigh nothing."""
    return PackedRow(
        token_ids=torch.zeros(2, dtype=torch.long),
        position_ids=torch.arange(2),
        spans=(Span((0, 1), ((1, 2),)),),
        predictors=torch.zeros(1, dtype=torch.long),
        targets=torch.zeros(1, dtype=torch.long),
        sequences=(),
        lengths=(),
    )


def _split(group: TokenGroup, first_sequence: int, max_row_tokens: int) -> list[_Piece]:
    room = max_row_tokens - len(group.prompt)
    pieces: list[list[int]] = [[]]
    used = 0
    for member, response in enumerate(group.responses):
        size = group.num_row_tokens(member)
        if not group.prompt or size > room:
            raise TrainingError(
                f"expected a prompt and each of its responses to fit a row of "
                f"learner.max_row_tokens={max_row_tokens} tokens; patient "
                f"{group.patient_id!r} has a prompt of {len(group.prompt)} and a response of "
                f"{size}; raise learner.max_row_tokens or shorten the prompt"
            )
        if not response:
            continue  # nothing was written, so nothing is trained
        if pieces[-1] and used + size > room:
            pieces.append([])
            used = 0
        pieces[-1].append(member)
        used += size
    return [_Piece(group, tuple(members), first_sequence) for members in pieces if members]


def _row(pieces: Sequence[_Piece]) -> PackedRow:
    row = _RowInMaking()
    for piece in pieces:
        row.add(piece)
    return row.packed()


class _RowInMaking:
    """A row that pieces are added to, one behind the other."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._positions: list[int] = []
        self._spans: list[Span] = []
        self._predictors: list[int] = []
        self._targets: list[int] = []
        self._sequences: list[int] = []
        self._lengths: list[int] = []
        self._allowed: list[Tensor | None] = []
        self._branched: list[int] = []
        self._branch_predictors: list[list[int]] = []
        self._branch_tokens: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()

    def add(self, piece: _Piece) -> None:
        group = piece.group
        prompt = self._append(group.prompt, 0)
        responses = []
        numbers = range(len(self._sequences), len(self._sequences) + len(piece.members))
        for member in piece.members:
            response, trained = group.responses[member], group.trained[member]
            first, last = self._append(response, len(group.prompt))
            responses.append((first, last))
            wanted = [i for i, is_trained in enumerate(trained) if is_trained]
            # The last prompt token predicts the first response token.
            self._predictors += [first + i - 1 if i else prompt[1] - 1 for i in wanted]
            self._targets += [response[i] for i in wanted]
            self._sequences.append(piece.first_sequence + member)
            self._lengths.append(len(wanted))
            self._allowed.append(group.allowed[member] if group.allowed else None)
        branches = []
        for member, number, (first, _) in zip(piece.members, numbers, responses, strict=True):
            own = group.branches[member] if group.branches else None
            if own is not None:
                branches.append(self._add_branches(own, number, first, len(group.prompt)))
        self._spans.append(Span(prompt, tuple(responses), tuple(branches)))

    def _append(self, token_ids: Sequence[int], position: int) -> tuple[int, int]:
        first = len(self._ids)
        self._ids += token_ids
        self._positions += range(position, position + len(token_ids))
        return first, len(self._ids)

    def _add_branches(
        self, branches: Branches, number: int, first: int, prompt_length: int
    ) -> BranchSpan:
        place = first + branches.place
        start = len(self._ids)
        self._ids += branches.tokens
        self._positions += [prompt_length + branches.place] * len(branches.tokens)
        self._branched.append(number)
        self._branch_predictors.append([place - 1, *range(start, len(self._ids))])
        self._branch_tokens.add((branches.tokens, branches.whole))
        return BranchSpan((start, len(self._ids)), (first, place))

    def packed(self) -> PackedRow:
        return PackedRow(
            token_ids=torch.tensor(self._ids),
            position_ids=torch.tensor(self._positions),
            spans=tuple(self._spans),
            predictors=torch.tensor(self._predictors, dtype=torch.long),
            targets=torch.tensor(self._targets, dtype=torch.long),
            sequences=tuple(self._sequences),
            lengths=tuple(self._lengths),
            allowed=_together(self._allowed, self._lengths),
            choices=self._choices(),
        )

    def _choices(self) -> Choices | None:
        if not self._branched:
            return None
        ((tokens, whole),) = self._branch_tokens  # the same for all
        return Choices(
            responses=tuple(self._branched),
            predictors=torch.tensor(self._branch_predictors),
            tokens=torch.tensor(tokens),
            whole=torch.tensor(whole, dtype=torch.long),
        )


def _together(allowed: Sequence[Tensor | None], lengths: Sequence[int]) -> Tensor | None:
    given = next((each for each in allowed if each is not None), None)
    if given is None:
        return None
    return torch.cat(
        [
            given.new_full((length, given.shape[1]), EVERY_TOKEN) if each is None else each
            for each, length in zip(allowed, lengths, strict=True)
        ]
    )
