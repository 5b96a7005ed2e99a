"""What the small model of `eag-rl reader` is taught: patients' records, and answers to them.

A lesson is a prompt of the experiment with an answer in the guided format. Its probability sides
with the outcome and everything else that a policy chooses is drawn at random: the features that it
names and, where answers have steps, which it asks about, how often, and how useful it calls a
question. A final names what the steps have asked about first. With `Naming.ABNORMAL` features with
unusual values are drawn sooner, as by a model that has read about medicine.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pandas as pd

from actors.case_prompts import CasePrompt, case_prompt
from actors.search_prompts import patient_prompts
from ehr.cohorts.cohort import Cohort, PatientCase
from ehr.language.chat import ChatFrame
from ehr.language.guided_format import FINAL, SUBQUESTION, GuidedFormat
from ehr.language.guided_writers import GuidedWriter, ShortAnswerWriter, Writer
from ehr.language.pieces import (
    Author,
    Piece,
    TextTokenizer,
    join_token_ids,
)
from ehr.language.prompts import (
    PromptContext,
    case_lines,
    question_decomposition_prompt,
    short_answer_prompt,
    usefulness_prompt,
)
from ehr.language.trajectory import NUM_IMPORTANT_FEATURES
from training.config.run import RunConfig
from training.reader.size import Naming

_SCORE_SHARE = 0.2
"""Of the lessons with steps: they teach how a usefulness is written instead."""

_DEVIATION = 0.5
"""Standard deviations by which a value is farther from the mean to be named e times as likely."""


class Part(IntEnum):
    """What a token of a lesson belongs to; each part but `NOTHING` counts alike in the loss."""

    NOTHING = 0
    """The instructions, and what the caller writes around a short answer."""
    RECORD = 1
    STEPS = 2
    """Subquestions, their answers and the tags around them, which a search has the model write."""
    NAMES = 3
    PROBABILITY = 4
    SCORE = 5
    """A usefulness, and the end of the turn behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One patient's record and an answer to it."""

    token_ids: tuple[int, ...]
    parts: tuple[Part, ...]
    """Of every token."""


def prompt_texts(cohort: Cohort, config: RunConfig, patients: Sequence[str]) -> list[str]:
    """What the model will be shown of some patients: the tokenizer is made of it."""
    context = PromptContext.of(cohort, config.prompt)
    cases = [cohort.cases[patient] for patient in patients]
    if config.prompt.kind == "short_answer":
        return [short_answer_prompt(case, context) for case in cases]
    useful = usefulness_prompt(cases[0], context)
    asked = [_question(name) for name in context.listed_names]
    return [
        *(question_decomposition_prompt(case, context) for case in cases),
        *[useful.head + "\n".join(asked) + useful.tail] * len(cases),
    ]


