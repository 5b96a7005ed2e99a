"""Which tokens a sampled one was chosen from, when a pattern said what may be written.

An engine that samples under a pattern draws from the policy's distribution over the tokens that the
pattern allows next. That is the policy that acts, so it is the one whose log-probabilities belong
into Eq. 15: with those over the whole vocabulary, pushing down an allowed token pushes up tokens
that can never be drawn, nothing ever pushes them down again, and the policy drifts off the pattern
(`docs/results/log.md` has the figures).
"""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int32
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from actors.rollouts import PatternSpan
from ehr.language.guided_format import PROBABILITY_REGEX
from services.models import load_tokenizer
from training.learner.number_tokens import NumberTokens, number_tokens
from training.learner.packing import EVERY_TOKEN

logger = logging.getLogger(__name__)


class AllowedTokens:
    """Follows patterns over a model's tokens, by the library that vLLM follows them with.

    Args:
        model_path: folder of the model and its tokenizer; read at the first pattern.
    """

    def __init__(self, model_path: Path) -> None:
        self._model_path = model_path

    def of(
        self,
        token_ids: Sequence[int],
        trained: Sequence[bool],
        patterns: Sequence[PatternSpan],
    ) -> Int32[Tensor, "trained words"] | None:
        """The tokens that each trained token of a response was chosen from.

        Args:
            token_ids: the response.
            trained: which of its tokens the model wrote.
            patterns: the spans that were sampled under a pattern.

        Returns:
            Bit i % 32 of word i // 32 for token i, all bits where there was no pattern; None
            without patterns.
        """
        if not patterns:
            return None
        words = torch.full((len(token_ids), self._num_words), EVERY_TOKEN, dtype=torch.int32)
        for span in patterns:
            self._follow(words[span.start : span.stop], token_ids[span.start : span.stop], span)
        return words[torch.tensor(trained, dtype=torch.bool)]

    @cached_property
    def number(self) -> NumberTokens:
        """How the model writes a risk, digit by digit.

        Raises:
            ModelError: if its tokenizer does not.
        """
        compiled = self._compiler.compile_regex(PROBABILITY_REGEX)
        return number_tokens(compiled, load_tokenizer(self._model_path), self._num_words)

    def _follow(
        self, words: Int32[Tensor, "tokens words"], token_ids: Sequence[int], span: PatternSpan
    ) -> None:
        import xgrammar

        # The compiler keeps what it has compiled.
        matcher = xgrammar.GrammarMatcher(self._compiler.compile_regex(span.regex))
        for place, token in enumerate(token_ids):
            matcher.fill_next_token_bitmask(words, place)
            if not matcher.accept_token(token):
                # Then the engine followed another path: better no claim than a wrong one.
                words[place:] = EVERY_TOKEN
                logger.warning("token %d does not follow pattern %r", token, span.regex)
                return

    @cached_property
    def _vocabulary(self) -> int:
        return AutoConfig.from_pretrained(self._model_path).vocab_size

    @property
    def _num_words(self) -> int:
        return -(-self._vocabulary // 32)

    @cached_property
    def _compiler(self) -> Any:
        import xgrammar

        tokenizer = AutoTokenizer.from_pretrained(self._model_path)
        described = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=self._vocabulary)
        return xgrammar.GrammarCompiler(described)
