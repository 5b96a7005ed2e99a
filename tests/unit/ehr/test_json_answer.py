"""The JSON form of Think-then-Answer, as models write it."""

import json

import pytest

from ehr.language.json_answer import json_reasoning_of, parse_think_json

PLAIN = '{"think": "pH fell. It worsens.", "answer": 0.85}'


@pytest.mark.parametrize(
    ("text", "probability"),
    [
        (PLAIN, 0.85),
        (f"```json\n{PLAIN}\n```", 0.85),
        (f"```\n{PLAIN}\n```", 0.85),
        (f"Here is my answer:\n{PLAIN}\nI hope that this helps. Call 1 or 2 doctors.", 0.85),
        ('{\n  "think": "a",\n  "answer": 0.85,\n}', 0.85),
        ('{"think": ["a", "b",], "answer": "85%"}', 0.85),
        ('{"think": "a", "answer": "85 %"}', 0.85),
        ('{"think": "a", "answer": 85%}', 0.85),
        ('{"think": "a", "answer": "0.85"}', 0.85),
        ('{"think": "a", "answer": .85}', 0.85),
        ('{"think": "a", "answer": 0,85}', 0.85),
        ('{"think": "a", "answer": "about a 85% risk"}', 0.85),
        ('{"think": "a", "answer": 0.85', 0.85),
        ('{"think": "a", "answer": "0.85', 0.85),
        ('{"think": "a" "answer": 0.85}', 0.85),
        ('{"think": "he said "no" twice", "answer": 0.85}', 0.85),
        ('{"think": "line one\nline two", "answer": 0.85}', 0.85),
        ('{"think": "a 0.3 risk? \\"answer\\": 0.2", "answer": 0.85}', 0.85),
        ("{'think': 'it worsens', 'answer': 0.85}", 0.85),
        ("{\u201cthink\u201d: \u201ca\u201d, \u201canswer\u201d: \u201c0.85\u201d}", 0.85),
        ('{"Think": "a", "Answer": 0.85}', 0.85),
        ('{"reasoning": "a", "final_answer": 0.85}', 0.85),
        ('{"think": "a", "probability": 0.85}', 0.85),
        ('{"answer": 0.85, "think": "a", "confidence": 0.4}', 0.85),
        ('{"answer": [0.85]}', 0.85),
        ('{"answer": 0.85}{"answer": 0.85}', 0.85),
        ('"think": "a", "answer": 0.85', 0.85),
        ('{"think": "the range {7.35, 7.45}", "answer": 0.85}', 0.85),
        ('pH {7.1} is low. {"think": "a", "answer": 0.85}', 0.85),
        ('<think>{"answer": 0.2} or so</think>{"think": "a", "answer": 0.85}', 0.85),
        ('{"think": "<think>a</think>", "answer": 0.85}', 0.85),
        ('{"think": {"answer": "yes"}, "answer": 0.85}', 0.85),
        ("<think>a</think>\n<answer>0.85</answer>", 0.85),
        ("0.85", 0.85),
        ('{"answer": 1}', 1.0),
        ('{"answer": 1e-2}', 0.01),
        ('{"think": "a", "answer": 0.85\n}', 0.85),
    ],
)
def test_the_stated_probability_is_read(text: str, probability: float) -> None:
    parsed = parse_think_json(text)

    assert parsed.failure is None
    assert parsed.probability == probability


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("", "no final answer"),
        ("It may be 0.9.", "no final answer"),
        ('{"think": "the answer is 0.9"}', "no final answer"),
        ('{"think": "I would write answer: 0.3 but', "no final answer"),
        ('{"think": "cut off at "answer", that is "answer": 0.3 or', "no final answer"),
        ('<think>perhaps {"answer": 0.3}', "no final answer"),
        ('{"think": "a", "answer": "high"}', "unreadable final answer"),
        ('{"think": "a", "answer": 0.XX}', "unreadable final answer"),
        ('{"think": "a", "answer": null}', "unreadable final answer"),
        ('{"think": "a", "answer": true}', "unreadable final answer"),
        ('{"think": "a", "answer": NaN}', "unreadable final answer"),
        ('{"think": "a", "answer": 85}', "unreadable final answer"),
        ('{"think": "a", "answer": -0.2}', "unreadable final answer"),
        ('{"think": "a", "answer": ""}', "unreadable final answer"),
        ('{"think": "a", "answer": "less than 0.1"}', "unreadable final answer"),
        ('{"think": "a", "answer": "0.2-0.4"}', "unreadable final answer"),
        ('{"think": "a", "answer": [0.2, 0.4]}', "unreadable final answer"),
        ('{"think": "a", "answer": 0.2, 0.4}', "unreadable final answer"),
        ('{"answer": 0.2, "answer": 0.9}', "contradicting final answers"),
        ('{"answer": 0.2} {"answer": 0.9}', "contradicting final answers"),
        ('{"answer": 0.2, "probability": 0.9}', "contradicting final answers"),
        ('{"think": {"answer": 0.2}, "note": \'x\', "answer": 0.9}', "contradicting final answers"),
        ("[" * 5000 + '{"answer"' + "{" * 5000, "no final answer"),
    ],
)
def test_a_probability_is_never_guessed(text: str, failure: str) -> None:
    parsed = parse_think_json(text)

    assert parsed.probability is None
    assert parsed.failure == failure


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        (PLAIN, "pH fell. It worsens."),
        ('{"think": "pH fell.\\nOK.", "answer": 0.5}', "pH fell.\nOK."),
        ('{"think": "pH fell.\\nOK.", "answer": 0.5,, }', "pH fell.\nOK."),
        ('{"think": "pH fell and', "pH fell and"),
        ("<think>pH fell.</think><answer>0.5</answer>", "pH fell."),
        ('{"answer": 0.5}', ""),
        ("0.5", ""),
    ],
)
def test_the_prose_is_what_stands_under_think(text: str, prose: str) -> None:
    assert json_reasoning_of(text) == prose


def test_a_written_object_is_read_back() -> None:
    text = json.dumps({"think": 'he said "no";\n{x} <y>', "answer": 0.07})

    assert parse_think_json(text).probability == 0.07
    assert json_reasoning_of(text) == 'he said "no";\n{x} <y>'
