"""The sentences that services write for people, read out of their source: what the translations must hold."""

import ast
from collections.abc import Iterator
from pathlib import Path

from controlplane.embedded.environment import ROOT

# Of these modules every text of three words or more is for people, but what goes into logs and SQL; of the others
# what a Problem says.
WORDY = (
    "inference/core/decide.py",
    "inference/core/placement.py",
    "inference/core/reserved.py",
    "inference/core/sizing.py",
    "inference/core/status.py",
    "inference/reconciler/load.py",
    "inference/refusals.py",
    "k8s/observe.py",
    "platform/kernel/money.py",
    "tenants/permissions.py",
)
OTHERS = (
    "billing/access.py",
    "billing/invoicing.py",
    "billing/ledger.py",
    "billing/operations.py",
    "billing/packages.py",
    "billing/services.py",
    "billing/settling.py",
    "inference/access.py",
    "inference/gateway/admission.py",
    "inference/gateway/authn.py",
    "inference/gateway/completions.py",
    "inference/gateway/core/request.py",
    "inference/gateway/engine_errors.py",
    "inference/gateway/projection.py",
    "inference/gateway/routing.py",
    "inference/gateway/server.py",
    "inference/selectors.py",
    "inference/services.py",
    "platform/controlplane/console",
    "platform/controlplane/gates.py",
    "tenants",
)


def sentences() -> set[str]:
    """Every sentence, its values as `%(1)s`, `%(2)s`…"""
    found: set[str] = set()
    for name in WORDY:
        found.update(
            text
            for text in _texts(_tree(ROOT / name))
            if text.count(" ") >= 2 and "%s" not in text and "\n" not in text
        )
    for name in OTHERS:
        path = ROOT / name
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            for said in _problems(_tree(source)):
                found.update(_texts(said))
    return found


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _problems(tree: ast.Module) -> Iterator[ast.expr]:
    """The second argument of each Problem; where that is a name, what was assigned to it."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        inside = list(ast.walk(function))
        texts = {
            target.id: node.value
            for node in inside
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in inside:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem":
                detail = node.args[1]
                yield texts.get(detail.id, detail) if isinstance(detail, ast.Name) else detail


def _texts(tree: ast.AST) -> Iterator[str]:
    """Strings and f-strings, but not docstrings, nor the parts of an f-string."""
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield _template(node)
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            left.extend(ast.iter_child_nodes(node))


def _template(text: ast.JoinedStr) -> str:
    parts, places = [], 0
    for part in text.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value))
        else:
            places += 1
            parts.append(f"%({places})s")
    return "".join(parts)
