"""The reader's own tokenizer and chat frame: made of the prompts that it will read."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ehr.cohorts.cohort import Cohort
from ehr.language.chat import ChatFrame
from ehr.language.prompts import PromptContext
from services.models import load_tokenizer
from training.config.run import RunConfig
from training.reader.lessons import LessonMaker, prompt_texts
from training.reader.size import Naming

_USER, END, _ASSISTANT = "<|user|>", "<|end|>", "<|assistant|>"
_FRAME = ChatFrame(prefix=f"{_USER}\n", suffix=f"{END}\n{_ASSISTANT}\n")
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{_USER}\n{{{{ message['content'] }}}}{END}\n"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{_ASSISTANT}\n{{% endif %}}"
)
_TOKENIZER_PATIENTS = 500


def write_tokenizer(cohort: Cohort, config: RunConfig, folder: Path, vocabulary: int) -> None:
    """Learns a byte-pair vocabulary from the cohort's prompts and writes the tokenizer."""
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
        special_tokens=[END, _USER, _ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, chat_template=_CHAT_TEMPLATE
    ).save_pretrained(folder)


def lesson_maker(
    cohort: Cohort, config: RunConfig, folder: Path, naming: Naming = Naming.ANY
) -> LessonMaker:
    """Makes lessons in the tokens of the model in `folder`."""
    tokenizer = load_tokenizer(folder)
    return LessonMaker(cohort, config, tokenizer, _FRAME, tokenizer.encode(END)[0], naming)
