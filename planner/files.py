"""Reading and writing files safely: YAML and JSON as plain mappings, writes that are whole or absent."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import yaml

from planner.errors import InputError, shown

MAX_BYTES = 10_000_000
MAX_DEPTH = 64
MAX_NODES = 1_000_000

# What PyYAML's own constructors raise for an explicit tag on a value that does not suit it, such as `!!bool x`.
_TAG_ERRORS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)

# libyaml's parser is ten times faster than the pure one; both have the same resolvers and constructors.
_Base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[valid-type,misc]  # the base is chosen at import
    """Safe YAML with the scalars of YAML 1.2: `yes`, `on`, `1:30` and dates stay text, `1e3` is a number."""

    yaml_implicit_resolvers: dict[str, list[object]] = {}  # noqa: RUF012  # PyYAML's own class attribute


def _teach_scalars() -> None:
    number = list("-+0123456789.")
    patterns = [
        ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
        ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
        ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", number),
        ("float", r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$", number),
    ]
    for tag, pattern, first in patterns:
        _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), first)
    _Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(loader.construct_scalar(node)))
    _Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[object, object]:
    """A mapping whose keys are all different; YAML itself would let the last one win in silence."""
    pairs: dict[object, object] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise InputError(f"line {line}", key, "a mapping key that is text")
        if key in pairs:
            raise InputError(f"line {line}", key, "a key that its mapping does not hold already")
        pairs[key] = loader.construct_object(value_node, deep=True)
    return pairs


_teach_scalars()


def read_yaml(path: Path) -> dict[str, object]:
    """The mapping in a YAML file; `InputError` for a missing, huge, malformed or unsafe file."""
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, source: str) -> dict[str, object]:
    """The mapping in a YAML text; `source` names it in errors."""
    try:
        _refuse_bombs(text)
        value = yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader
    except InputError as error:
        raise error.within(source) from None
    except (yaml.YAMLError, *_TAG_ERRORS) as error:
        raise InputError("text", _first_line(error), "well-formed plain YAML", source) from None
    return _checked(value, source)


def read_json(path: Path) -> dict[str, object]:
    """The mapping in a JSON file; `InputError` for a missing, huge or malformed file, and for NaN and Infinity."""
    return parse_json(read_text(path), str(path))


def parse_json(text: str, source: str) -> dict[str, object]:
    """The mapping in a JSON text; a key written twice must have the same value both times."""
    try:
        value = json.loads(text, object_pairs_hook=_without_conflict, parse_constant=_refuse_constant)
    except InputError as error:
        raise error.within(source) from None
    except (ValueError, RecursionError) as error:
        raise InputError("text", _first_line(error), "well-formed JSON", source) from None
    return _checked(value, source)


def read_text(path: Path, most: int | None = None) -> str:
    """The UTF-8 text of an ordinary file of at most `most` bytes (`MAX_BYTES` unless given)."""
    most = MAX_BYTES if most is None else most
    try:
        if not path.is_file():
            raise InputError("file", str(path), "a file that exists")
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except (OSError, ValueError) as error:
        raise InputError("file", str(path), f"a readable file ({_first_line(error)})") from None
    if len(data) > most:
        raise InputError("file", str(path), f"a file of at most {most} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("file", str(path), f"UTF-8 text (byte {error.start} is not)") from None


def expanded(path: str | Path) -> Path:
    """A path with `~` replaced by a home folder; as it is where there is no such home, to be refused as any other."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text so that a reader sees the old file or the new one, never a part."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write bytes under a temporary name in the same folder, then rename; `InputError` if it cannot be written.

    A link stays, and what it names is replaced; a device or a pipe (`/dev/stdout`) is written to.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as stream:
                stream.write(data)
            return
        path = path.resolve()
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError("file", str(path), f"a path that can be written ({error.strerror})") from None


def _refuse_bombs(text: str) -> None:
    """Aliases can unfold a small file into a huge value, and deep nesting overflows the composer's stack."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        mark = event.start_mark
        where = f"line {mark.line + 1}" if mark else "text"
        if isinstance(event, yaml.AliasEvent):
            raise InputError(where, f"*{event.anchor}", "values written out, without aliases")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise InputError(where, depth, f"at most {MAX_DEPTH} levels of nesting")
        if count > MAX_NODES:
            raise InputError("text", count, f"at most {MAX_NODES} values")


def _without_conflict(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result and result[key] != value:
            raise InputError(key, value, "one value for one key (it is written twice)")
        result[key] = value
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise InputError("number", name, "finite numbers")


def _checked(value: object, source: str) -> dict[str, object]:
    """`value` itself when it is a mapping of plain finite data at most `MAX_DEPTH` deep."""
    if not isinstance(value, dict):
        raise InputError("top level", value, "a mapping of names to values", source)
    for path, depth, found in _walk(value):
        if depth > MAX_DEPTH:
            raise InputError(path, type(found).__name__, f"at most {MAX_DEPTH} levels of nesting", source)
        if isinstance(found, float) and not math.isfinite(found):
            raise InputError(path, found, "a finite number", source)
        if not isinstance(found, str | int | float | dict | list | None):
            raise InputError(path, found, "text, a number, true, false, null, a list or a mapping", source)
    return value


def _walk(root: dict[str, object]) -> Iterator[tuple[str, int, object]]:
    """Every value below `root` with its path and depth, without recursion."""
    stack: list[tuple[str, int, object]] = [(key, 1, value) for key, value in root.items()]
    while stack:
        path, depth, value = stack.pop()
        yield path, depth, value
        if isinstance(value, dict):
            stack.extend((f"{path}.{key}", depth + 1, child) for key, child in value.items())
        elif isinstance(value, list):
            stack.extend((f"{path}[{index}]", depth + 1, child) for index, child in enumerate(value))


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else shown(text, 120)
