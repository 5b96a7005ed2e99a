"""Reads a run's configuration: YAML files from left to right, then `section.key=value`."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ehr.errors import ConfigurationError
from training.config.run import RunConfig
from training.config.strict_yaml import DuplicateKeyError, read_yaml

_RENAMED = {"prompt.feature_order_shuffle": "evaluate.feature_order_shuffle"}
"""Keys of earlier versions, with what they are called now."""

_PRESETS = "presets"
"""Name of the folder of presets."""

_COMMENT = re.compile(r"\s#")


def load_config(files: Sequence[Path], overrides: Sequence[str] = ()) -> RunConfig:
    """The resolved configuration, named after the first file unless `run.name` is set.

    Args:
        files: YAML files; a later file wins over an earlier one, key by key.
        overrides: `section.key=value`, the value read as YAML; they win over all files.

    Raises:
        ConfigurationError: for a missing or unreadable file, a setting that is given twice in one
            file or in the arguments, an unknown key (with its path and the nearest valid name) or
            a value that does not fit, or a preset before another file.
    """
    _refuse_presets_before_others(files)
    tree: dict[str, Any] = {}
    for file in files:
        _merge(tree, _read_yaml(file))
    given: dict[str, str] = {}
    for override in overrides:
        settings = _read_override(override)
        _refuse_second(settings, override, given)
        _merge(tree, settings)
    if files:
        if tree.get("run") is None:
            tree["run"] = {}
        if isinstance(tree["run"], dict) and tree["run"].get("name") is None:
            tree["run"]["name"] = files[0].stem
    _check_keys(tree, RunConfig, ())
    return validated(tree)


def validated(tree: dict[str, Any]) -> RunConfig:
    """The configuration that a tree of settings is.

    Raises:
        ConfigurationError: for a value that does not fit, by itself or beside another.
    """
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from None


def _refuse_presets_before_others(files: Sequence[Path]) -> None:
    """A preset would lose what the file behind it sets too, and the run would have its name."""
    is_preset = [file.absolute().parent.name == _PRESETS for file in files]
    for place, file in enumerate(files):
        if is_preset[place] and not all(is_preset[place:]):
            other = files[place + is_preset[place:].index(False)]
            raise ConfigurationError(
                f"{str(file)!r} is a preset, which is given behind a configuration: {str(other)!r} "
                "would replace what both set; change their order"
            )


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = read_yaml(file.read_text("utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(
            file.name, [p.name for p in file.parent.glob("*.yaml")] if file.parent.is_dir() else []
        )
        hint = f"; did you mean {file.parent / near[0]}?" if near else ""
        if file.name.endswith((",", "]")):
            hint = "; if it is part of a list, quote the whole argument: 'learn.seeds=[17, 18]'"
        raise ConfigurationError(f"configuration file {str(file)!r} does not exist{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"configuration file {str(file)!r} is unreadable: {error}"
        ) from None
    except DuplicateKeyError as error:
        raise ConfigurationError(f"{file}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(
            f"{file} is not valid YAML: {' '.join(str(error).split())}"
        ) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigurationError(
            f"{file} must hold sections such as `cohort:`, got {type(tree).__name__}"
        )
    return tree


def _read_override(override: str) -> dict[str, Any]:
    path, _, text = override.partition("=")
    keys = path.split(".")
    if len(keys) < 2 or not all(keys):
        raise ConfigurationError(
            f"an override is section.key=value, such as search.num_patients=4; got {override!r}"
        )
    if _COMMENT.search(text) and text.strip()[0] not in "\"'[{":
        raise ConfigurationError(
            f"in the argument {override!r} what follows ' #' would be read as a comment; put the "
            f"value in quotes of its own: {path}='\"{text}\"'"
        )
    value: Any
    try:
        value = read_yaml(text) if text else None
    except DuplicateKeyError as error:
        raise ConfigurationError(f"in the argument {override!r}: {error}") from None
    except yaml.YAMLError:
        value = text
    for key in reversed(keys):
        value = {key: value}
    return value


def _refuse_second(settings: dict[str, Any], override: str, given: dict[str, str]) -> None:
    """Refuses an argument that sets what another has set; `given` is what they have, by path."""
    for path in _paths(settings):
        for known, other in given.items():
            if f"{known}.".startswith(f"{path}.") or f"{path}.".startswith(f"{known}."):
                raise ConfigurationError(
                    f"{known} is set twice, by {other!r} and by {override!r}; leave one of them out"
                )
        given[path] = override


def _paths(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _paths(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _merge(target: dict[str, Any], source: dict[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        elif isinstance(value, dict):
            target[key] = {}
            _merge(target[key], value)
        else:
            target[key] = value


def _check_keys(tree: dict[str, Any], model: type[BaseModel], path: tuple[str, ...]) -> None:
    for key, value in tree.items():
        where = ".".join((*path, str(key)))
        if where in _RENAMED:
            raise ConfigurationError(
                f"configuration key {where!r} is called {_RENAMED[where]!r} now; it changes what a "
                "finished run is asked, not how one is trained"
            )
        if key not in model.model_fields:
            valid = list(model.model_fields)
            near = difflib.get_close_matches(str(key), valid, n=1, cutoff=0.5)
            nearest = ".".join((*path, near[0])) if near else None
            elsewhere = [] if nearest else _sections_with(str(key))
            hint = (
                f"did you mean {nearest!r}?"
                if nearest
                else f"did you mean {elsewhere[0]!r}?"
                if elsewhere
                else f"valid names here: {', '.join(valid)}"
            )
            raise ConfigurationError(f"unknown configuration key {where!r}; {hint}")
        section = model.model_fields[key].annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            if not isinstance(value, dict):
                raise ConfigurationError(
                    f"{where!r} is a section with keys of its own, got {value!r}"
                )
            _check_keys(value, section, (*path, str(key)))


def _sections_with(key: str) -> list[str]:
    found = []
    for name, field in RunConfig.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            near = difflib.get_close_matches(key, list(section.model_fields), n=1, cutoff=0.8)
            found += [f"{name}.{match}" for match in near]
    return found


def _explain(error: ValidationError) -> str:
    problems = []
    for item in error.errors()[:5]:
        where = ".".join(str(part) for part in item["loc"] if not isinstance(part, int))
        message = item["msg"].removeprefix("Value error, ")
        # What is said about a section as a whole names its values itself.
        is_section = isinstance(item["input"], BaseModel) or item["type"] == "value_error"
        is_whole = is_section and isinstance(item["input"], dict | BaseModel)
        got = "" if is_whole else f", got {item['input']!r}"
        problems.append(f"{where}: {message}{got}" if where else message)
    return "configuration does not fit: " + "; ".join(problems)
