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

A training that was stopped goes on behind its last checkpoint, and ends with the same weights: the
lessons follow from the settings, and nothing else is drawn.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from ehr.errors import ConfigurationError
from services.models import load_tokenizer
from training.config.run import RunConfig
from training.reader.folder import ReaderFolder, reader_settings
from training.reader.lessons import (
    Lesson,
    Part,
)
from training.reader.patients import generated_alike, other_patients, resampled
from training.reader.size import ReaderSize
from training.reader.tokens import END, lesson_maker, write_tokenizer
from training.run.progress import Display, OnProgress

_HEAD_SIZE = 32
_WARMUP = 0.05
_CHECKPOINT_STEPS = 25
"""A stop costs at most so many steps, some seconds each."""


def write_reader(config: RunConfig, folder: Path, size: ReaderSize, display: Display) -> None:
    """Trains the model and writes it in transformers' format; goes on where it was stopped.

    Args:
        config: of the experiment: its cohort and its prompts.
        folder: receives tokenizer and weights; nothing is done where they are there already.
        size: of the model and its training.
        display: shows how far it is.

    Raises:
        ConfigurationError: if a real cohort leaves nobody out, or there are fewer lessons than a
            batch.
        DataError: if the cohort cannot be read.
        RunFolderError: if the folder holds a reader with other settings.
    """
    cohort = other_patients(config.cohort, size.patients)
    kept, settings = ReaderFolder(folder), reader_settings(config, size)
    kept.require(settings)
    if kept.is_finished:
        display.say(f"the reader in {folder} is finished; nothing to do")
        return
    read_about = [(cohort, size.epochs)]
    if size.resampled:
        read_about.insert(0, (resampled(cohort, size.resampled, size.seed), 1))
    if size.generated:
        read_about.insert(0, (generated_alike(cohort, config.cohort, size.generated), 1))
    _require_a_batch(sum(len(patients.cases) * epochs for patients, epochs in read_about), size)
    if not kept.is_begun:
        folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer(cohort, config, folder, size.vocabulary)
        kept.begin(settings)
    lessons: list[Lesson] = []
    for patients, epochs in read_about:
        num = len(patients.cases)
        display.say(f"making lessons about {num:,} patients; a thousand take some seconds")
        maker = lesson_maker(patients, config, folder, size.naming)
        for epoch in range(epochs):
            lessons += maker.lessons(size.seed + epoch)
    model = _new_model(folder, size, config.model.max_model_len)
    with display.stage("reader") as on_progress:
        _train(model, lessons, size, kept, on_progress)
    kept.finish(model)


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


def _train(
    model: LlamaForCausalLM,
    lessons: Sequence[Lesson],
    size: ReaderSize,
    kept: ReaderFolder,
    on_progress: OnProgress,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01)
    num_steps = len(lessons) // size.batch
    taught = sorted({part for lesson in lessons for part in lesson.parts} - {Part.NOTHING})
    done = kept.load_checkpoint(model, optimizer)
    on_progress(done, num_steps, "")
    for step in range(done + 1, num_steps + 1):
        rate = min(step / (_WARMUP * num_steps), 0.5 * (1 + math.cos(math.pi * step / num_steps)))
        for group in optimizer.param_groups:
            group["lr"] = size.learning_rate * rate
        losses = _losses(model, lessons[(step - 1) * size.batch : step * size.batch], taught)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found = ", ".join(
            f"{part.name.lower()} {float(loss.detach()):.2f}" for part, loss in losses.items()
        )
        on_progress(step, num_steps, f"loss of {found}")
        if step % _CHECKPOINT_STEPS == 0 or step == num_steps:
            kept.save_checkpoint(model, optimizer, step)


def _losses(
    model: LlamaForCausalLM, lessons: Sequence[Lesson], taught: Sequence[Part]
) -> dict[Part, Float[Tensor, ""]]:
    """Mean cross entropy of every part that these lessons have, in nats.

    Each part counts alike, however many tokens it has: the outcome is in one or two of some two
    hundred.
    """
    tokens, parts = _batch(lessons)
    counts = parts[:, 1:] != Part.NOTHING
    states = model.model(input_ids=tokens[:, :-1]).last_hidden_state[counts]
    parts = parts[:, 1:][counts]
    found = cross_entropy(model.lm_head(states), tokens[:, 1:][counts], reduction="none")
    return {part: found[parts == part].mean() for part in taught if (parts == part).any()}


def _batch(
    lessons: Sequence[Lesson],
) -> tuple[Int[Tensor, "lessons tokens"], Int[Tensor, "lessons tokens"]]:
    # Behind an answer nothing is read: what stands there does not matter.
    tokens = [torch.tensor(lesson.token_ids) for lesson in lessons]
    parts = [torch.tensor(lesson.parts) for lesson in lessons]
    return pad_sequence(tokens, batch_first=True), pad_sequence(parts, batch_first=True)
