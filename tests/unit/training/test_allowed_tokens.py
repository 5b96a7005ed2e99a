"""Which tokens a pattern leaves to choose from, against counting them one by one."""

import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from actors.rollouts import PatternSpan
from ehr.language.guided_format import PROBABILITY_REGEX, features_regex
from services.models import load_tokenizer
from tests.typed import known
from training.learner.allowed_tokens import AllowedTokens

NAMES = ("Heart Rate", "pH")
TEXTS = {
    PROBABILITY_REGEX: [f"0.{i:02d}\n" for i in range(100)],
    features_regex(NAMES): [
        ", ".join(NAMES[(i >> place) & 1] for place in range(5)) + "\n" for i in range(32)
    ],
}
"""All that the patterns allow."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([t for texts in TEXTS.values() for t in texts], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    # More rows in the head than tokens, as many models have.
    LlamaConfig(vocab_size=333).save_pretrained(folder)
    return folder


def allowed(folder, ids, trained, spans):
    return known(AllowedTokens(folder).of(ids, trained, spans))


@pytest.mark.parametrize("regex", TEXTS)
def test_the_allowed_tokens_are_those_that_some_text_goes_on_with(folder, regex):
    tokenizer = load_tokenizer(folder)
    vocabulary = {t: tokenizer.decode([t]) for t in range(1, 300)}
    for text in TEXTS[regex][::7]:
        assert re.fullmatch(regex, text)
        ids = tuple(tokenizer.encode(text))
        span = PatternSpan(start=0, stop=len(ids), regex=regex)

        words = allowed(folder, ids, (True,) * len(ids), (span,))

        for place in range(len(ids)):
            written = tokenizer.decode(ids[:place])
            expected = {
                token
                for token, piece in vocabulary.items()
                if piece and any(other.startswith(written + piece) for other in TEXTS[regex])
            }
            assert bits(words[place]) == expected


def test_a_word_that_ends_the_pattern_is_not_in_the_way_of_what_follows(folder):
    tokenizer = load_tokenizer(folder)
    before, after = (tuple(tokenizer.encode(text)) for text in ("<a>\n", "</a>"))
    line = tuple(tokenizer.encode("0.25\n"))
    ids = (*before, *line, *after)
    trained = (*[False] * len(before), *[True] * len(line), *[False] * len(after))
    span = PatternSpan(start=len(before), stop=len(before) + len(line), regex=PROBABILITY_REGEX)

    words = allowed(folder, ids, trained, (span,))

    assert words.shape == (len(line), 11)
    alone = allowed(
        folder,
        line,
        (True,) * len(line),
        (PatternSpan(start=0, stop=len(line), regex=PROBABILITY_REGEX),),
    )
    assert torch.equal(words, alone)


def test_trained_tokens_outside_of_patterns_come_from_every_token(folder):
    ids = tuple(load_tokenizer(folder).encode("0.25\n"))
    span = PatternSpan(start=1, stop=1, regex=PROBABILITY_REGEX)

    words = allowed(folder, ids, (True,) * len(ids), (span,))

    assert (words == -1).all()


def test_without_patterns_there_is_nothing_to_say_and_nothing_is_read(tmp_path):
    assert AllowedTokens(tmp_path / "no such folder").of((1, 2), (True, True), ()) is None


def test_a_token_off_the_pattern_is_said_and_claims_nothing(folder, caplog):
    tokenizer = load_tokenizer(folder)
    ids = tuple(tokenizer.encode("0.") + tokenizer.encode("p") + tokenizer.encode("1"))
    span = PatternSpan(start=0, stop=len(ids), regex=PROBABILITY_REGEX)

    words = allowed(folder, ids, (True,) * len(ids), (span,))

    place = ids.index(tokenizer.encode("p")[0])
    assert (words[place:] == -1).all()
    assert (words[:place] != -1).any(1).all()
    assert "does not follow pattern" in caplog.text


def bits(words):
    return {
        32 * i + bit
        for i, word in enumerate(words.tolist())
        for bit in range(32)
        if (word >> bit) & 1
    }
