"""The command line: `eag-rl STAGE CONFIG [CONFIG ...] [section.key=value ...]`.

Heavy imports happen after the arguments are parsed, so that `--help` answers at once. Exit
status: 0 done, 1 failed, 2 bad input or configuration, 130 interrupted. The last line of standard
error is the error in one line, the last line of standard output the run folder.
"""

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.reader.command import DESCRIPTION, add_arguments, train_reader
from training.run import stages
from training.run.interruption import raise_on_signals

STAGES = {stage.name: stage.says for stage in stages.STAGES}

SEARCH = """\
Expert-guided Monte Carlo tree search: the untrained model asks and answers subquestions
about training patients, and every finished trajectory is rewarded with the outcome and the
expert's attention.

While it runs it shows rollouts and patients done, rates, cache hits, invalid scores, the best
reward and the time left. It writes RUN/search: trajectories.parquet, ledger.json, and trees/
for the report. Every completion is logged before it is used: a search that was stopped or
failed goes on with the same command, and grows the same trees.

settings that decide what it costs, with their defaults (all of them: docs/configuration.md):
  search.num_patients=6     training patients, null = all
  search.num_rollouts=8     N, simulations a patient
  search.num_candidates=3   d, subquestions an expansion
  search.max_depth=7        T, where the final is forced
and how fast it goes, without changing what comes out:
  search.num_actors=1, search.trees_in_flight=8, generator.num_replicas=1

example:
  eag-rl search configs/demo.yaml search.num_rollouts=4 --run-dir runs/search
"""

LEARN = """\
An experiment: several ways to train (arms), each with several random seeds. All share one
cohort, one expert and one Stage 1, and are asked about the same test patients.

The unit of work is one arm with one seed. Each has a run folder of its own, RUN/arms/ARM/seed-N,
with a report.html. After every unit RUN/learn/results.json and the page RUN/learn.html are written
again. The same command resumes after any stop and skips what is done; more seeds or arms are
added by naming them.

settings that decide what it costs (all of them: docs/configuration.md), for example:
  "learn.arms=[stage1,stage1_grpo,eag_rl]"   which arms; docs/experiments.md says what each is
  "learn.seeds=[17,18]"                      how often each arm is trained
  grpo.steps=2 evaluate.num_patients=16      how long, and how many test patients are asked
  prompt.kind=short_answer search.method=samples   some 40 tokens an answer, no tree search

example (the first command makes the small model that the second one trains, some minutes):
  eag-rl reader configs/planted_truth_reader.yaml runs/reader --naming abnormal
  eag-rl learn configs/planted_truth_reader.yaml "learn.seeds=[17]"
"""

EPILOG = """\
examples:
  eag-rl run configs/demo.yaml
  eag-rl run configs/tjh_cpu.yaml cohort.path=/data/tjh
  eag-rl run configs/demo.yaml configs/presets/dapo.yaml --run-dir runs/demo-dapo
  eag-rl search configs/demo.yaml search.num_rollouts=4
  eag-rl doctor configs/demo.yaml

A stage first runs the earlier stages that the run folder lacks: in an empty folder
`eag-rl report CONFIG` runs everything. The same command resumes an interrupted run; a second run
with the same inputs does nothing. Every setting is described in docs/configuration.md, an
experiment in `eag-rl learn --help`.
"""


_Commands = Any
"""What `add_subparsers` returns, whose class argparse keeps private."""


