"""Tell what `mutmut run` found: for each module the share of mutants that its tests kill, and each one that survives.

    make mutants

A mutant that differs in nothing but the text of a string is left out: most strings are what an error says, and tests
that repeat it word for word prove nothing.
"""

from __future__ import annotations

import ast
import difflib
import json
import sys
from pathlib import Path
from typing import NamedTuple

LEAST = 0.95  # of the mutants of each module
# Exit codes as mutmut has them: a test failed, pytest failed, or it took too long.
KILLED = {1, 3, 24, -24, 36, 152, 255}


class Mutant(NamedTuple):
    """One function with one change."""

    name: str
    is_killed: bool
    is_string: bool
    change: str


class _Blank(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.Constant:  # as ast calls it
        return ast.Constant("") if isinstance(node.value, str) else node


def _blanked(function: ast.FunctionDef) -> str:
    copy = ast.parse(ast.unparse(function)).body[0]
    assert isinstance(copy, ast.FunctionDef)
    copy.name = ""
    return ast.dump(_Blank().visit(copy))


def _change(before: ast.FunctionDef, after: ast.FunctionDef) -> str:
    lines = difflib.ndiff(ast.unparse(before).splitlines(), ast.unparse(after).splitlines())
    return " -> ".join(line[2:].strip() for line in lines if line[0] in "-+" and "__mutmut_" not in line)


def mutants(meta: Path) -> list[Mutant]:
    """Return the mutants of one module.

    Args:
        meta: What mutmut keeps of it, beside the module with all its mutants.
    """
    codes: dict[str, int | None] = json.loads(meta.read_text())["exit_code_by_key"]
    tree = ast.parse(meta.with_suffix("").read_text())
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found = []
    for key, code in codes.items():
        assert code is not None, f"{key} was not tried: mutmut run was interrupted"
        name = key.rpartition(".")[2]
        original = functions[f"{name.rpartition('__mutmut_')[0]}__mutmut_orig"]
        is_string = _blanked(original) == _blanked(functions[name])
        found.append(Mutant(name, code in KILLED, is_string, _change(original, functions[name])))
    return found


def main(folder: str = "mutants") -> int:
    """Print the table; return 1 where a module has too many survivors."""
    status = 0
    for meta in sorted(Path(folder).rglob("*.py.meta")):
        judged = [mutant for mutant in mutants(meta) if not mutant.is_string]
        if not judged:
            continue
        killed = sum(mutant.is_killed for mutant in judged)
        share = killed / len(judged)
        status |= share < LEAST
        print(f"{meta.relative_to(folder).with_suffix('')}: {killed} of {len(judged)} killed, {share:.1%}")
        for mutant in judged:
            if not mutant.is_killed:
                print(f"    {mutant.name}: {mutant.change}")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
