"""Load SciPy's solver of the linear sum assignment without the rest of ``scipy.optimize``.

That package takes longer to import (0.3 s) than everything else before the first mask together.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

Solver = Callable[[NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]

_MODULE = "scipy.optimize._lsap"


def load_solver() -> Solver:
    """Return ``scipy.optimize.linear_sum_assignment``."""
    solver: Solver | None = getattr(_compiled_module(), "linear_sum_assignment", None)
    if solver is None:  # another SciPy keeps it elsewhere
        from scipy.optimize import linear_sum_assignment

        return linear_sum_assignment
    return solver


def _compiled_module() -> ModuleType | None:
    """Return the compiled module that holds the solver; None if this SciPy has no such file."""
    if (imported := sys.modules.get(_MODULE)) is not None:
        return imported
    package = find_spec("scipy")  # imports nothing
    folders = (package.submodule_search_locations if package else None) or ()
    found = PathFinder.find_spec(_MODULE, [str(Path(folder, "optimize")) for folder in folders])
    if found is None or found.loader is None:
        return None
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module