def build_parser() -> argparse.ArgumentParser:
    """The argument parser; imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="eag-rl",
        description="Teach a language model to reason over health records, guided by the attention "
        "of an expert model. Research only, not for clinical use.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (
        _add_stages,
        _add_learn,
        _add_reader,
        _add_teacher,
        _add_serve,
        _add_export,
        _add_doctor,
    ):
        add(commands)
    return parser


def _add_stages(commands: _Commands) -> None:
    """Every stage, and `run` for all of them."""
    everything = {"run": "all stages, cohort to report", **STAGES}
    for name, text in everything.items():
        command = commands.add_parser(
            name,
            help=text,
            description=_description(name, text),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_run_arguments(command)
        command.add_argument(
            "--redo",
            metavar="STAGE",
            choices=list(STAGES),
            help="first delete this stage's results and all that follow from them; one of "
            + ", ".join(STAGES),
        )


def _add_learn(commands: _Commands) -> None:
    learn = commands.add_parser(
        "learn",
        help="an experiment: several ways to train, each with several seeds, from one Stage 1",
        description=LEARN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_run_arguments(learn)
    learn.add_argument(
        "--redo",
        metavar="STAGE",
        choices=[name for name in STAGES if name != "report"],
        help="make this stage again, and all after it. One that all units share is made once; "
        "another one in every unit that the command names",
    )


def _add_reader(commands: _Commands) -> None:
    reader = commands.add_parser(
        "reader",
        help="train the small model that experiments on two cores use",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(reader)


def _add_teacher(commands: _Commands) -> None:
    teacher = commands.add_parser(
        "teacher",
        help="compare the search of one run with the plain answers of another",
        description="Compares what two run folders about the same training patients teach at the "
        "same cost: one made with search.method=tree, the other with search.method=samples "
        "(docs/experiments.md).",
    )
    teacher.add_argument("search_run", metavar="SEARCH_RUN", help="with search.method=tree")
    teacher.add_argument("samples_run", metavar="SAMPLES_RUN", help="with search.method=samples")
    teacher.add_argument("--json", metavar="PATH", help="a file for the numbers, too")
    teacher.set_defaults(arguments=[])


def _add_serve(commands: _Commands) -> None:
    serve = commands.add_parser(
        "serve",
        help="keep the expert's HTTP endpoint up until Ctrl-C",
        description="Serves POST /v1/expert/attention on 127.0.0.1:8000 (serve.host, serve.port) "
        "until Ctrl-C; trains the expert first if there is none. The page /docs there describes "
        "every field.",
    )
    _add_run_arguments(serve)


def _add_export(commands: _Commands) -> None:
    export = commands.add_parser(
        "export",
        help="write a run's trajectories and patients as JSON lines for other trainers",
        description="Writes RUN/export/trajectories.jsonl (chats for supervised fine-tuning) and "
        "RUN/export/patients.jsonl (prompts with the columns that the reward reads). RUN needs its "
        "expert for the second file and its search for the first.",
    )
    export.add_argument("run", metavar="RUN", help="a run folder, such as runs/demo")
    export.add_argument(
        "--every-trajectory",
        action="store_true",
        help="all trajectories of the search, not only those kept for fine-tuning",
    )
    export.set_defaults(arguments=[])


def _add_doctor(commands: _Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check versions, models, data, ports and resources, and say what to do",
        description="Checks this machine and what a run needs; it starts nothing. A line that "
        "begins with FIX is to be mended; the line after it says how.",
    )
    doctor.add_argument(
        "arguments",
        nargs="*",
        metavar="CONFIG | section.key=value",
        help="the run to check, as `eag-rl run` takes it (default: a synthetic cohort)",
    )


def _description(stage: str, text: str) -> str:
    if stage == "search":
        return SEARCH
    if stage in ("run", "cohort"):
        return text
    return f"{text}\n\nStages that it needs and that the run folder lacks are run first."


def _add_run_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "arguments",
        nargs="+",
        metavar="CONFIG | section.key=value",
        help="YAML files, such as configs/demo.yaml, then single settings, such as grpo.steps=4. "
        "A later file wins over an earlier one, a setting over all files",
    )
    command.add_argument(
        "--run-dir",
        metavar="DIR",
        help="run folder (default: runs/NAME, NAME = the first configuration's file name)",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, runs the command, and returns the exit status."""
    parsed = _parse(arguments)
    raise_on_signals()
    try:
        return _run(parsed)
    except KeyboardInterrupt:
        redo = getattr(parsed, "redo", None)
        without = f" (without --redo, once {redo} has begun again)" if redo else ""
        print(
            f"interrupted; what is finished is kept, and the same command{without} resumes",
            file=sys.stderr,
        )
        return 130
    except Exception as error:
        from ehr.errors import EagRlError

        if isinstance(error, EagRlError):
            _print_error(str(error))
            return error.exit_status
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            _print_error(_system_error_text(error, parsed))
            return 1
        logging.getLogger(__name__).exception("unexpected failure")
        _print_error(f"{type(error).__name__}: {' '.join(str(error).split())[:2000]}")
        return 1


