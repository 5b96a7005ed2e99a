"""Salient tokens of a response and their mean entropy, Eq. 9."""

import functools
import re
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ehr.catalogue.names import FeatureMatcher
from ehr.language.pieces import TextTokenizer
from ehr.language.trajectory import parse_trajectory

# Names of a features block: what lies between separators, without the blanks around it.
_NAME = re.compile(r"[^\s,;](?:[^,;\n]*[^\s,;])?")
_WORD = re.compile(r"[^\s,;:.?!()\[\]<>]+")
_MAX_NAME_WORDS = 8
_INCOMPLETE = "\ufffd"


def mean_salient_entropy(
    entropy: Float[Tensor, "group tokens"], salient: Bool[Tensor, "group tokens"]
) -> tuple[Float[Tensor, " group"], Bool[Tensor, " group"]]:
    """Mean entropy of each trajectory's salient tokens, H(tau) in Eq. 9.

    Args:
        entropy: full-vocabulary entropy of pi_old at each token, in nats.
        salient: the tokens that count: salient, and written by the model.

    Returns:
        The means (0 without salient tokens), and which trajectories have any.
    """
    counts = salient.sum(1)
    sums = torch.where(salient, entropy, torch.zeros_like(entropy)).sum(1)
    return sums / counts.clamp(min=1), counts > 0


def salient_token_mask(
    token_ids: Sequence[int],
    tokenizer: TextTokenizer,
    mode: Literal["features_block", "feature_mentions"],
    matcher: FeatureMatcher,
) -> list[bool]:
    """Which tokens of a response show a clinical feature, the set C of Eq. 9.

    A token counts if its text overlaps a name. Tags, separators and blanks are in no name. The
    caller's own tokens are not told apart here: combine with the loss mask.

    Args:
        token_ids: the response as it was sampled.
        tokenizer: decodes it.
        mode: names inside the last features block, or recognised names anywhere.
        matcher: recognises names (`feature_mentions` only).
    """
    text, spans = token_spans(token_ids, tokenizer)
    if mode == "features_block":
        names = _block_names(text)
    else:
        names = _mentions(text, matcher)
    in_name = bytearray(len(text))
    for start, end in names:
        in_name[start:end] = b"\x01" * (end - start)
    # A name may hold blanks; a token of nothing else shows none of it.
    return [
        any(in_name[at] and not text[at].isspace() for at in range(start, end))
        for start, end in spans
    ]


def token_spans(
    token_ids: Sequence[int], tokenizer: TextTokenizer
) -> tuple[str, list[tuple[int, int]]]:
    """Text of tokens, and where in it each token's own characters stand.

    Byte-level tokenizers spread one character over several tokens: tokens are then decoded
    together until the character is whole, and each of them spans all of it. Tokens are decoded in
    such small runs behind one token of context (some decoders drop a leading blank), so the work
    is linear.
    """
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    length = 0
    start = 0
    for end in range(1, len(token_ids) + 1):
        context = list(token_ids[max(start - 1, 0) : start])
        before = tokenizer.decode(context) if context else ""
        run = tokenizer.decode([*context, *token_ids[start:end]])[len(before) :]
        if run.endswith(_INCOMPLETE) and end < len(token_ids) and end - start < 4:
            continue  # a character has at most four bytes
        parts.append(run)
        spans.extend([(length, length + len(run))] * (end - start))
        length += len(run)
        start = end
    return "".join(parts), spans


def _block_names(text: str) -> list[tuple[int, int]]:
    span = parse_trajectory(text).features_span
    if span is None:
        return []
    return [match.span() for match in _NAME.finditer(text, *span)]


def _mentions(text: str, matcher: FeatureMatcher) -> list[tuple[int, int]]:
    """Runs of words, left to right, that name a feature and need their first and last word for it.

    The matcher is tolerant: it finds the name inside "has glucose risen". What can leave without
    changing its answer is no part of the name.
    """
    words = [match.span() for match in _WORD.finditer(text)]

    @functools.cache
    def named(first: int, last: int) -> str | None:
        return matcher.match(text[words[first][0] : words[last - 1][1]]) if first < last else None

    found: list[tuple[int, int]] = []
    first = 0
    while first < len(words):
        for last in range(min(first + _MAX_NAME_WORDS, len(words)), first, -1):
            name = named(first, last)
            if name and name not in (named(first + 1, last), named(first, last - 1)):
                found.append((words[first][0], words[last - 1][1]))
                first = last
                break
        else:
            first += 1
    return found
