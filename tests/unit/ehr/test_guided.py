import json
import re

import pytest

from ehr.catalogue import KNOWN_FEATURES
from ehr.errors import ConfigurationError, ModelError
from ehr.language.guided_format import (
    FINAL,
    LINE_REGEX,
    PROBABILITY_REGEX,
    SUBQUESTION,
    USEFULNESS_REGEX,
    FinalText,
    GuidedFormat,
    choice_tokens,
    features_regex,
    final_regex,
    read_final,
    read_step,
    step_regex,
)
from ehr.language.guided_writers import (
    THINK_JSON,
    THINK_TAGS,
    CallKind,
    DirectWriter,
    GuidedWriter,
    ShortAnswerWriter,
)
from ehr.language.json_answer import json_reasoning_of, parse_think_json
from ehr.language.pieces import Author, join_text
from ehr.language.trajectory import (
    ParsedStep,
    parse_think,
    parse_trajectory,
    parse_vanilla,
)
from tests.tokenizers import ByteTokenizer, PairTokenizer
from tests.typed import known

TOKENIZER = ByteTokenizer()
LAYOUT = GuidedFormat(TOKENIZER)
NAMES = "pH, Glucose, Age, Weight, Height\n"
WHOLE = """<Subquestion 1>
Why?
</Subquestion 1>
<Answer 1>
So.
</Answer 1>
<Final subquestion>
Now the probability of the outcome can be estimated.
</Final subquestion>
<Important Features>
pH, Glucose, Age, Weight, Height
</Important Features>
<Final answer>
0.85
</Final answer>"""


def say(writer, text):
    writer.accept(TOKENIZER.encode(text), text)


def next_request(writer):
    return known(writer.next_request())


def choose(writer, choice):
    writer.accept([LAYOUT.choices[choice]], "")


def test_a_rollout_that_chooses_the_final_is_written_as_laid_out():
    writer = GuidedWriter(7, LAYOUT, 768)

    choose(writer, SUBQUESTION)
    say(writer, "Why?\n")
    say(writer, "So.\n")
    choose(writer, FINAL)
    say(writer, NAMES)
    say(writer, "0.85\n")

    assert writer.text == WHOLE
    assert writer.next_request() is None


def test_calls_come_in_order_with_their_patterns():
    writer = GuidedWriter(2, LAYOUT, 256)
    calls = [next_request(writer)]
    choose(writer, SUBQUESTION)
    for text in ("Why?\n", "So.\n", NAMES, "0.85\n"):
        calls.append(next_request(writer))
        say(writer, text)

    assert [(c.kind, c.regex, c.stop) for c in calls] == [
        (CallKind.CHOICE, None, ()),
        (CallKind.QUESTION, LINE_REGEX, ("\n",)),
        (CallKind.ANSWER, LINE_REGEX, ("\n",)),
        (CallKind.FEATURES, features_regex(), ("\n",)),
        (CallKind.PROBABILITY, PROBABILITY_REGEX, ("\n",)),
    ]
    assert calls[0].max_tokens == 1
    assert set(known(calls[0].allowed_token_ids)) == {ord("S"), ord("F")}


def test_only_sampled_tokens_are_the_models():
    writer = GuidedWriter(2, LAYOUT, 256)
    choose(writer, SUBQUESTION)
    for text in ("Why?\n", "So.\n", NAMES, "0.85\n"):
        say(writer, text)

    written = [
        t for t, is_model in zip(writer.token_ids, writer.model_mask, strict=True) if is_model
    ]

    assert TOKENIZER.decode(written) == "SWhy?\nSo.\n" + NAMES + "0.85\n"
    assert TOKENIZER.decode(writer.token_ids) == writer.text == WHOLE


def test_the_final_is_forced_at_the_last_depth_without_a_choice():
    writer = GuidedWriter(1, LAYOUT, 96)

    assert next_request(writer).kind is CallKind.FEATURES
    assert not any(writer.model_mask)
    assert writer.text.startswith("<Final subquestion>\n")


def test_sampled_tokens_are_kept_as_they_are():
    writer = GuidedWriter(2, LAYOUT, 256)
    choose(writer, SUBQUESTION)

    writer.accept([1000, 1001], "Why?\n")

    assert writer.pieces[-2].token_ids == (1000, 1001)
    assert writer.pieces[-2].author is Author.MODEL


def test_a_line_that_was_cut_off_is_closed_by_the_caller():
    writer = GuidedWriter(2, LAYOUT, 256)
    choose(writer, SUBQUESTION)

    say(writer, "Why does the")
    say(writer, "Beca")

    assert writer.num_cut_lines == 2
    assert parse_trajectory(writer.text).steps == (ParsedStep("Why does the", "Beca"),)
    assert writer.pieces[4].author is Author.CALLER
    assert writer.pieces[4].text == "\n"


