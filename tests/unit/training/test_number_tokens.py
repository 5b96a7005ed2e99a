"""Which tokens write a risk digit by digit, and which tokenizers are refused."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from ehr.errors import ModelError
from tests.learner_fakes import tiny_model
from training.learner.allowed_tokens import AllowedTokens
from training.learner.packing import Branches

CHARACTERS = [chr(i) for i in range(33, 127)]


def saved(folder, words, merges=(), *, metaspace=False):
    """A model folder whose tokenizer knows these words."""
    vocabulary = {word: i for i, word in enumerate(("<end>", *words))}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    LlamaConfig(vocab_size=len(vocabulary) + 5).save_pretrained(folder)
    return AllowedTokens(folder)


LINE_END = "\u010a"
"""How byte-level tokenizers write a line end."""


def test_a_tokenizer_of_characters_writes_a_risk_digit_by_digit(tmp_path):
    number = AllowedTokens(tiny_model(tmp_path)).number

    assert number.opening == (ord("0"), ord("."))
    assert number.digits == tuple(range(ord("0"), ord("9") + 1))
    assert number.ending == ord("\n")


def test_two_digits_in_one_token_are_known_by_their_number(tmp_path):
    tokens = saved(tmp_path, [*CHARACTERS, LINE_END, "82", "07"], [("8", "2"), ("0", "7")])
    number = tokens.number
    eighty_two, seven = list(number.pairs)

    assert sorted(number.pairs.values()) == [7, 82]
    assert number.pairs[eighty_two] == 82
    assert seven not in number.digits
    ids = (5, *number.opening, eighty_two, number.ending)
    assert number.branches(ids, 1) == Branches(3, number.digits, (eighty_two, seven))
    by_digit = (5, *number.opening, number.digits[8], number.digits[2], number.ending)
    assert number.branches(by_digit, 1) == number.branches(ids, 1)
    with pytest.raises(ModelError, match="check that it honours the pattern"):
        number.branches((5, *number.opening, number.digits[8], number.ending), 1)


@pytest.mark.parametrize(("merged", "behind"), [(("0", "."), "''"), (("5", LINE_END), r"'0\.\d'")])
def test_a_digit_in_one_token_with_what_stands_beside_it_is_refused(tmp_path, merged, behind):
    tokens = saved(tmp_path, [*CHARACTERS, LINE_END, "".join(merged)], [merged])

    with pytest.raises(ModelError, match=rf"behind {behind}.*leaves.*reward_to_go"):
        _ = tokens.number


def test_a_digit_that_is_written_behind_a_space_is_refused(tmp_path):
    blank = "\u2581"
    words = [blank, *CHARACTERS, *(blank + digit for digit in "0123456789"), "\n"]
    merges = [(blank, digit) for digit in "0123456789"]
    tokens = saved(tmp_path, words, merges, metaspace=True)

    with pytest.raises(ModelError, match=r"expected a tokenizer that writes.*reward_to_go"):
        _ = tokens.number


def test_a_digit_of_several_tokens_is_refused(tmp_path):
    words = [word for word in CHARACTERS if word != "7"] + [LINE_END]
    tokens = saved(tmp_path, words)

    with pytest.raises(ModelError, match="the digit '7' as one token, it is nothing"):
        _ = tokens.number


def test_branches_stand_for_the_tens_digit(tmp_path):
    number = AllowedTokens(tiny_model(tmp_path)).number
    text = "names\n0.37\n</Final answer>"

    found = number.branches(tuple(map(ord, text)), len("names\n"))

    assert found == Branches(len("names\n0."), number.digits)


@pytest.mark.parametrize("text", ["0.3\n<", "0.375\n", "1.00\n", "0.37 \n", "0.3", "", "0.a7\n"])
def test_tokens_that_are_no_number_are_refused(tmp_path, text):
    number = AllowedTokens(tiny_model(tmp_path)).number

    with pytest.raises(ModelError, match="check that it honours the pattern"):
        number.branches(tuple(map(ord, "names\n" + text)), len("names\n"))