def _system_error_text(error: OSError, parsed: argparse.Namespace) -> str:
    from ehr.errors import os_error_text

    if isinstance(error, BrokenPipeError):
        # Python flushes standard output once more at its end, and would complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "whoever read the output has closed it; what is finished is kept"
    # What a Ray worker raised stands behind an error with its traceback as text.
    cause = getattr(error, "cause", None)
    place = getattr(parsed, "run_dir", None) or getattr(parsed, "run", None)
    return os_error_text(cause if isinstance(cause, OSError) else error, place)


def _print_error(text: str) -> None:
    """The error as the last line; a table in it (indented lines) stands before that."""
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("  ")]
    rest = [line for line in lines if not line.startswith("  ")]
    print(*table, f"error: {' '.join(' '.join(rest).split())}", sep="\n", file=sys.stderr)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses options and positional arguments in any order."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    if unknown := [argument for argument in rest if argument.startswith("-")]:
        parser.error(f"unknown option {unknown[0]}")
    parsed.arguments += rest
    return parsed


def _run(parsed: argparse.Namespace) -> int:
    from ehr.errors import ConfigurationError
    from ehr.whole_files import in_home
    from training.config.loading import load_config

    files = [Path(a) for a in parsed.arguments if "=" not in a]
    overrides = [a for a in parsed.arguments if "=" in a]
    if parsed.command == "doctor":
        from training.doctor import examine

        return examine(load_config(files, overrides), print)
    if parsed.command == "export":
        return _export(in_home(parsed.run), parsed.every_trajectory)
    if parsed.command == "teacher":
        return _compare_teachers(parsed)
    if parsed.command == "reader":
        print(train_reader(parsed, [str(file) for file in files], overrides).absolute())
        return 0
    if not files:
        raise ConfigurationError(
            "name at least one configuration file, for instance configs/demo.yaml"
        )
    config = load_config(files, overrides)
    if parsed.run_dir == "":
        raise ConfigurationError("--run-dir is empty; name a folder, or leave it out for runs/NAME")
    if parsed.run_dir is not None:
        parsed.run_dir = str(in_home(parsed.run_dir))
    run_dir = Path(parsed.run_dir or Path("runs") / str(config.run.name))
    other = config.evaluate.other_cohort
    paths = {
        "cohort.path": config.cohort.path,
        "evaluate.other_cohort.path": None if other is None else other.path,
    }
    _refuse_relative_paths_in_a_job(parsed.run_dir, paths)
    parsed.run_dir = str(run_dir)

    from services.environment import prepare_process

    prepare_process(config.run.verbose)  # Ray reads some of it when it is imported
    from training.main_job import run_stages, serve

    if parsed.command == "learn":
        from training.experiments.learn import learn

        for line in learn(config, run_dir, redo=parsed.redo):
            print(line)
    elif parsed.command == "serve":
        serve(config, run_dir)
    else:
        target = None if parsed.command == "run" else parsed.command
        for line in run_stages(config, run_dir, target=target, redo=parsed.redo):
            print(line)
    print(run_dir.absolute())
    return 0


def _export(run_dir: Path, every_trajectory: bool) -> int:
    from training.interop.export import export

    for line in export(run_dir, every_trajectory=every_trajectory):
        print(line)
    print(run_dir.absolute())
    return 0


def _compare_teachers(parsed: argparse.Namespace) -> int:
    from ehr.whole_files import in_home, write_json
    from training.experiments.teacher import compare, ratios, table
    from training.run.versions import commit

    rows = compare(in_home(parsed.search_run), in_home(parsed.samples_run))
    print(*table(rows), sep="\n")
    if parsed.json is not None:
        found = {"commit": commit(), "rows": rows, "ratios": ratios(rows)}
        write_json(in_home(parsed.json), found)
    return 0


def _refuse_relative_paths_in_a_job(
    run_dir: str | None, cohort_paths: Mapping[str, str | None]
) -> None:
    from ehr.errors import ConfigurationError

    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return
    reason = (
        "a submitted job works in a copy of the checkout that is deleted later: make it absolute"
    )
    if run_dir is None or not Path(run_dir).is_absolute():
        raise ConfigurationError(f"--run-dir is {run_dir!r}: {reason}")
    for name, path in cohort_paths.items():
        if path is not None and not Path(path).is_absolute():
            raise ConfigurationError(f"{name} is {path!r}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