@pytest.mark.parametrize(("max_depth", "budget"), [(1, 32), (3, 160), (7, 768), (3, 64)])
def test_a_model_that_never_stops_stays_within_the_budget_and_is_read(max_depth, budget):
    writer = GuidedWriter(max_depth, LAYOUT, budget)
    while (call := writer.next_request()) is not None:
        if call.kind is CallKind.CHOICE:
            choose(writer, SUBQUESTION)
        elif call.kind is CallKind.PROBABILITY:
            say(writer, "0.85\n")
        else:
            assert call.max_tokens >= 4
            say(writer, "x" * call.max_tokens)

    assert sum(writer.model_mask) <= budget
    assert sum(writer.model_mask) > budget / 2
    assert parse_trajectory(writer.text).probability == 0.85
    assert len(parse_trajectory(writer.text).steps) == max_depth - 1


def test_what_a_short_line_leaves_goes_to_later_ones():
    writer = GuidedWriter(3, LAYOUT, 160)
    choose(writer, SUBQUESTION)
    first = next_request(writer).max_tokens

    say(writer, "Hm?\n")

    # 160 - 64 - 5 - 2 choices = 89 tokens over four lines, then 85 over three.
    assert (first, next_request(writer).max_tokens) == (22, 28)


def test_a_budget_too_small_for_the_depth_is_refused():
    with pytest.raises(ConfigurationError, match="got 40; raise max_new_tokens or lower"):
        GuidedWriter(7, LAYOUT, 40)


def test_a_token_that_was_not_offered_is_refused():
    writer = GuidedWriter(2, LAYOUT, 256)

    with pytest.raises(ModelError, match="honours allowed_token_ids"):
        writer.accept([ord("x")], "x")


def test_a_short_answer_is_the_end_of_a_trajectory_alone():
    writer = ShortAnswerWriter(LAYOUT, max_new_tokens=40)
    features = next_request(writer)
    say(writer, NAMES)
    probability = next_request(writer)
    say(writer, "0.85\n")

    assert (features.kind, features.max_tokens) == (CallKind.FEATURES, 35)
    assert (probability.kind, probability.max_tokens) == (CallKind.PROBABILITY, 5)
    assert writer.next_request() is None
    assert WHOLE.endswith(writer.text)
    read = parse_trajectory(writer.text)
    assert (len(read.features), read.probability, read.steps) == (5, 0.85, ())


def test_a_short_answer_whose_names_are_cut_off_is_closed_and_read():
    writer = ShortAnswerWriter(LAYOUT, max_new_tokens=40)
    say(writer, "pH, Gluco")
    say(writer, "0.85\n")

    assert writer.num_cut_lines == 1
    assert parse_trajectory(writer.text).probability == 0.85


def test_nothing_is_accepted_after_the_end():
    writer = DirectWriter(LAYOUT)
    say(writer, "0.10\n")

    with pytest.raises(ValueError, match="everything is written"):
        say(writer, "more")


def test_pieces_composed_by_the_search_read_like_a_rollout():
    pieces = [
        *LAYOUT.question_opening(1),
        LAYOUT.line(" Why? "),
        LAYOUT.after_question(1),
        LAYOUT.line("So."),
        LAYOUT.after_answer(1),
        *LAYOUT.final_opening(forced=False),
        LAYOUT.line("pH, Glucose, Age, Weight, Height"),
        LAYOUT.after_features(),
        LAYOUT.line("0.85"),
        LAYOUT.closing(),
    ]

    assert join_text(pieces) == WHOLE


def test_a_forced_final_is_all_the_callers():
    assert {p.author for p in LAYOUT.final_opening(forced=True)} == {Author.CALLER}
    assert [p.author for p in LAYOUT.final_opening(forced=False)] == [
        Author.CALLER,
        Author.MODEL,
        Author.CALLER,
    ]


def test_the_choice_may_be_a_longer_token():
    layout = GuidedFormat(PairTokenizer())

    assert join_text(layout.question_opening(2)) == "<Subquestion 2>\n"
    assert layout.question_opening(2)[1].text == "Su"


class NoPlainStart(ByteTokenizer):
    """Marks the beginning of every text, as some sentence-piece models do."""

    def encode(self, text):
        return super().encode("_" + text)


class OneFirstToken(ByteTokenizer):
    """Spells each word with the same token of its own."""

    def encode(self, text):
        self.word = text
        return [7]

    def decode(self, token_ids):
        return self.word


@pytest.mark.parametrize("tokenizer", [OneFirstToken(), NoPlainStart()])
def test_a_tokenizer_whose_first_tokens_tell_nothing_is_refused(tokenizer):
    with pytest.raises(ModelError, match=r"prompt\.format=free"):
        choice_tokens(tokenizer)


