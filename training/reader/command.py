"""`eag-rl reader`: its arguments, and what it does with them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ehr.errors import ConfigurationError
from training.reader.size import Naming, ReaderSize

DESCRIPTION = """\
Trains a small model from scratch that reads records and predicts, in some minutes. It learns from
patients that the experiment does not use: other generated ones, or those of a real cohort that
cohort.train_patients leaves out. docs/experiments.md: a model that reads.

The same command goes on after any stop, behind its last checkpoint. A finished reader is left as
it is, and a folder that was begun with other settings is refused.

example:
  eag-rl reader configs/planted_truth_reader.yaml runs/reader --naming abnormal
  eag-rl learn configs/planted_truth_reader.yaml "learn.seeds=[17]"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command; imports nothing heavy."""
    usual = ReaderSize()
    parser.usage = "eag-rl reader CONFIG FOLDER [section.key=value ...] [options]"
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="CONFIG FOLDER [section.key=value]",
        help="a configuration, such as configs/planted_truth_reader.yaml; the folder that receives "
        "the model, model.name of that configuration; then single settings, such as "
        "cohort.path=PATH/TO/physionet2012",
    )
    parser.add_argument(
        "--patients",
        metavar="N",
        type=_at_least_one,
        default=usual.patients,
        help="generated cohort: how many other patients it reads about (%(default)s)",
    )
    parser.add_argument(
        "--epochs",
        metavar="N",
        type=_at_least_one,
        default=usual.epochs,
        help="how often it reads about each patient (%(default)s)",
    )
    parser.add_argument(
        "--generated",
        metavar="N",
        type=_at_least_zero,
        default=usual.generated,
        help="real cohort: how many generated stays of its layout it reads about first "
        "(%(default)s)",
    )
    parser.add_argument(
        "--resampled",
        metavar="N",
        type=_at_least_zero,
        default=usual.resampled,
        help="real cohort: how many patients, put together from values of the left-out ones, it "
        "reads about before those (%(default)s)",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=_at_least_zero,
        default=usual.seed,
        help="of names, probabilities and weights drawn at random (%(default)s)",
    )
    parser.add_argument(
        "--naming",
        choices=[each.value for each in Naming],
        default=usual.naming.value,
        help="which features its answers name while it learns: any recorded one, or those with "
        "unusual values sooner (%(default)s)",
    )


def _at_least_zero(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {number}")
    return number


def _at_least_one(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


_at_least_zero.__name__ = _at_least_one.__name__ = "whole number"  # what argparse says of "many"


def train_reader(parsed: argparse.Namespace, names: Sequence[str], overrides: list[str]) -> Path:
    """Trains the reader of a configuration.

    Args:
        parsed: what `add_arguments` found.
        names: the configuration and the folder.
        overrides: settings.

    Returns:
        The folder of the model.

    Raises:
        ConfigurationError: if there are not two names, or as `write_reader`.
        DataError: as `write_reader`.
        RunFolderError: as `write_reader`.
    """
    if len(names) != 2:
        raise ConfigurationError(
            f"eag-rl reader takes one configuration and one folder, got {len(names)} names "
            f"({', '.join(names) or 'none'}); for instance: eag-rl reader "
            "configs/planted_truth_reader.yaml runs/reader"
        )
    size = ReaderSize(
        patients=parsed.patients,
        epochs=parsed.epochs,
        generated=parsed.generated,
        resampled=parsed.resampled,
        seed=parsed.seed,
        naming=Naming(parsed.naming),
    )
    config, folder = map(Path, names)

    from services.environment import prepare_process

    prepare_process(verbose=False)
    from training.config.loading import load_config
    from training.reader.train import write_reader
    from training.run.progress import Display

    write_reader(load_config([config], overrides), folder, size, Display())
    return folder
