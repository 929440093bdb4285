"""Read untrusted JSON files. Every error names the file and the entry."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rvos_deploy.errors import InputError

T = TypeVar("T")

_NAMES: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
_MAX_BYTES = 8 * 2**30
_MAX_NAME_BYTES = 200
_MAX_DIGITS = 15
_SHOWN = 60


@dataclass(frozen=True)
class Entry:
    """Hold a value of a JSON file with its place in the file."""

    file: Path
    where: str
    value: Any

    def fault(self, text: str) -> InputError:
        """Return an error that names the file and the entry."""
        return InputError(f"{self.file}: {self.where or 'the file'}: {text}")

    def has(self, key: str) -> bool:
        """Return whether an object has ``key`` with a value other than ``null``."""
        return self.as_type(dict).get(key) is not None

    def get(self, key: str) -> Entry:
        """Return the entry of a key. Raises InputError: the key is missing."""
        if key not in self.as_type(dict):
            raise self.fault(f"'{key}' is missing")
        return self._child(key, self.value[key])

    def items(self) -> Iterator[tuple[str, Entry]]:
        """Yield the keys and values of an object."""
        for key, value in self.as_type(dict).items():
            yield key, self._child(key, value)

    def elements(self) -> Iterator[Entry]:
        """Yield the values of a list."""
        for index, value in enumerate(self.as_type(list)):
            yield self._child(str(index), value)

    def as_type(self, kind: type[T]) -> T:
        """Return the value, which must be of type ``kind``: dict, list or str."""
        if not isinstance(self.value, kind):
            raise self.fault(f"expected {_NAMES[kind]}, found {_shown(self.value)}")
        return self.value

    def as_text(self) -> str:
        """Return the value, which must be a string that can be encoded as UTF-8."""
        text = self.as_type(str)
        if not _is_unicode(text):
            raise self.fault(f"expected text, found half of a surrogate pair: {_shown(text)}")
        return text

    def as_name(self) -> str:
        """Return the value, which must be the name of one file or folder, without a path."""
        return self._name(self.as_type(str))

    def named_items(self) -> Iterator[tuple[str, Entry]]:
        """Yield the keys and values of an object whose keys are names as in :meth:`as_name`."""
        for key, entry in self.items():
            yield self._name(key), entry

    def as_id(self) -> int:
        """Return the value, which must be an integer or a string of digits."""
        value = self.value
        if isinstance(value, str) and value.isascii() and value.strip().isdecimal():
            value = value.strip()
            if len(value) <= _MAX_DIGITS:
                return int(value)
        elif type(value) is int and abs(value) < 10**_MAX_DIGITS:
            return value
        raise self.fault(f"expected a whole number, found {_shown(value)}")

    def _name(self, name: str) -> str:
        if (
            name in ("", ".", "..")
            or any(character in name for character in "/\\:")
            or not name.isprintable()
            or not _is_unicode(name)
            or len(name.encode()) > _MAX_NAME_BYTES
        ):
            raise self.fault(
                f"{_shown(name)} is not the name of a file or folder; a name has 1 to "
                f"{_MAX_NAME_BYTES} bytes, without / \\ : and control characters"
            )
        return name

    def _child(self, key: str, value: object) -> Entry:
        shown = key if key.isprintable() and len(key) <= _SHOWN else _shown(key)
        return Entry(self.file, f"{self.where}/{shown}" if self.where else shown, value)


def read_json(file: Path) -> Entry:
    """Parse a JSON file.

    Raises:
        InputError: the file is missing, unreadable, too large, not JSON, nested too deeply, or has
            an object with the same key twice, which is ambiguous.
    """
    try:
        _check_kind(file, file.stat())  # before opening: a FIFO would block
        return Entry(file, "", json.loads(file.read_bytes(), object_pairs_hook=_object))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except RecursionError:
        raise InputError(f"{file} is nested too deeply; correct it, or download it again") from None
    except MemoryError:
        raise InputError(f"{file} does not fit in this machine's memory") from None
    except ValueError as error:
        raise InputError(
            f"{file} is not valid JSON: {error}; correct it, or download it again"
        ) from error


def _check_kind(file: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{file} cannot be read: it is not a regular file")
    if status.st_size > _MAX_BYTES:
        raise InputError(
            f"{file} has {status.st_size} bytes, more than the limit of {_MAX_BYTES}; download it "
            "again"
        )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {_shown(double)} occurs twice in one object")
    return content


def _is_unicode(text: str) -> bool:
    """Return whether text has no lone surrogate, which JSON allows and UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """Return a value in JSON, shortened to a few characters."""
    if isinstance(value, (dict, list)):
        return _NAMES[type(value)]
    if isinstance(value, str):
        value = value[:_SHOWN]
    return json.dumps(value)[:_SHOWN]