def test_patterns_take_what_the_format_allows():
    assert re.fullmatch(LINE_REGEX, "Is pH > 7?\n")
    assert not re.fullmatch(LINE_REGEX, "a</Answer>\n")
    assert re.fullmatch(features_regex(), NAMES)
    assert not re.fullmatch(features_regex(), "a, b, c, d\n")
    assert not re.fullmatch(features_regex(), f"{'x' * 65}, b, c, d, e\n")
    assert re.fullmatch(PROBABILITY_REGEX, "0.85\n")
    assert [n for n in range(200) if re.fullmatch(USEFULNESS_REGEX, str(n))] == list(range(1, 101))


def test_listed_names_are_the_only_ones():
    pattern = features_regex(("pH", "Eosinophils (%)", "C++ [a|b]", "a-b.c"))

    assert re.fullmatch(pattern, "pH, pH, C++ [a|b], Eosinophils (%), a-b.c\n")
    assert not re.fullmatch(pattern, "pH, pH, pH, pH, lactate\n")
    assert not re.fullmatch(pattern, "pH, pH, pH, pH, a-bXc\n")
    assert not re.fullmatch(pattern, "pH, pH, pH, pH\n")


def test_the_engine_knows_the_pattern_of_every_name_of_the_catalogue():
    xgrammar = pytest.importorskip("xgrammar")
    names = [feature.name for feature in KNOWN_FEATURES]

    assert not [
        name
        for name in names
        if not re.fullmatch(features_regex([name]), f"{name}, " * 4 + f"{name}\n")
    ]
    xgrammar.Grammar.from_regex(final_regex(names))


def test_a_writer_asks_for_the_listed_names():
    writer = ShortAnswerWriter(GuidedFormat(TOKENIZER, ("pH", "Weight")), 60)

    assert next_request(writer).regex == features_regex(("pH", "Weight"))


def test_a_step_in_one_request_is_a_question_or_the_final():
    question, final = "Subquestion 2>\nWhy?\n", "Final subquestion>"

    assert re.fullmatch(step_regex(2), question)
    assert re.fullmatch(step_regex(2), final)
    assert read_step(question, 2) == "Why?"
    assert read_step("Subquestion 2>\nWhy does", 2) == "Why does"
    assert read_step(final, 2) is None


def test_a_final_in_one_request_is_read_back():
    text = NAMES + "</Important Features>\n<Final answer>\n0.85\n"

    assert re.fullmatch(final_regex(), text)
    assert read_final(text) == FinalText(features=NAMES.strip(), probability="0.85")
    assert read_final(text[:-4]) is None
    assert read_final("pH, Glu") is None


def test_direct_answers_are_read_by_their_parsers():
    vanilla, think = DirectWriter(LAYOUT), DirectWriter(LAYOUT, THINK_TAGS, think_tokens=20)
    say(vanilla, "0.30\n")
    assert next_request(think).max_tokens == 20
    say(think, "It looks bad, 0.9 perhaps")
    say(think, "0.30\n")

    assert vanilla.text == "<Final answer>\n0.30\n</Final answer>"
    assert parse_vanilla(vanilla.text).probability == 0.3
    assert parse_think(think.text).probability == 0.3
    assert think.next_request() is None


def test_thinking_in_json_is_one_object():
    writer = DirectWriter(LAYOUT, THINK_JSON, think_tokens=20)

    asked = next_request(writer)
    say(writer, 'It looks bad, 0.9 perhaps."')
    say(writer, "0.30\n")

    assert (asked.max_tokens, asked.stop) == (20, ('"',))
    assert writer.text == '{"think": "It looks bad, 0.9 perhaps.",\n"answer": 0.30\n}'
    assert json.loads(writer.text) == {"think": "It looks bad, 0.9 perhaps.", "answer": 0.3}
    assert parse_think_json(writer.text).probability == 0.3
    assert json_reasoning_of(writer.text) == "It looks bad, 0.9 perhaps."
    assert writer.num_cut_lines == 0


def test_json_that_was_cut_off_while_thinking_is_closed_by_the_caller():
    writer = DirectWriter(LAYOUT, THINK_JSON, think_tokens=3)

    say(writer, "It looks")
    say(writer, "0.30\n")

    assert json.loads(writer.text)["think"] == "It looks"
    assert writer.num_cut_lines == 1


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ('pH of 7.1 is low: {x}, 50 % "', True),
        ('It is "', True),
        ('"', False),
        ("no end", False),
        ('a\n"', False),
        ('a \\"', False),
        ('a "b"', False),
        ('<a"', False),
    ],
)
def test_the_inside_of_a_json_string_ends_with_its_first_quote(text: str, is_allowed: bool):
    testing = pytest.importorskip("xgrammar.testing")

    assert (re.fullmatch(THINK_JSON.thought_regex, text) is not None) == is_allowed
    grammar = testing._regex_to_ebnf(THINK_JSON.thought_regex)
    assert testing._is_grammar_accept_string(grammar, text) == is_allowed
