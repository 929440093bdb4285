"""Check our source's uses of TensorRT against the classes of the real bindings.

The source is read as a syntax tree. Values are followed as far as our annotations, constructors and
the bindings' docstrings tell their class: parameters annotated ``trt.IBuilderConfig``, and names
assigned from ``trt.Builder(...)`` or from a method whose docstring gives its return type. Every
attribute, enum member, keyword and number of arguments of such values is looked up.

This runs in the process that has the bindings; see test_engines_bindings.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Instance:
    """A value of a bindings' class."""

    cls: type


@dataclass
class Found:
    """Uses by their text, and those that the bindings do not have."""

    uses: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def check_source(path: Path, roots: Mapping[str, Any], found: Found) -> None:
    """Add the uses in one file; ``roots``: the modules, by the names that our source has."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    _Checker(path.name, roots, found).visit(tree)


class _Checker(ast.NodeVisitor):
    def __init__(self, file: str, roots: Mapping[str, Any], found: Found) -> None:
        self.file, self.roots, self.found = file, roots, found
        self.scopes: list[dict[str, Any]] = [{}]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        scope: dict[str, Any] = {}
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            scope[argument.arg] = self._annotated(argument.annotation)
        self.scopes.append(scope)
        self.generic_visit(node)
        self.scopes.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            cls = self._value(base)
            if isinstance(cls, type):
                self._check_overrides(node, cls)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.scopes[-1][target.id] = self._value(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            self.scopes[-1][node.target.id] = self._annotated(node.annotation)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        owner = self._value(node.value)
        if owner is None:
            return
        self.found.uses.add(ast.unparse(node))
        if not hasattr(owner.cls if isinstance(owner, Instance) else owner, node.attr):
            self._problem(node, f"{_name(owner)} has no {node.attr}")

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        function = self._value(node.func)
        if isinstance(function, Instance) or function is None or function in self.roots.values():
            return
        signatures = _signatures(function.__init__ if isinstance(function, type) else function)
        if not signatures:
            return
        for keyword in node.keywords:
            self.found.uses.add(f"{ast.unparse(node.func)}({keyword.arg}=)")
            if not any(keyword.arg in names for names in signatures):
                self._problem(node, f"no keyword {keyword.arg}")
        owner = self._value(node.func.value) if isinstance(node.func, ast.Attribute) else None
        # Called on the class, as in ``trt.ILogger.__init__(self)``: self is given.
        count = len(node.args) + len(node.keywords) - isinstance(owner, type)
        if not any(count <= len(names) for names in signatures):
            self._problem(node, f"{count} arguments, takes {max(map(len, signatures))}")

    def _check_overrides(self, node: ast.ClassDef, cls: type) -> None:
        for method in node.body:
            if not isinstance(method, ast.FunctionDef) or method.name.startswith("_"):
                continue
            self.found.uses.add(f"{cls.__name__}.{method.name}")
            ours = [argument.arg for argument in method.args.args[1:]]
            theirs = _signatures(getattr(cls, method.name, None))
            if not hasattr(cls, method.name):
                self._problem(method, f"{cls.__name__} calls no {method.name}")
            elif theirs and all(len(names) != len(ours) for names in theirs):
                self._problem(method, f"{cls.__name__}.{method.name} takes {theirs[0]}")

    def _annotated(self, annotation: ast.expr | None) -> Any:
        cls = self._value(annotation) if annotation is not None else None
        return Instance(cls) if isinstance(cls, type) else None

    def _value(self, node: ast.expr) -> Any:
        """A module, class, function, enum member or Instance; None where nothing is known."""
        if isinstance(node, ast.Name):
            # Our source takes the module as a parameter: the name is the module in every scope.
            if node.id in self.roots:
                return self.roots[node.id]
            known = [scope[node.id] for scope in self.scopes if node.id in scope]
            return known[-1] if known else None
        if isinstance(node, ast.Attribute):
            if node.attr.lstrip("_") in self.roots and node.attr.startswith("_"):
                return self.roots[node.attr.lstrip("_")]
            owner = self._value(node.value)
            found = getattr(owner.cls if isinstance(owner, Instance) else owner, node.attr, None)
            # The type of an instance's property is not told by the bindings.
            return None if isinstance(owner, Instance) and isinstance(found, property) else found
        if isinstance(node, ast.Call):
            function = self._value(node.func)
            if isinstance(function, type):
                return Instance(function)
            return self._returned(function)
        return None

    def _returned(self, function: Any) -> Instance | None:
        match = re.search(r"-> ((?:\w+\.)+)(\w+)", getattr(function, "__doc__", None) or "")
        if match is None:
            return None
        # Both libraries have classes of one name: the function's own library first.
        roots = sorted(self.roots.values(), key=lambda m: m.__name__ in match[1], reverse=True)
        classes = [getattr(module, match[2], None) for module in roots]
        return next((Instance(cls) for cls in classes if isinstance(cls, type)), None)

    def _problem(self, node: ast.stmt | ast.expr, what: str) -> None:
        text = ast.unparse(node).splitlines()[0]
        self.found.problems.append(f"{self.file}:{node.lineno}: {text}: {what}")


def _name(owner: Any) -> str:
    return str(getattr(owner.cls if isinstance(owner, Instance) else owner, "__name__", owner))


def _signatures(function: Any) -> list[list[str]]:
    """Names of the parameters, self left out, of every overload that a docstring tells."""
    found = []
    for arguments in re.findall(r"^\s*(?:\d+\. )?\w+\((.*)\) ->", function.__doc__ or "", re.M):
        names = re.findall(r"(\w+): ", arguments)
        if "*args" not in arguments:
            found.append([name for name in names if name != "self"])
    return found
