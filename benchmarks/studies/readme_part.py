"""Replace the part of a README that is made from a record."""

from __future__ import annotations

from rvos_deploy.errors import InputError


def with_part(readme: str, begin: str, end: str, part: str, name: str = "the README") -> str:
    """Return a README whose part between two comments is ``part``.

    Args:
        readme: the text.
        begin: the comment before the part.
        end: the comment behind it.
        part: the new part.
        name: of the file, for the message.

    Raises:
        InputError: the comments are missing.
    """
    before, found, rest = readme.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise InputError(f"{name} has no lines '{begin}' and '{end}'; put them back")
    return f"{before}{begin}\n{part}\n{end}{after}"
