"""Public signatures say what they take and return: `Any` is rare, and no alias hides it."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent
MOST = 60


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name.endswith("__")


def _annotations(body: list[ast.stmt], of_class: bool = False) -> Iterator[ast.expr | None]:
    """Yields the annotations of public functions, methods and fields, and the values that may be aliases of types."""
    for node in body:
        if isinstance(node, ast.ClassDef) and _is_public(node.name):
            yield from _annotations(node.body, of_class=True)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(node.name):
            arguments = node.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            yield from (a.annotation for a in [*named, arguments.vararg, arguments.kwarg] if a is not None)
            yield node.returns
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _is_public(node.target.id):
            yield node.annotation
        elif isinstance(node, ast.Assign) and not of_class and isinstance(node.targets[0], ast.Name):
            yield node.value


def count_any(source: str) -> int:
    """Returns how often Any stands in a module's public signatures, fields and aliases."""
    found = (node for part in _annotations(ast.parse(source).body) if part is not None for node in ast.walk(part))
    return sum(getattr(node, "id", getattr(node, "attr", None)) == "Any" for node in found)


def test_public_signatures_seldom_say_any() -> None:
    counts = {path: count_any(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py") if "_test" not in path.name}
    assert len(counts) > 200
    named = sorted(f"{path.relative_to(PACKAGE)}: {count}" for path, count in counts.items() if count)
    assert sum(counts.values()) < MOST, "\n".join(named)


def test_any_is_counted_wherever_it_may_stand() -> None:
    assert count_any("def f(x: Any, *y: list[Any], **z: typing.Any) -> dict[str, Any]: ...") == 4
    assert count_any("class A:\n    x: Any\n    _y: Any\n    def __call__(self, z: Any) -> None: ...") == 2
    assert (
        count_any("Alias = dict[str, Any]\n_private: Any = 0\ndef _f(x: Any) -> Any: ...\ndef g(x: int): y: Any = x")
        == 1
    )
