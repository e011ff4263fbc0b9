"""The catalog: one YAML file per well-known model beside this one, found by a forgiving name."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from planner.errors import unknown_name
from planner.files import read_yaml
from planner.model import ModelSpec
from planner.models.spec import read_spec

FOLDER = Path(__file__).parent

# Names under which a model is published that no rule below leads to the catalog's own.
_ALIASES = {
    "llama-4-maverick-17b-128e": "llama-4-maverick",
    "llama-4-scout-17b-16e": "llama-4-scout",
    "phi-3-mini-4k": "phi-3-mini",
    "phi-3-mini-128k": "phi-3-mini",
    "qwen3-coder-480b": "qwen3-coder-480b-a35b",
    "deepseek-v3-0324": "deepseek-v3",
    "deepseek-r1-0528": "deepseek-r1",
    "deepseek-v3.2-exp": "deepseek-v3.2",
    "openai-gpt2": "gpt2",
    "gpt-2": "gpt2",
    "gpt2-small": "gpt2",
}
# Trained variants of one architecture: their weights have the same shapes.
_VARIANT = re.compile(r"-(?:instruct|base|chat|it|pt|hf|fp8|v0\.[0-9]|original|[0-9]{4})$")


@cache
def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"), key=lambda path: path.stem)}


def catalog_names() -> list[str]:
    """Names of the models that ship with the package, in alphabetical order."""
    return list(_files())


def find_name(name: str) -> str | None:
    """The catalog's name for `name`: case, an ``org/`` prefix and endings such as ``-Instruct`` do not matter."""
    short = name.strip().lower().rsplit("/", 1)[-1].replace("_", "-").removeprefix("meta-")
    while True:
        short = _ALIASES.get(short, short)
        if short in _files():
            return short
        shorter = _VARIANT.sub("", short)
        if shorter == short:
            return None
        short = shorter


def load_named(name: str) -> ModelSpec:
    """The catalog's model of this name; only its own file is read."""
    found = find_name(name)
    if found is None:
        raise unknown_name("model", name, catalog_names())
    return read_spec(read_yaml(_files()[found]), f"{found}.yaml")
