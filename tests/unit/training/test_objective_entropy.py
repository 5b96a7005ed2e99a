import pytest
import torch

from ehr.catalogue import TJH_LABS
from ehr.catalogue.names import FeatureMatcher
from tests.tokenizers import ByteTokenizer, PairTokenizer
from training.objective.entropy import mean_salient_entropy, salient_token_mask, token_spans

MATCHER = FeatureMatcher(TJH_LABS)
TEXT = (
    "<Answer 1>\nThe albumin is low.\n</Answer 1>\n<Important Features>\n"
    "albumin, \u03b3-glutamyl transpeptidase,  Sex\n</Important Features>\n"
    "<Final answer>\n0.85\n</Final answer>"
)


def salient_text(text, mode, tokenizer=None):
    """The characters of salient tokens, with a bar for every gap."""
    tokenizer = tokenizer or ByteTokenizer()
    token_ids = tokenizer.encode(text)
    mask = salient_token_mask(token_ids, tokenizer, mode, MATCHER)
    runs, last = [], False
    for token, is_salient in zip(token_ids, mask, strict=True):
        if is_salient and not last:
            runs.append([])
        if is_salient:
            runs[-1].append(token)
        last = is_salient
    return "|".join(tokenizer.decode(run) for run in runs)


def test_tokens_of_names_in_the_features_block_are_salient():
    # Blanks, commas and tags are not, and neither is the albumin outside the block.
    assert salient_text(TEXT, "features_block") == "albumin|\u03b3-glutamyl|transpeptidase|Sex"


def test_a_token_that_overlaps_a_name_is_salient():
    text = "<Important Features>ab, cd</Important Features>"

    # In pairs of bytes: "<I", "mp", ..., "s>", "ab", ", ", "cd", "</", ...
    assert salient_text(text, "features_block", PairTokenizer()) == "ab|cd"
    assert salient_text("x" + text, "features_block", PairTokenizer()) == ">ab, cd<"


def test_the_last_block_counts():
    text = TEXT + "<Important Features>pH"

    assert salient_text(text, "features_block") == "pH"


def test_without_a_block_nothing_is_salient():
    assert salient_text("The albumin is low.", "features_block") == ""


def test_mentions_are_recognised_names_anywhere():
    text = "Has the albumin fallen? Mean corpuscular hemoglobin concentration and age matter."

    assert (
        salient_text(text, "feature_mentions").replace("|", " ")
        == "albumin Mean corpuscular hemoglobin concentration age"
    )


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), PairTokenizer()])
@pytest.mark.parametrize(
    "text", ["", "plain", "\u03b3\u2265\U0001f600 x", "a\u03b3b\u03b3", "\u03b3"]
)
def test_spans_cover_the_text_in_order(tokenizer, text):
    token_ids = tokenizer.encode(text)

    decoded, spans = token_spans(token_ids, tokenizer)

    assert decoded == text
    assert len(spans) == len(token_ids)
    assert [s for s, _ in spans] == sorted(s for s, _ in spans)
    assert {at for start, end in spans for at in range(start, end)} == set(range(len(text)))


def test_bytes_that_never_make_a_character_still_get_spans():
    _, spans = token_spans([0xCE] * 7, ByteTokenizer())

    assert len(spans) == 7


def test_mean_entropy_is_over_salient_tokens_only():
    entropy = torch.tensor([[1.0, 2.0, 6.0], [3.0, 4.0, 5.0]])
    salient = torch.tensor([[True, False, True], [False, False, False]])

    mean, valid = mean_salient_entropy(entropy, salient)

    assert mean.tolist() == [3.5, 0.0]
    assert valid.tolist() == [True, False]


def test_entropies_elsewhere_do_not_matter_even_when_broken():
    entropy = torch.tensor([[1.0, float("nan")]])

    mean, _ = mean_salient_entropy(entropy, torch.tensor([[True, False]]))

    assert mean.tolist() == [1.0]
