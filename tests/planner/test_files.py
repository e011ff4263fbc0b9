"""Files are read as plain finite data or refused with one message, and written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import files
from planner.errors import InputError


def test_yaml_scalars_are_those_of_yaml_1_2():
    text = "a: yes\nb: 1e3\nc: 010\nd: 1:30\ne: 2024-01-01\nf: true\ng: ~\nh:\ni: 1.5\nj: -3\nk: '1'\nl: on"
    assert files.parse_yaml(text, "t") == {
        **{"a": "yes", "b": 1000.0, "c": "010", "d": "1:30", "e": "2024-01-01", "f": True},
        **{"g": None, "h": None, "i": 1.5, "j": -3, "k": "1", "l": "on"},
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &x 1\nb: *x", "without aliases"),
        ("a: 1\na: 2", "does not hold already"),
        ("- 1", "mapping"),
        ("", "mapping"),
        ("a: [", "well-formed"),
        ("1: 2", "key that is text"),
        ("a: {1: 2}", "key that is text"),
        ("[" * 5000, "levels of nesting"),
        ("a: !!python/object/apply:os.system [echo]", "well-formed"),
        ("a: 1e999", "finite"),
        ("a: " + "9" * 5000, "well-formed"),
        ("a: !!set {b}", "text, a number"),
        ("a: !!bool x", "well-formed"),
        ("a: \x00", "well-formed"),
        ("a: 1\n---\nb: 2", "well-formed"),
    ],
)
def test_unsafe_or_malformed_yaml_is_refused(text, reason):
    with pytest.raises(InputError, match=reason) as caught:
        files.parse_yaml(text, "t.yaml")
    assert str(caught.value).startswith("t.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": 1, "a": 2}',
        "[1]",
        "{",
        "[" * 100_000,
        '{"a":' * 80 + "1" + "}" * 80,
    ],
)
def test_malformed_json_is_refused(text):
    with pytest.raises(InputError, match=r"^t\.json: "):
        files.parse_json(text, "t.json")


def test_json_key_written_twice_with_one_value_passes():
    assert files.parse_json('{"a": 1, "a": 1}', "t") == {"a": 1}


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(text):
    for parse in (files.parse_yaml, files.parse_json):
        with contextlib.suppress(InputError):
            assert isinstance(parse(text, "t"), dict)


def test_what_is_not_an_ordinary_file_is_refused(tmp_path: Path):
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    for path in (tmp_path / "none.json", tmp_path, Path("/dev/zero"), Path("a\0b"), tmp_path / "latin.json"):
        with pytest.raises(InputError, match=r"^file is"):
            files.read_json(path)


def test_huge_file_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    (tmp_path / "a.yaml").write_text("a: 12345678")
    with pytest.raises(InputError, match="at most 10 bytes"):
        files.read_yaml(tmp_path / "a.yaml")


def test_too_many_yaml_values_are_refused(monkeypatch):
    monkeypatch.setattr(files, "MAX_NODES", 10)
    with pytest.raises(InputError, match="at most 10 values"):
        files.parse_yaml("a: [" + "1," * 20 + "]", "t")


def test_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "a.txt"
    files.write_text_atomic(path, "old")
    files.write_text_atomic(path, "nü")
    assert path.read_bytes() == "nü".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_write_where_nothing_can_be_written_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="can be written"):
        files.write_text_atomic(tmp_path / "none" / "a.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="can be written"):
        files.write_bytes_atomic(tmp_path / "folder", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_pipe_is_written_to_and_stays_and_a_link_keeps_what_it_names(tmp_path: Path) -> None:
    """As root, a renamed file would take the place of `/dev/stdout`, or of `/dev/null` for the whole machine."""
    pipe, file, link = tmp_path / "pipe", tmp_path / "file", tmp_path / "link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write_text_atomic(pipe, "told")
    assert os.read(reader, 10) == b"told"
    os.close(reader)
    assert pipe.is_fifo()
    file.write_text("old")
    link.symlink_to(file)
    files.write_text_atomic(link, "new")
    assert link.is_symlink() and file.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]
