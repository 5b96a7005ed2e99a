"""A small model that reads records: `python -m benchmarks.reader CONFIG FOLDER`.

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

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.reader_lessons import Lesson, LessonMaker, Naming, Part, prompt_texts
from benchmarks.reader_patients import generated_alike, other_patients, resampled
from ehr.chat import ChatFrame
from ehr.cohort import Cohort
from ehr.errors import ConfigurationError, EagRlError
from ehr.prompts import PromptContext
from services.environment import prepare_process
from services.models import load_tokenizer
from training.config import RunConfig
from training.config_loading import load_config

_USER, _END, _ASSISTANT = "<|user|>", "<|end|>", "<|assistant|>"
_FRAME = ChatFrame(prefix=f"{_USER}\n", suffix=f"{_END}\n{_ASSISTANT}\n")
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{_USER}\n{{{{ message['content'] }}}}{_END}\n"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{_ASSISTANT}\n{{% endif %}}"
)
_TOKENIZER_PATIENTS = 500
_HEAD_SIZE = 32
_WARMUP = 0.05
_TELL_EVERY = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderSize:
    """Sizes of the model and of its training."""

    vocabulary: int = 1024
    hidden: int = 128
    layers: int = 4
    patients: int = 16000
    """Whom it reads about, of a generated cohort; of a real one it is everybody else."""
    epochs: int = 1
    """How often it reads about each, with other names and another probability every time."""
    generated: int = 0
    """Of a real cohort: how many stays of its layout to generate and read about first, once."""
    resampled: int = 0
    """How many patients put together from the others' values to read about before these, once."""
    batch: int = 32
    learning_rate: float = 2e-3
    seed: int = 0
    naming: Naming = Naming.ANY


def write_reader(config: RunConfig, folder: Path, size: ReaderSize) -> None:
    """Trains the model and writes it in transformers' format.

    Args:
        config: of the experiment: its cohort and its prompts.
        folder: receives tokenizer and weights.
        size: of the model and its training.

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
    _write_tokenizer(cohort, config, folder, size.vocabulary)
    lessons: list[Lesson] = []
    for patients, epochs in read_about:
        print(
            f"making lessons about {len(patients.cases):,} patients; a thousand take some seconds",
            flush=True,
        )
        maker = lesson_maker(patients, config, folder, size.naming)
        for epoch in range(epochs):
            lessons += maker.lessons(size.seed + epoch)
    model = _new_model(folder, size, config.model.max_model_len)
    _train(model, lessons, size)
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


def _write_tokenizer(cohort: Cohort, config: RunConfig, folder: Path, vocabulary: int) -> None:
    patients = list(cohort.cases)[:_TOKENIZER_PATIENTS]
    texts = prompt_texts(cohort, config, patients)
    names = PromptContext.of(cohort, config.prompt).listed_names
    texts.append("\n".join(names * len(texts)))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split("\n", "merged_with_previous"),
            pre_tokenizers.Split(", ", "isolated"),
            pre_tokenizers.Split(Regex(r"\d+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_END, _USER, _ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, pad_token=_END, chat_template=_CHAT_TEMPLATE
    ).save_pretrained(folder)


def lesson_maker(
    cohort: Cohort, config: RunConfig, folder: Path, naming: Naming = Naming.ANY
) -> LessonMaker:
    """Makes lessons in the tokens of the model in `folder`."""
    tokenizer = load_tokenizer(folder)
    return LessonMaker(cohort, config, tokenizer, _FRAME, tokenizer.encode(_END)[0], naming)


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
            eos_token_id=tokenizer.encode(_END)[0],
            pad_token_id=tokenizer.encode(_END)[0],
        )
    )


def _train(model: LlamaForCausalLM, lessons: Sequence[Lesson], size: ReaderSize) -> None:
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
            print(
                f"{step}/{num_steps} loss of {found_losses}; about "
                f"{seconds / step * (num_steps - step):.0f} s left",
                flush=True,
            )


def _batch(
    lessons: Sequence[Lesson],
) -> tuple[Int[Tensor, "lessons tokens"], Int[Tensor, "lessons tokens"]]:
    # Behind an answer nothing is read: what stands there does not matter.
    tokens = [torch.tensor(lesson.token_ids) for lesson in lessons]
    parts = [torch.tensor(lesson.parts) for lesson in lessons]
    return pad_sequence(tokens, batch_first=True), pad_sequence(parts, batch_first=True)


def main() -> None:
    """Trains the reader of a configuration."""
    prepare_process(verbose=False)
    usual = ReaderSize()
    parser = argparse.ArgumentParser(
        description="Trains a small model from scratch that reads records and predicts (some "
        "minutes). It learns from patients that the experiment does not use. "
        "docs/experiments.md: a model that reads.",
    )
    parser.add_argument("config", type=Path, help="such as configs/planted_truth_reader.yaml")
    parser.add_argument("folder", type=Path, help="where the model goes: model.name there")
    parser.add_argument("overrides", nargs="*", help="such as cohort.path=PATH/TO/physionet2012")
    parser.add_argument(
        "--patients",
        type=int,
        default=usual.patients,
        help="synthetic cohort: how many patients are generated to learn from (%(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=usual.epochs,
        help="how often it reads about each patient (%(default)s)",
    )
    parser.add_argument(
        "--generated",
        type=int,
        default=usual.generated,
        help="real cohort: how many generated stays of its layout it reads about first",
    )
    parser.add_argument(
        "--resampled",
        type=int,
        default=usual.resampled,
        help="real cohort: how many patients, put together from values of the left-out ones, it "
        "reads about before those",
    )
    parser.add_argument("--seed", type=int, default=usual.seed, help="(%(default)s)")
    parser.add_argument(
        "--naming",
        type=Naming,
        choices=list(Naming),
        default=usual.naming,
        help="which features its answers name while it learns: any recorded one, or those with "
        "unusual values sooner (%(default)s)",
    )
    given = parser.parse_args()
    size = ReaderSize(
        patients=given.patients,
        epochs=given.epochs,
        generated=given.generated,
        resampled=given.resampled,
        seed=given.seed,
        naming=given.naming,
    )
    try:
        write_reader(load_config([given.config], given.overrides), given.folder, size)
    except EagRlError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
