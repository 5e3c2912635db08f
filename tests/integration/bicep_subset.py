"""The part of the Bicep language that samples/azure/main.bicep uses, compiled to an ARM template.

No package registry ships Microsoft's compiler, so the pair of templates is held equal by this reading of
https://learn.microsoft.com/azure/azure-resource-manager/bicep/file. What it does not know, it refuses.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pycep import BicepParser

DECORATORS = {"min_length": "minLength", "max_length": "maxLength", "allowed": "allowedValues"}


def compile_bicep(path: Path) -> dict[str, Any]:
    """The template's parameters, variables, resources and outputs; `dependsOn` is sorted."""
    text = path.read_text()
    bicep = _Bicep(BicepParser().parse(text=text))
    for symbol in bicep.symbols():
        # The parser does not tell the name location from the text 'location': here no text may be a name.
        assert f"'{symbol}'" not in text, f"the text '{symbol}' is also a name"
    return bicep.template()


class _Bicep:
    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree
        self.resources: dict[str, Any] = {}
        for symbol, resource in tree["resources"].items():
            conditional = set(resource["config"]) == {"condition", "config"}
            body = dict(resource["config"]["config"] if conditional else resource["config"])
            condition = resource["config"]["condition"] if conditional else None
            assert not resource["existing"]
            self.resources[symbol] = {**resource, "body": body, "condition": condition}

    def symbols(self) -> set[str]:
        return {*self.tree["parameters"], *self.tree["variables"], *self.resources}

    def template(self) -> dict[str, Any]:
        return {
            "parameters": {name: self.parameter(entry) for name, entry in self.tree["parameters"].items()},
            "variables": {name: self.value(entry["value"]) for name, entry in self.tree["variables"].items()},
            "resources": [self.resource(symbol) for symbol in self.resources],
            "outputs": {
                name: {"type": entry["type"], "value": self.value(entry["value"])}
                for name, entry in self.tree["outputs"].items()
            },
        }

    def parameter(self, entry: dict[str, Any]) -> dict[str, Any]:
        compiled: dict[str, Any] = {"type": entry["type"]}
        if entry["default"] is not None:
            compiled["defaultValue"] = self.value(entry["default"])
        for decorator in entry["decorators"]:
            if decorator["type"] == "secure":
                compiled["type"] = "secure" + entry["type"]
            elif decorator["type"] == "description":
                compiled["metadata"] = {"description": decorator["argument"]}
            else:
                compiled[DECORATORS[decorator["type"]]] = decorator["argument"]
        return compiled

    def resource(self, symbol: str) -> dict[str, Any]:
        resource = self.resources[symbol]
        compiled: dict[str, Any] = {"type": resource["type"], "apiVersion": resource["api_version"]}
        if resource["condition"] is not None:
            compiled["condition"] = self.value(resource["condition"])
        for key, value in resource["body"].items():
            if key == "scope":
                compiled["scope"] = f"[{self.resource_id(value)}]"
            elif key == "name":
                compiled["name"] = self.full_name(symbol)
            elif key != "parent":
                compiled[key] = self.value(value)
        if used := self.uses(resource["body"]):
            compiled["dependsOn"] = sorted(f"[{self.resource_id(other)}]" for other in used)
        return compiled

    def names(self, symbol: str) -> list[str]:
        body = self.resources[symbol]["body"]
        return [*(self.names(body["parent"]) if "parent" in body else []), self.expression(body["name"])]

    def full_name(self, symbol: str) -> str:
        names = self.names(symbol)
        if len(names) == 1:
            return str(self.value(self.resources[symbol]["body"]["name"]))
        places = "/".join(f"{{{place}}}" for place in range(len(names)))
        return f"[format('{places}', {', '.join(names)})]"

    def resource_id(self, symbol: str) -> str:
        return f"resourceId({', '.join([repr(self.resources[symbol]['type']), *self.names(symbol)])})"

    def value(self, node: Any) -> Any:
        """A place in the JSON document: literals stay, all else becomes an expression in brackets."""
        if isinstance(node, dict) and not {"operator", "function"} & set(node):
            return {
                self.value(key.strip("'")) if "${" in key else key: self.value(value) for key, value in node.items()
            }
        if isinstance(node, list):
            return [self.value(item) for item in node]
        if isinstance(node, (bool, int)):
            return node
        if isinstance(node, str) and node not in self.symbols() and "${" not in node:
            assert not node.startswith("[")
            return node
        return f"[{self.expression(node)}]"

    def expression(self, node: Any) -> str:
        if isinstance(node, str) and "${" in node:
            holes = re.findall(r"\$\{([A-Za-z.]+)\}", node)
            form = node
            for place, hole in enumerate(holes):
                form = form.replace("${" + hole + "}", f"{{{place}}}", 1)
            assert "${" not in form
            return f"format({form!r}, {', '.join(self.path(hole.split('.')) for hole in holes)})"
        if isinstance(node, str) and node not in self.symbols():
            return repr(node)
        if isinstance(node, dict) and node.get("operator", {}).get("type") == "not":
            return f"not({self.expression(node['operator']['operands']['bool_value'])})"
        return self.path(_steps(node))

    def path(self, steps: list[Any]) -> str:
        """A name or call, and what is read from it: `vm.identity.principalId`, `network.properties.subnets[0].id`."""
        root, *rest = steps
        if isinstance(root, tuple):
            name, arguments = root
            text = f"{name}({', '.join(self.expression(argument) for argument in arguments)})"
        elif root in self.resources:
            resource = self.resources[root]
            if rest == ["id"]:
                return self.resource_id(root)
            if rest[0] == "properties":
                text, rest = f"reference({self.resource_id(root)}, '{resource['api_version']}')", rest[1:]
            else:
                text = f"reference({self.resource_id(root)}, '{resource['api_version']}', 'full')"
        elif root in self.tree["parameters"]:
            text = f"parameters('{root}')"
        else:
            assert root in self.tree["variables"], root
            text = f"variables('{root}')"
        return text + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in rest)

    def uses(self, node: Any) -> set[str]:
        """The resources that a value names; what is read from one (`vm.identity`) is no name."""
        if isinstance(node, list):
            return set().union(*map(self.uses, node))
        if isinstance(node, str):
            words = re.findall(r"\$\{([A-Za-z]+)", node) if "${" in node else [node]
            return {word for word in words if word in self.resources}
        if not isinstance(node, dict) or node.get("operator", {}).get("type") == "not":
            return set()
        if {"operator", "function"} & set(node):
            root = _steps(node)[0]
            return self.uses(list(root[1]) if isinstance(root, tuple) else root)
        return set().union(*(self.uses(key) for key in node if "${" in key), *map(self.uses, node.values()))


def _steps(node: Any) -> list[Any]:
    """The parser's nested accessors as a flat list; a call is the pair (name, arguments)."""
    if isinstance(node, str):
        return [node]
    if "function" in node:
        words = node["function"]["type"].split("_")
        name = words[0] + "".join(word.capitalize() for word in words[1:])
        return [(name, tuple(value for value in node["function"]["parameters"].values() if value is not None))]
    operator = node["operator"]
    first, second = operator["operands"]["operand_1"], operator["operands"]["operand_2"]
    if operator["type"] == "index_accessor":
        return [*_steps(first), second]
    assert operator["type"] == "property_accessor", operator["type"]
    return [*_steps(first), *_steps(second)]
