"""A small model that reads records, trained from scratch: `eag-rl reader CONFIG FOLDER`.

A pretrained language model large enough to read a record is too slow for experiments on two cores.
This one is trained from scratch, in minutes, on the experiment's prompts about *other* patients
than the experiment's: generated ones, or on a real cohort the training and validation patients
that `cohort.train_patients` leaves out. It learns what a pretrained model would bring along: the
layout, how values go together, and to predict somewhat. The features that it names are drawn at
random among those recorded, so nothing of the expert's or the true salience is in it: what Stage 1
and Stage 2 teach about them can be measured. With `--naming abnormal` unusual values are drawn
sooner: a model that has read about medicine looks at them first, and has something to build on.
Where real patients are few it reads about made ones first: `--generated` or `--resampled`.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from ehr.errors import ConfigurationError
from services.models import load_tokenizer
from training.config.run import RunConfig
from training.reader.lessons import (
    Lesson,
    Part,
)
from training.reader.patients import generated_alike, other_patients, resampled
from training.reader.size import ReaderSize
from training.reader.tokens import END, lesson_maker, write_tokenizer

_HEAD_SIZE = 32
_WARMUP = 0.05
_TELL_EVERY = 20

Say = Callable[[str], None]
"""Called with one line for a person."""


def write_reader(config: RunConfig, folder: Path, size: ReaderSize, say: Say) -> None:
    """Trains the model and writes it in transformers' format.

    Args:
        config: of the experiment: its cohort and its prompts.
        folder: receives tokenizer and weights.
        size: of the model and its training.
        say: is told how far it is.

    Raises:
        ConfigurationError: if a real cohort leaves nobody out, or there are fewer lessons than a
            batch.
        DataError: if the cohort cannot be read.
    """
    cohort = other_patients(config.cohort, size.patients)
    read_about = [(cohort, size.epochs)]
    if size.resampled:
        read_about.insert(0, (resampled(cohort, size.resampled, size.seed), 1))
    if size.generated:
        read_about.insert(0, (generated_alike(cohort, config.cohort, size.generated), 1))
    _require_a_batch(sum(len(patients.cases) * epochs for patients, epochs in read_about), size)
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(cohort, config, folder, size.vocabulary)
    lessons: list[Lesson] = []
    for patients, epochs in read_about:
        say(f"making lessons about {len(patients.cases):,} patients; a thousand take some seconds")
        maker = lesson_maker(patients, config, folder, size.naming)
        for epoch in range(epochs):
            lessons += maker.lessons(size.seed + epoch)
    model = _new_model(folder, size, config.model.max_model_len)
    _train(model, lessons, size, say)
    model.save_pretrained(folder)


def _require_a_batch(num_lessons: int, size: ReaderSize) -> None:
    """Refuses lessons of which no step can be made: the model would keep its random weights."""
    if num_lessons < size.batch:
        raise ConfigurationError(
            f"the reader is trained on batches of {size.batch} lessons: expected at least "
            f"{size.batch} lessons, got {num_lessons}. Raise --epochs or --resampled; of a "
            "generated cohort raise --patients, of a real one lower cohort.train_patients, which "
            "leaves more patients to read about"
        )


def _new_model(folder: Path, size: ReaderSize, max_model_len: int) -> LlamaForCausalLM:
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(size.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=3 * size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.hidden // _HEAD_SIZE,
            num_key_value_heads=size.hidden // _HEAD_SIZE,
            max_position_embeddings=max_model_len,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.encode(END)[0],
            pad_token_id=tokenizer.encode(END)[0],
        )
    )


def _train(model: LlamaForCausalLM, lessons: Sequence[Lesson], size: ReaderSize, say: Say) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01)
    num_steps = len(lessons) // size.batch
    taught = sorted({part for lesson in lessons for part in lesson.parts} - {Part.NOTHING})
    started = time.monotonic()
    for step in range(1, num_steps + 1):
        rate = min(step / (_WARMUP * num_steps), 0.5 * (1 + math.cos(math.pi * step / num_steps)))
        for group in optimizer.param_groups:
            group["lr"] = size.learning_rate * rate
        tokens, parts = _batch(lessons[(step - 1) * size.batch : step * size.batch])
        counts = parts[:, 1:] != Part.NOTHING
        states = model.model(input_ids=tokens[:, :-1]).last_hidden_state[counts]
        parts = parts[:, 1:][counts]
        found = cross_entropy(model.lm_head(states), tokens[:, 1:][counts], reduction="none")
        # Each part counts alike, however many tokens it has: the outcome is in one or two of some
        # two hundred.
        losses = {part: found[parts == part].mean() for part in taught if (parts == part).any()}
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % _TELL_EVERY == 0 or step == num_steps:
            seconds = time.monotonic() - started
            found_losses = ", ".join(
                f"{part.name.lower()} {float(loss.detach()):.3f}" for part, loss in losses.items()
            )
            say(
                f"{step}/{num_steps} loss of {found_losses}; about "
                f"{seconds / step * (num_steps - step):.0f} s left"
            )


def _batch(
    lessons: Sequence[Lesson],
) -> tuple[Int[Tensor, "lessons tokens"], Int[Tensor, "lessons tokens"]]:
    # Behind an answer nothing is read: what stands there does not matter.
    tokens = [torch.tensor(lesson.token_ids) for lesson in lessons]
    parts = [torch.tensor(lesson.parts) for lesson in lessons]
    return pad_sequence(tokens, batch_first=True), pad_sequence(parts, batch_first=True)
