"""The generated descriptions of the configuration: a page for people, a JSON Schema for editors.

`python -m qwen3emb.config.docs` writes both, `--check` fails where they are stale (CI runs it).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from qwen3emb.config.run import OPERATIONAL, RunConfig, json_schema

__all__ = ["PAGE", "SCHEMA", "main", "markdown", "rendered"]

PAGE = Path("docs/configuration.md")
SCHEMA = Path("examples/schema.json")

_HEAD = """# Configuration

*Generated from the config classes by `python -m qwen3emb.config.docs`; do not edit.*

One YAML per run, one section per stage. `qwen3emb check-config FILE` validates it without starting anything
and names the nearest valid key for a typo; `--set section.key=value` overrides a key on every command.
Editors check and complete the files through `examples/schema.json`.

A stage's section is part of its fingerprint: changing it means running that stage, and those that read it,
again. Keys that only change how fast a stage runs are not part of it: {operational}
(the `batch_size` of trainings is).
"""


def markdown() -> str:
    """The page: a table of keys, types, defaults and meanings for each section."""
    parts = [_HEAD.format(operational=", ".join(f"`{name}`" for name in sorted(OPERATIONAL)))]
    for model, places in _sections(RunConfig, "").items():
        title = ", ".join(f"`{place}`" for place in places) if places != [""] else "Top level"
        parts.append(f"## {title}\n\n{_flat(model.__doc__)}\n")
        rows = [_row(name, info) for name, info in model.model_fields.items()]
        parts.append("| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _sections(model: type[BaseModel], place: str) -> dict[type[BaseModel], list[str]]:
    """Every section class with the keys it is used at, in the order of the file."""
    places: dict[type[BaseModel], list[str]] = {model: [place]}
    for name, info in model.model_fields.items():
        inner = _section_of(info.annotation)
        if inner is None:
            continue
        many = "[]" if get_origin(info.annotation) is list else ""
        for section, keys in _sections(inner, f"{place}.{name}{many}".lstrip(".")).items():
            places.setdefault(section, []).extend(keys)
    return places


def _section_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _row(name: str, info: FieldInfo) -> str:
    limits = _limits(info)
    kind = _type(info.annotation) + (f", {limits}" if limits else "")
    return f"| `{name}` | {_cell(kind)} | {_cell(_default(info))} | {_cell(_flat(info.description))} |"


def _type(annotation: Any) -> str:
    """A type as the page names it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_type(part) for part in inner if part is not NoneType)
    if origin is Annotated:
        return _type(inner[0])
    if origin in (list, tuple):
        return f"list of {_type(inner[0])}"
    if origin in (dict, Mapping):
        return f"map of {_type(inner[0])} to {_type(inner[1])}"
    if _section_of(annotation):
        return "section"
    return {"str": "text", "int": "integer", "float": "number", "bool": "yes/no"}[annotation.__name__]


def _limits(info: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{sign} {getattr(m, name)}" for m in info.metadata for name, sign in signs.items() if hasattr(m, name)]
    return ", ".join(bounds)


def _default(info: FieldInfo) -> str:
    """The default as it would stand in the YAML; sections show theirs in their own table."""
    value = info.get_default(call_default_factory=True)
    if info.is_required() or value is PydanticUndefined:
        return "**required**"
    if isinstance(value, BaseModel):
        return ""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def rendered() -> dict[Path, str]:
    """Content of every generated file, by its path in the project."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **json_schema()}
    return {PAGE: markdown(), SCHEMA: json.dumps(schema, indent=2, ensure_ascii=False) + "\n"}


def main(words: list[str] | None = None, root: Path = Path()) -> int:
    """Write the files below `root`, or with `--check` say which are stale; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m qwen3emb.config.docs --check")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where a file is stale")
    check = parser.parse_args(words).check
    stale = [p for p, text in rendered().items() if not (root / p).is_file() or (root / p).read_text("utf-8") != text]
    if check and stale:
        names = " and ".join(str(path) for path in stale)
        print(
            f"error: {names} do not match the config classes; run python -m qwen3emb.config.docs",
            file=sys.stderr,
        )
        return 1
    for path in stale:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(rendered()[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
