"""YAML without its traps, and pydantic's errors in words that name the path, the value and what would be valid."""

import difflib
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError


class Loader(yaml.SafeLoader):
    """Safe YAML that reads 3e-4 as a number and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_yaml(path: Path) -> Any:
    """The content of a YAML file; a ValueError names file, line and column of what is malformed."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8") from None
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{path}{where}: malformed YAML: {getattr(error, 'problem', None) or error}") from None


def parse_value(text: str) -> Any:
    """A value given on the command line, read as YAML would read it; ValueError where that is malformed."""
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is malformed YAML: {getattr(error, 'problem', None) or error}") from None


def explain(error: ValidationError, model: type[BaseModel], path: str = "") -> list[str]:
    """One line for each thing that is wrong."""
    return [explain_one(dict(item), model, path) for item in error.errors(include_url=False)]


def explain_one(item: dict[str, Any], model: type[BaseModel], path: str) -> str:
    location = ".".join([path, *map(str, item["loc"])] if path else map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        key, valid = str(item["loc"][-1]), list(model_at(model, item["loc"][:-1]).model_fields)
        return f"{location}: unknown key{did_you_mean(key, valid)}; valid here: {', '.join(valid)}"
    if item["type"] == "missing":
        return f"{location}: missing; {describe(model, item['loc'])}"
    message = item["msg"].removeprefix("Value error, ")
    value = repr(item["input"])
    return f"{location}: {message}; got {value if len(value) < 80 else value[:77] + '...'}"


def model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The model that a location inside `model` leads to."""
    for step in location:
        if isinstance(step, str) and step in model.model_fields:
            inner = models_in(model.model_fields[step].annotation)
            model = inner[0] if inner else model
    return model


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def describe(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    info = model_at(model, location[:-1]).model_fields.get(str(location[-1]))
    return info.description if info and info.description else "it has no default"


def did_you_mean(word: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(word, valid, 1)
    return f", did you mean {close[0]!r}?" if close else ""