class LessonMaker:
    """Makes lessons about a cohort's patients; pure.

    Args:
        cohort: patients with their outcomes.
        config: of the experiment: its prompts and its limits of an answer.
        tokenizer: of the model.
        frame: its chat template.
        end_token: what ends the model's turn.
        naming: which features answers name.
    """

    def __init__(
        self,
        cohort: Cohort,
        config: RunConfig,
        tokenizer: TextTokenizer,
        frame: ChatFrame,
        end_token: int,
        naming: Naming = Naming.ANY,
    ) -> None:
        self._cohort = cohort
        self._config = config
        self._tokenizer = tokenizer
        self._frame = frame
        self._end_token = end_token
        self._unusual = deviations(cohort) if naming is Naming.ABNORMAL else None
        self._context = PromptContext.of(cohort, config.prompt)
        self._layout = GuidedFormat(tokenizer, self._context.listed_names)
        kind = config.prompt.kind
        self._prompts = {
            patient: case_prompt(case, kind, self._context, tokenizer, frame)
            for patient, case in cohort.cases.items()
        }
        self._instructions = _shared(prompt.token_ids for prompt in self._prompts.values())

    def lessons(self, seed: int) -> list[Lesson]:
        """One lesson a patient; another seed draws everything but records and outcomes anew."""
        generator = random.Random(seed)
        make = self._short_lesson
        if self._config.prompt.kind == "question_decomposition":
            make = self._lesson_with_steps
        return [make(patient, generator) for patient in self._prompts]

    def _short_lesson(self, patient: str, generator: random.Random) -> Lesson:
        writer = ShortAnswerWriter(self._layout, self._config.grpo.max_new_tokens)
        names = self._names(self._prompts[patient].case, (), generator)
        self._conclude(writer, patient, names, generator)
        return self._lesson(patient, writer, [Part.NAMES, Part.PROBABILITY], Part.NOTHING)

    def _lesson_with_steps(self, patient: str, generator: random.Random) -> Lesson:
        case, max_depth = self._prompts[patient].case, self._config.search.max_depth
        known = list(recorded(case, self._cohort))
        num_steps = generator.randrange(min(max_depth, len(known) + 1))
        asked = generator.sample(known, num_steps)
        steps = self._steps(case, asked)
        if generator.random() < _SCORE_SHARE:
            return self._score_lesson(self._prompts[patient], steps, generator)
        writer = GuidedWriter(max_depth, self._layout, self._config.grpo.max_new_tokens)
        parts: list[Part] = []
        for question, answer in steps:
            writer.accept([self._layout.choices[SUBQUESTION]], "")
            self._accept(writer, question)
            self._accept(writer, answer)
            parts += [Part.STEPS] * 3
        if num_steps < max_depth - 1:
            writer.accept([self._layout.choices[FINAL]], "")
            parts.append(Part.STEPS)
        names = self._names(case, asked, generator)
        self._conclude(writer, patient, names, generator)
        return self._lesson(patient, writer, [*parts, Part.NAMES, Part.PROBABILITY], Part.STEPS)

    def _steps(self, case: PatientCase, asked: Sequence[str]) -> list[tuple[str, str]]:
        shown = dict(
            line.removeprefix("- ").removesuffix("]").split(": [", 1)
            for line in case_lines(case, self._context).splitlines()
            if line.endswith("]")
        )
        return [(_question(name), f"{name} is {shown[name].split(', ')[-1]}.") for name in asked]

    def _score_lesson(
        self, prompt: CasePrompt, steps: Sequence[tuple[str, str]], generator: random.Random
    ) -> Lesson:
        layout, fixed = (
            self._layout,
            patient_prompts(prompt, self._context, self._tokenizer, self._frame),
        )
        pieces: list[Piece] = []
        for i, (question, answer) in enumerate(steps, 1):
            pieces += [*layout.question_opening(i), layout.line(question)]
            if i == len(steps):
                pieces.append(layout.close_question(i))
            else:
                pieces += [layout.after_question(i), layout.line(answer), layout.after_answer(i)]
        told = (*fixed.usefulness_head, *join_token_ids(pieces), *fixed.usefulness_tail)
        score = (*self._tokenizer.encode(str(generator.randint(1, 100))), self._end_token)
        return Lesson(
            token_ids=(*told, *score),
            parts=(*[Part.NOTHING] * len(told), *[Part.SCORE] * len(score)),
        )

    def _names(
        self, case: PatientCase, asked: Sequence[str], generator: random.Random
    ) -> list[str]:
        known = [name for name in recorded(case, self._cohort) if name not in asked]
        others = self._in_some_order([*known, "Age"], case, generator)
        names = [*asked, *others][:NUM_IMPORTANT_FEATURES]
        missing = [name for name in self._context.listed_names if name not in names]
        return names + generator.sample(missing, NUM_IMPORTANT_FEATURES - len(names))

    def _in_some_order(
        self, names: Sequence[str], case: PatientCase, generator: random.Random
    ) -> list[str]:
        unusual = None if self._unusual is None else self._unusual[case.patient_id]
        return drawn_names(names, unusual, generator)

    def _conclude(
        self, writer: Writer, patient: str, names: Sequence[str], generator: random.Random
    ) -> None:
        low, high = (50, 99) if self._cohort.labels[patient] else (1, 50)
        self._accept(writer, ", ".join(names))
        self._accept(writer, f"0.{generator.randint(low, high):02d}")

    def _accept(self, writer: Writer, text: str) -> None:
        line = f"{text}\n"
        writer.accept(self._tokenizer.encode(line), line)

    def _lesson(
        self, patient: str, writer: Writer, of_model: Sequence[Part], of_caller: Part
    ) -> Lesson:
        """The patient's prompt and what was written.

        Args:
            patient: whose.
            writer: has written everything.
            of_model: parts of what the model wrote, in its order.
            of_caller: part of everything between.
        """
        prompt = self._prompts[patient].token_ids
        parts = [Part.NOTHING] * self._instructions
        parts += [Part.RECORD] * (len(prompt) - self._instructions)
        models = iter(of_model)
        for piece in writer.pieces:
            part = next(models) if piece.author is Author.MODEL else of_caller
            parts += [part] * len(piece.token_ids)
        return Lesson(token_ids=prompt + writer.token_ids, parts=tuple(parts))


def _question(name: str) -> str:
    return f"What is {name}?"


def drawn_names(
    names: Sequence[str], unusual: Mapping[str, float] | None, generator: random.Random
) -> list[str]:
    """The names in the order in which a lesson draws them.

    Args:
        names: to draw from.
        unusual: how far each one's value is from the mean, in standard deviations; one that is not
            there counts as 0. None = all are as likely.
        generator: of the draws.
    """
    if unusual is None:
        return generator.sample(names, len(names))
    # The largest of noisy scores first draws without replacement, by the scores' exponentials.
    scores = {
        name: unusual.get(name, 0.0) / _DEVIATION - math.log(generator.expovariate(1.0))
        for name in names
    }
    return sorted(names, key=scores.__getitem__, reverse=True)


def recorded(case: PatientCase, cohort: Cohort) -> dict[str, float]:
    """The last value of every feature that is recorded, in the order of the features."""
    return {
        feature.name: float(values[~np.isnan(values)][-1])
        for feature, values in zip(cohort.features, case.values.T, strict=True)
        if not np.isnan(values).all()
    }


def deviations(cohort: Cohort) -> dict[str, dict[str, float]]:
    """How far a patient's last values, and the age, are from the cohort's mean.

    Returns:
        By patient and feature, in standard deviations; without what is not recorded.
    """
    values = {patient: recorded(case, cohort) for patient, case in cohort.cases.items()}
    for patient, case in cohort.cases.items():
        if case.age is not None:
            values[patient]["Age"] = case.age
    table = pd.DataFrame.from_dict(values, orient="index")
    unusual = (table - table.mean()).abs() / table.std(ddof=0).replace(0.0, 1.0)
    return {str(patient): row.dropna().to_dict() for patient, row in unusual.iterrows()}


def _shared(prompts: Iterator[tuple[int, ...]]) -> int:
    """How many tokens all prompts begin with."""
    columns = zip(*prompts, strict=False)
    return next(i for i, column in enumerate(columns) if len(set(column)) > 1)
