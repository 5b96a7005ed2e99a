import string

from hypothesis import given
from hypothesis import strategies as st

from ehr.language.guided_format import FINAL, SUBQUESTION, GuidedFormat
from ehr.language.guided_writers import CallKind, GuidedWriter
from ehr.language.json_answer import parse_think_json
from ehr.language.trajectory import (
    parse_probability,
    parse_think,
    parse_trajectory,
    parse_vanilla,
)
from tests.tokenizers import ByteTokenizer

TOKENIZER = ByteTokenizer()
LAYOUT = GuidedFormat(TOKENIZER)
lines = st.text(st.characters(codec="utf-8", exclude_characters="<\n"), min_size=1, max_size=40)
names = st.lists(
    st.text(string.ascii_letters + " ()%\u03b3", min_size=1).filter(str.strip),
    min_size=5, max_size=5,
)  # fmt: skip
tags = st.sampled_from(
    ["<Subquestion 1>", "</Subquestion 2>", "<Answer 1>", "</Answer>", "<Final subquestion>",
     "<Important Features>", "</Important Features>", "<Final answer>", "</Final answer>",
     "<think>", "</think>", "<answer>", "0.5", "85%", "\n", "<", ">", ","]
)  # fmt: skip


@given(st.data(), st.integers(1, 5), names, st.integers(0, 99))
def test_whatever_a_guided_writer_writes_can_be_read(data, max_depth, features, percent):
    writer = GuidedWriter(max_depth, LAYOUT, 400)
    num_steps = 0
    while (call := writer.next_request()) is not None:
        match call.kind:
            case CallKind.CHOICE:
                choice = data.draw(st.sampled_from([SUBQUESTION, FINAL]))
                num_steps += choice == SUBQUESTION
                writer.accept([LAYOUT.choices[choice]], "")
                continue
            case CallKind.FEATURES:
                text = ", ".join(features) + "\n"
            case CallKind.PROBABILITY:
                text = f"0.{percent:02d}\n"
            case _:
                text = data.draw(lines) + data.draw(st.sampled_from(["", "\n"]))
        writer.accept(TOKENIZER.encode(text), text)

    parsed = parse_trajectory(writer.text)

    assert parsed.failure is None
    assert parsed.probability == percent / 100
    assert len(parsed.steps) == num_steps <= max_depth - 1
    assert len(writer.token_ids) == len(writer.model_mask)
    assert TOKENIZER.decode(writer.token_ids) == writer.text


@given(st.lists(tags | st.text(max_size=5), max_size=20).map("".join))
def test_any_text_is_parsed_to_a_probability_or_a_failure(text):
    for parse in (parse_trajectory, parse_vanilla, parse_think, parse_think_json):
        parsed = parse(text)

        assert (parsed.probability is None) == (parsed.failure is not None)
        assert parsed.probability is None or 0 <= parsed.probability <= 1


@given(st.integers(0, 100))
def test_percentages_and_decimals_mean_the_same(percent):
    assert parse_probability(f"{percent}%") == parse_probability(f"{percent / 100:.2f}")
