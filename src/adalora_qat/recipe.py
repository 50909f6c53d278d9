"""Recipes: a run's configuration as a YAML file, and overrides on the command line.

A recipe may extend another; ``section.key=value`` overrides it. Every problem is reported at
once, with the nearest known key for a typo. The resolved copy is written into each run folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from adalora_qat.config import RunConfig
from adalora_qat.errors import ConfigError

# The longest recipe of the package has 2 kB and 4 levels.
_LARGEST, _DEEPEST = 2**17, 20
_SHOWN = 80
RECIPES = resources.files("adalora_qat").joinpath("recipes")


class _Loader(yaml.SafeLoader):
    """Plain YAML without aliases, which can make a few bytes billions, and not deep."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, unless it is an alias or lies too deep."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken: write the value out")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {_DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(text: str) -> Any:
    """Read YAML from outside: no objects, no aliases, bounded depth.

    Raises
    ------
    yaml.YAMLError
        Saying what is not taken, and where it is not YAML.
    """
    return yaml.load(text, Loader=_Loader)


def packaged_names(folder: Traversable) -> list[str]:
    """Return the names of the YAML files in a folder of the package, without their ending."""
    return sorted(
        Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def named_text(name_or_file: str | Path, folder: Traversable, what: str) -> str:
    """Return the text of a YAML file of the user's, or of one of the package by its name.

    Parameters
    ----------
    name_or_file : a path that ends in ``.yaml`` or ``.yml``, or a name.
    folder : where the package keeps those that have names.
    what : what the file is, for messages.

    Raises
    ------
    ConfigError
        If there is none, with the nearest known name; or it cannot be read.
    """
    path = Path(name_or_file)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ConfigError(f"{what} file {path} does not exist")
        return _text_of(path, what)
    known = packaged_names(folder)
    if str(name_or_file) in known:
        return folder.joinpath(f"{name_or_file}.yaml").read_text("utf-8")
    near = difflib.get_close_matches(str(name_or_file), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"unknown {what} {str(name_or_file)!r}{hint} (known: {', '.join(known)}, or a path to a "
        ".yaml file)"
    )


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe by name or path and apply ``section.key=value`` overrides.

    Raises
    ------
    ConfigError
        With every problem found, one a line.
    """
    values = _resolve(recipe, ())
    for override in overrides:
        _apply(values, override)
    return validated(values, str(recipe))


def validated(values: dict[str, Any], origin: str) -> RunConfig:
    """Build a configuration from plain values, reporting every problem at once."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from None


def dump_config(config: RunConfig) -> str:
    """Return the configuration as YAML that ``load_config`` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _resolve(recipe: str | Path, seen: tuple[str, ...]) -> dict[str, Any]:
    """Read a recipe over the one it ``extends``, section by section."""
    if str(recipe) in seen:
        raise ConfigError(f"recipes extend each other in a circle: {' → '.join(seen)} → {recipe}")
    values = _read_recipe(recipe)
    parent = values.pop("extends", None)
    return values if parent is None else _merged(_resolve(parent, (*seen, str(recipe))), values)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = _merged(below, value)
        else:
            merged[key] = value
    return merged


def _read_recipe(recipe: str | Path) -> dict[str, Any]:
    text = named_text(recipe, RECIPES, "recipe")
    try:
        values = read_yaml(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{recipe} is not a recipe in YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{recipe} must hold sections (a mapping), got {type(values).__name__}")
    return values


def _text_of(path: Path, what: str) -> str:
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise ConfigError(f"{path} has {size:,} bytes; a {what} has {_LARGEST:,} at most")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8 text") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r} must have the form section.key=value")
    *sections, leaf = key.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ConfigError(f"override {override!r}: {section} is a value, not a section")
    try:
        # YAML 1.1 reads 1e-3 as a string; a number is what a user means by it.
        place[leaf] = _number(text) if _number(text) is not None else read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {_short(override)}: the value is not YAML; a word that begins with * or "
            "holds a colon wants quotes inside, as in 'adapt.targets=[\"*.qkv\"]'"
        ) from error


def _number(text: str) -> float | int | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "configuration"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(problem["loc"][-1]), _known(problem["loc"][:-1]), n=1)
        hint = (
            f", did you mean {'.'.join([*map(str, problem['loc'][:-1]), near[0]])}?" if near else ""
        )
        return f"unknown key {where}{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}={_short(problem['input'])}: {message}" if problem["loc"] else message


def _known(location: Sequence[Any]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for part in location:
        field = section.model_fields.get(str(part))
        if field is None:
            return []
        candidates = [field.annotation, *get_args(field.annotation)]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        section = nested[0]
    return list(section.model_fields)
