"""Import inference libraries, which may be missing, or installed without what they need."""

from __future__ import annotations

import importlib
from types import ModuleType

from rvos_deploy.errors import BackendError, one_line


def import_library(module: str, package: str, *, advice: str = "") -> ModuleType | None:
    """Import a module of a library; return None where its package is not installed.

    Args:
        module: the module's full name.
        package: the name of its package on PyPI, for the message.
        advice: what to check where the library cannot be loaded, beside installing it again.

    Raises:
        BackendError: the package is installed and cannot be loaded: a library under it is missing,
            is of another release, or finds no driver. Such libraries raise OSError and RuntimeError
            as often as ImportError.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            return None
        raise _broken(package, error, advice) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise _broken(package, error, advice) from error


def _broken(package: str, error: Exception, advice: str) -> BackendError:
    reason = one_line(error) or type(error).__name__
    return BackendError(
        f"{package} is installed but cannot be loaded ({reason}); {advice}"
        f"{', or ' if advice else ''}install it again: pip install --force-reinstall '{package}'"
    )
