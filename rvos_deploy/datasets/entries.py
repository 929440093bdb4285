"""JSON of others, read with care: whatever is wrong is named by file and entry."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rvos_deploy.errors import InputError

Kind = TypeVar("Kind")

_NAMES: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
_MAX_BYTES = 8 * 2**30
_MAX_NAME_BYTES = 200
_MAX_DIGITS = 15
_SHOWN = 60


@dataclass(frozen=True)
class Entry:
    """A value in a JSON file that knows where it stands there."""

    file: Path
    where: str
    value: Any

    def fault(self, text: str) -> InputError:
        """An error that names file and entry."""
        return InputError(f"{self.file}: {self.where or 'the file'}: {text}")

    def has(self, key: str) -> bool:
        """Whether an object has a value there (``null`` is none)."""
        return self.as_a(dict).get(key) is not None

    def get(self, key: str) -> Entry:
        """The value of a key. InputError when it is missing."""
        if key not in self.as_a(dict):
            raise self.fault(f"'{key}' is missing")
        return self._child(key, self.value[key])

    def items(self) -> Iterator[tuple[str, Entry]]:
        """Keys and values of an object."""
        for key, value in self.as_a(dict).items():
            yield key, self._child(key, value)

    def elements(self) -> Iterator[Entry]:
        """The values of a list."""
        for index, value in enumerate(self.as_a(list)):
            yield self._child(str(index), value)

    def as_a(self, kind: type[Kind]) -> Kind:
        """The value, which must be of ``kind``: dict, list or str."""
        if not isinstance(self.value, kind):
            raise self.fault(f"{_NAMES[kind]} was needed, found {_shown(self.value)}")
        return self.value

    def as_text(self) -> str:
        """The value, a string that can be written to a file."""
        text = self.as_a(str)
        if not _is_unicode(text):
            raise self.fault(f"half of a surrogate pair, which is no text: {_shown(text)}")
        return text

    def as_name(self) -> str:
        """The value, a string that names one file or folder and leads nowhere else."""
        return self._name(self.as_a(str))

    def named_items(self) -> Iterator[tuple[str, Entry]]:
        """Keys and values of an object whose keys are names of folders, as :meth:`as_name`."""
        for key, entry in self.items():
            yield self._name(key), entry

    def as_id(self) -> int:
        """A whole number, also where it is written as a string."""
        value = self.value
        if isinstance(value, str) and value.isascii() and value.strip().isdecimal():
            value = value.strip()
            if len(value) <= _MAX_DIGITS:
                return int(value)
        elif type(value) is int and abs(value) < 10**_MAX_DIGITS:
            return value
        raise self.fault(f"a whole number was needed, found {_shown(value)}")

    def _name(self, name: str) -> str:
        if (
            name in ("", ".", "..")
            or any(character in name for character in "/\\:")
            or not name.isprintable()
            or not _is_unicode(name)
            or len(name.encode()) > _MAX_NAME_BYTES
        ):
            raise self.fault(
                f"{_shown(name)} is no name of a file or folder: it must be 1 to {_MAX_NAME_BYTES} "
                "bytes without / \\ : and control characters"
            )
        return name

    def _child(self, key: str, value: object) -> Entry:
        shown = key if key.isprintable() and len(key) <= _SHOWN else _shown(key)
        return Entry(self.file, f"{self.where}/{shown}" if self.where else shown, value)


def read_json(file: Path) -> Entry:
    """Parse a file.

    Raises:
        InputError: it is missing, unreadable, too large, no JSON, nested too deeply, or names a key
            of an object twice (which of the two is meant, nobody knows).
    """
    try:
        _check_kind(file, file.stat())  # first: opening a FIFO would wait for its other end
        return Entry(file, "", json.loads(file.read_bytes(), object_pairs_hook=_object))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except RecursionError:
        raise InputError(f"{file} is nested too deeply; download it again") from None
    except MemoryError:
        raise InputError(f"{file} does not fit in this machine's memory") from None
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}; download it again") from error


def _check_kind(file: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{file} cannot be read: it is not a regular file")
    if status.st_size > _MAX_BYTES:
        raise InputError(
            f"{file} has {status.st_size} bytes, more than the {_MAX_BYTES} that are read; "
            "download it again"
        )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {_shown(double)} stands twice in one object")
    return content


def _is_unicode(text: str) -> bool:
    """Whether text has no lone surrogate; JSON can write one, files cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """A value as the file has it, in a few characters however long or deep it is."""
    if isinstance(value, (dict, list)):
        return _NAMES[type(value)]
    if isinstance(value, str):
        value = value[:_SHOWN]
    return json.dumps(value)[:_SHOWN]
