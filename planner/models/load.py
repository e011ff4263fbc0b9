"""From whatever names a model (catalog name, file, directory, mapping) to its spec."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from planner.errors import InputError
from planner.files import read_json, read_yaml
from planner.model import ModelSpec
from planner.models.catalog import find_name, load_named
from planner.models.hf import read_config
from planner.models.spec import read_spec

_SUFFIXES = (".json", ".yaml", ".yml")


def load_model(ref: str | Path | Mapping[str, object], source: str = "") -> ModelSpec:
    """The model that `ref` names.

    `ref` is a catalog name; the path of a Hugging Face ``config.json``, of a directory that holds one, or of a spec in our
    own format; or a mapping in our format (or in Hugging Face's, known by its ``model_type``). `source` is the file that a
    mapping was found in, for messages.

    `InputError` for an unknown name, a file that cannot be read, a wrong field, or a structure that is not understood.
    """
    if isinstance(ref, Mapping):
        return _read(ref, source, "inline")
    if not isinstance(ref, str | Path):
        raise InputError("model", ref, "a catalog name, a path, or a mapping", source)
    if isinstance(ref, str) and not _is_path(ref):
        return load_named(ref)
    return _load_path(Path(ref))


def _is_path(ref: str) -> bool:
    """A plain name is the catalog's even where a folder is called the same; `./name` means the folder."""
    if ref.lower().endswith(_SUFFIXES) or ref.startswith((".", "/", "~")):
        return True
    try:
        exists = Path(ref).exists()
    except (OSError, ValueError):
        return False
    return exists and ("/" in ref or find_name(ref) is None)


def _load_path(path: Path) -> ModelSpec:
    try:
        path = path.expanduser()
        is_folder = path.is_dir()
    except (OSError, ValueError, RuntimeError):  # a path with a zero byte, a home that does not exist
        is_folder = False
    if not is_folder:
        return _load_file(path)
    if (path / "hf_quant_config.json").exists():
        raise InputError("model", str(path / "hf_quant_config.json"), "a model without ModelOpt quantization")
    if not (path / "config.json").is_file():
        raise InputError("model", str(path), "a directory that holds a config.json")
    return _load_file(path / "config.json")


def _load_file(path: Path) -> ModelSpec:
    mapping = read_yaml(path) if path.suffix.lower() in (".yaml", ".yml") else read_json(path)
    name = path.parent.resolve().name if path.stem == "config" else path.stem
    return _read(mapping, str(path), name or "model")


def _read(mapping: Mapping[str, object], source: str, name: str) -> ModelSpec:
    foreign = "attention" not in mapping and any(key in mapping for key in ("model_type", "architectures", "text_config"))
    if foreign:
        return read_config(mapping, source, name)
    return read_spec({"name": name, **mapping}, source)
