import pytest

from ehr.chat import ChatFrame, encode_chat, frame_of
from ehr.errors import ModelError
from tests.tokenizers import ByteTokenizer, PairTokenizer


def test_a_frame_is_what_the_template_writes_around_the_message():
    frame = frame_of(lambda message: f"<sys>Be kind.<user>{message}<assistant>")

    assert frame == ChatFrame(prefix="<sys>Be kind.<user>", suffix="<assistant>")


@pytest.mark.parametrize(("template", "times"), [("no message", 0), ("{0} and {0}", 2)])
def test_a_template_without_one_place_for_the_message_is_refused(template, times):
    with pytest.raises(ModelError, match=f"it shows it {times} times"):
        frame_of(template.format)


def test_prefix_message_and_suffix_are_tokenised_by_themselves():
    tokenizer = PairTokenizer()
    frame = ChatFrame(prefix="abc", suffix="f")

    tokens = encode_chat(tokenizer, frame, "de")

    assert tokens == (*tokenizer.encode("abc"), *tokenizer.encode("de"), *tokenizer.encode("f"))


def test_parts_of_a_message_keep_their_own_tokens():
    frame = ChatFrame(prefix="a", suffix="e")

    assert encode_chat(ByteTokenizer(), frame, "b", (1, 2), "d") == (97, 98, 1, 2, 100, 101)
