"""JSON of others, read with care: whatever is wrong is named by file and entry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rvos_deploy.errors import InputError

Kind = TypeVar("Kind")

_NAMES = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}


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
            raise self.fault(f"{_NAMES[kind]} was needed, found {json.dumps(self.value)[:60]}")
        return self.value

    def as_id(self) -> int:
        """A whole number, also where it is written as a string."""
        value = self.value
        if isinstance(value, str) and value.strip().isdecimal():
            return int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fault(f"a whole number was needed, found {json.dumps(value)[:60]}")
        return value

    def _child(self, key: str, value: object) -> Entry:
        return Entry(self.file, f"{self.where}/{key}" if self.where else key, value)


def read_json(file: Path) -> Entry:
    """Parse a file. InputError when it is missing, unreadable or no JSON."""
    try:
        return Entry(file, "", json.loads(file.read_bytes()))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}; download it again") from error
