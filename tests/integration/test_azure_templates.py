"""The Bicep and ARM templates of samples/azure: equal, well-formed, and in the words of the REST APIs they call.

No package registry that could be reached ships the schemas of schema.management.azure.com, so bodies are checked
against Microsoft's own models of those APIs in the azure-mgmt packages, and the envelope against ENVELOPE below.
"""

from __future__ import annotations

import enum
import functools
import json
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typing_extensions
from azure.mgmt.authorization.v2022_04_01.models import RoleAssignmentCreateParameters
from azure.mgmt.compute import models as compute_models
from azure.mgmt.compute import types as compute
from azure.mgmt.keyvault import models as keyvault_models
from azure.mgmt.keyvault import types as keyvault
from azure.mgmt.msi.v2024_11_30.models import Identity
from azure.mgmt.network import models as network_models
from azure.mgmt.network import types as network
from bicep_subset import compile_bicep

AZURE = Path(__file__).parent.parent.parent / "samples" / "azure"
TEMPLATE: dict[str, Any] = json.loads((AZURE / "main.json").read_text())
SCRIPT = (AZURE / "deploy.sh").read_text()

# https://learn.microsoft.com/azure/azure-resource-manager/templates/syntax; closed, so that a misspelt key fails.
_NAMED = {"type": "object", "patternProperties": {"^[A-Za-z][A-Za-z0-9]*$": {}}, "additionalProperties": False}
ENVELOPE = {
    "type": "object",
    "required": ["$schema", "contentVersion", "parameters", "variables", "resources", "outputs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"const": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#"},
        "contentVersion": {"type": "string", "pattern": r"^\d+\.\d+\.\d+\.\d+$"},
        "variables": _NAMED,
        "parameters": {
            **_NAMED,
            "maxProperties": 256,
            "additionalProperties": False,
            "patternProperties": {
                "^[A-Za-z][A-Za-z0-9]*$": {
                    "type": "object",
                    "required": ["type", "metadata"],
                    "additionalProperties": False,
                    "properties": {
                        "type": {"enum": ["string", "securestring", "int", "bool", "object", "secureObject", "array"]},
                        "defaultValue": {},
                        "allowedValues": {"type": "array", "minItems": 1},
                        "minLength": {"type": "integer"},
                        "maxLength": {"type": "integer"},
                        "metadata": {"type": "object", "required": ["description"]},
                    },
                }
            },
        },
        "resources": {
            "type": "array",
            "maxItems": 800,
            "items": {
                "type": "object",
                "required": ["type", "apiVersion", "name"],
                "properties": {
                    "type": {"type": "string", "pattern": r"^Microsoft\.[A-Za-z]+(/[A-Za-z]+)+$"},
                    "apiVersion": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
                    "name": {"type": "string", "minLength": 1},
                    "dependsOn": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
                    "condition": {"type": "string"},
                    "scope": {"type": "string"},
                },
            },
        },
        "outputs": {
            "type": "object",
            "maxProperties": 64,
            "additionalProperties": {
                "type": "object",
                "required": ["type", "value"],
                "additionalProperties": False,
                "properties": {"type": {"enum": ["string"]}, "value": {"type": "string"}},
            },
        },
    },
}

# type -> the model of a PUT's body, and where the names of its enums are
TYPED = {
    "Microsoft.Network/networkSecurityGroups": (network.NetworkSecurityGroup, network_models),
    "Microsoft.Network/virtualNetworks": (network.VirtualNetwork, network_models),
    "Microsoft.Network/publicIPAddresses": (network.PublicIPAddress, network_models),
    "Microsoft.Network/networkInterfaces": (network.NetworkInterface, network_models),
    "Microsoft.Compute/virtualMachines": (compute.VirtualMachine, compute_models),
    "Microsoft.KeyVault/vaults": (keyvault.VaultCreateOrUpdateParameters, keyvault_models),
    "Microsoft.KeyVault/vaults/secrets": (keyvault.SecretCreateOrUpdateParameters, keyvault_models),
}
MAPPED = {
    "Microsoft.ManagedIdentity/userAssignedIdentities": (Identity, "2024-11-30"),
    "Microsoft.Authorization/roleAssignments": (RoleAssignmentCreateParameters, "2022-04-01"),
}
ENVELOPE_KEYS = {"type", "apiVersion", "name", "scope", "dependsOn", "condition"}


def body(resource: dict[str, Any]) -> dict[str, Any]:
    """What Azure Resource Manager would send: the envelope's keys off, parameters replaced by their defaults."""

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolve(item) for key, item in value.items()}
        if isinstance(value, list):
            return [resolve(item) for item in value]
        if isinstance(value, str) and (match := re.fullmatch(r"\[parameters\('(\w+)'\)\]", value)):
            return TEMPLATE["parameters"][match[1]].get("defaultValue", value)
        return value

    resolved: dict[str, Any] = resolve({key: item for key, item in resource.items() if key not in ENVELOPE_KEYS})
    return resolved


@functools.cache
def fields_of(hint: Any, models: Any) -> tuple[dict[str, Any], set[str]]:
    """The fields of a TypedDict and which of them are marked as required (the classes' own totality is not kept up)."""
    enums = {name: item for name, item in vars(models).items() if isinstance(item, enum.EnumMeta)}
    fields = typing_extensions.get_type_hints(hint, localns=enums, include_extras=True)
    required = {key for key, field in fields.items() if typing.get_origin(field) is typing_extensions.Required}
    return {key: typing.get_args(field)[0] if key in required else field for key, field in fields.items()}, required


def complaints(value: Any, hint: Any, models: Any, path: str = "") -> list[str]:
    """Where a value is not what the annotation of Microsoft's model says; an expression may be anything."""
    if isinstance(value, str) and value.startswith("["):
        return []
    if isinstance(hint, str):  # Python 3.10 leaves the name in list["Subnet"] as it is
        hint = getattr(sys.modules[models.__name__.replace(".models", ".types")], hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, enum.EnumMeta):
        return [] if value in {member.value for member in hint} else [f"{path}: {value!r} is none of {hint.__name__}"]
    if typing_extensions.is_typeddict(hint):
        if not isinstance(value, dict):
            return [f"{path}: {value!r} is no {hint.__name__}"]
        fields, required = fields_of(hint, models)
        found = [f"{path}.{key}: unknown to {hint.__name__}" for key in value.keys() - fields.keys()]
        found += [f"{path}.{key}: required by {hint.__name__}" for key in required - value.keys()]
        return found + [
            complaint
            for key, item in value.items()
            if key in fields
            for complaint in complaints(item, fields[key], models, f"{path}.{key}")
        ]
    if origin is typing.Union:
        closed = [option for option in arguments if isinstance(option, enum.EnumMeta)] or arguments
        options = [complaints(value, option, models, path) for option in closed]
        return min(options, key=len)
    if origin is list:
        if not isinstance(value, list):
            return [f"{path}: {value!r} is no list"]
        return [
            c for place, item in enumerate(value) for c in complaints(item, arguments[0], models, f"{path}[{place}]")
        ]
    if origin is dict:
        return [c for key, item in value.items() for c in complaints(item, arguments[1], models, f"{path}.{key}")]
    return [] if type(value) is hint else [f"{path}: {value!r} is no {hint}"]


def leaves(value: Any, path: str = "") -> typing.Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path


def mapped_complaints(resource_body: dict[str, Any], model: Any) -> list[str]:
    """The same for the older models, which map flat attributes to paths in the body."""
    keys = {entry["key"]: name for name, entry in model._attribute_map.items()}
    rules = model._validation
    given = set(leaves(resource_body))
    required = {key for key, name in keys.items() if rules.get(name, {}).get("required")}
    read_only = {key for key, name in keys.items() if rules.get(name, {}).get("readonly")}
    return sorted([*(given - keys.keys()), *(required - given), *(given & read_only)])


def check(resource: dict[str, Any]) -> list[str]:
    if resource["type"] in MAPPED:
        model, version = MAPPED[resource["type"]]
        assert resource["apiVersion"] == version, "this model describes exactly one version"
        return mapped_complaints(body(resource), model)
    model, models = TYPED[resource["type"]]
    return complaints(body(resource), model, models)


def names(resources: list[dict[str, Any]]) -> list[str]:
    return [f"{number}-{resource['type'].rpartition('/')[2]}" for number, resource in enumerate(resources)]


def test_bicep_and_arm_templates_are_equal() -> None:
    """The Bicep file compiles to the ARM file: every parameter, type, apiVersion, property, dependency and output."""
    compiled = compile_bicep(AZURE / "main.bicep")
    template = {key: value for key, value in TEMPLATE.items() if key not in ("$schema", "contentVersion")}
    assert compiled == template


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2024-07-01", "2024-03-01"),
        ("'Standard_D2s_v3'", "'Standard_D4s_v3'"),
        ("priority: 1000", "priority: 1001"),
        ("@secure()\n", ""),
        ("identity.properties.clientId", "identity.properties.principalId"),
        ("id: networkInterface.id", "id: 'fixed'"),
        ("  scope: vault\n", ""),
        ("'${vmName}Subnet'", "'${vmName}Subnets'"),
        ("!empty(deployerObjectId)", "empty(deployerObjectId)"),
    ],
)
def test_one_change_in_the_bicep_file_is_noticed(old: str, new: str, tmp_path: Path) -> None:
    """The comparison sees each kind of difference, so that the test above can fail."""
    text = (AZURE / "main.bicep").read_text()
    assert old in text
    changed = tmp_path / "main.bicep"
    changed.write_text(text.replace(old, new, 1))
    assert compile_bicep(changed) != {k: v for k, v in TEMPLATE.items() if k not in ("$schema", "contentVersion")}


def test_the_template_has_a_valid_envelope() -> None:
    """The ARM template's own keys are those that Microsoft documents."""
    jsonschema.validate(TEMPLATE, ENVELOPE)


@pytest.mark.parametrize("resource", TEMPLATE["resources"], ids=names(TEMPLATE["resources"]))
def test_a_resource_is_in_the_words_of_its_api(resource: dict[str, Any]) -> None:
    """Each body has only properties, values and types that Microsoft's model of the API knows, and all it requires."""
    assert check(resource) == []


@pytest.mark.parametrize(
    ("kind", "path", "value", "complaint"),
    [
        ("virtualMachines", "properties.hardwareProfile.vmSizes", "x", "vmSizes: unknown"),
        ("virtualMachines", "properties.storageProfile.osDisk.createOption", "FromImages", "is none of"),
        ("virtualMachines", "properties.osProfile.linuxConfiguration.disablePasswordAuthentication", "yes", "is no"),
        ("networkInterfaces", "properties.ipConfigurations", {}, "is no list"),
        ("vaults", "properties.sku", None, "is no Sku"),
        ("userAssignedIdentities", "properties.clientId", "x", "properties.clientId"),
        ("roleAssignments", "properties.principal", "x", "properties.principal"),
    ],
)
def test_a_wrong_property_is_noticed(kind: str, path: str, value: Any, complaint: str) -> None:
    """The check above names what it does not know, at the place where it stands."""
    resource = json.loads(json.dumps(next(r for r in TEMPLATE["resources"] if r["type"].endswith("/" + kind))))
    *parents, last = path.split(".")
    place = resource
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    assert complaint in " ".join(check(resource))


def test_a_missing_property_is_noticed() -> None:
    """A body without what its model marks as required is named too, for both kinds of models."""
    bodies = {
        r["type"].rpartition("/")[2]: {k: v for k, v in r.items() if k != "location"} for r in TEMPLATE["resources"]
    }
    assert check(bodies["virtualMachines"]) == [".location: required by VirtualMachine"]
    assert check(bodies["userAssignedIdentities"]) == ["location"]


def test_every_expression_names_what_exists() -> None:
    """A parameter or variable that is used is declared, and one that is declared is used."""
    text = json.dumps({key: TEMPLATE[key] for key in ("variables", "resources", "outputs")})
    for section in ("parameters", "variables"):
        assert set(re.findall(rf"{section}\('(\w+)'\)", text)) == set(TEMPLATE[section])
    made = {resource["type"] for resource in TEMPLATE["resources"]}
    assert set(re.findall(r"resourceId\('([\w./]+)'", text)) - {"Microsoft.Authorization/roleDefinitions"} <= made


def test_the_secret_is_a_secure_parameter_without_default() -> None:
    """The value can neither stand in the file nor show in the deployment's history."""
    assert TEMPLATE["parameters"]["secretValue"].keys() == {"type", "metadata"}
    assert TEMPLATE["parameters"]["secretValue"]["type"] == "securestring"
    uses = [path for path in leaves({"r": dict(enumerate(TEMPLATE["resources"]))}) if "secretValue" in path]
    assert not uses
    assert json.dumps(TEMPLATE["resources"]).count("secretValue") == 1
    assert "secretValue" not in json.dumps(TEMPLATE["outputs"])


def test_identities_get_one_role_on_the_vault_alone() -> None:
    """Least privilege: both identities may read secrets of this vault; writing is the deployer's, and optional."""
    roles = [r for r in TEMPLATE["resources"] if r["type"] == "Microsoft.Authorization/roleAssignments"]
    vault = "[resourceId('Microsoft.KeyVault/vaults', parameters('vaultName'))]"
    assert {role["scope"] for role in roles} == {vault}
    given = [(role["properties"]["roleDefinitionId"], role.get("condition")) for role in roles]
    optional = "[not(empty(parameters('deployerObjectId')))]"
    assert given == [
        ("[variables('secretsUser')]", None),
        ("[variables('secretsUser')]", None),
        ("[variables('secretsOfficer')]", optional),
    ]


def test_script_and_templates_agree(tmp_path: Path) -> None:
    """Image, size, roles, names, retention and security are the same, whichever way is taken."""
    key, secret = tmp_path / "key.pub", tmp_path / "secret"
    key.write_text("ssh-ed25519 AAAA dummy\n")
    secret.write_text("dummy")
    command = [AZURE / "deploy.sh", "up", "--dry-run", "--vault", "kv-x", "--secret-file", secret, "--ssh-key", key]
    calls = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    machine = next(r for r in TEMPLATE["resources"] if r["type"].endswith("/virtualMachines"))["properties"]
    vault = next(r for r in TEMPLATE["resources"] if r["type"].endswith("/vaults"))["properties"]
    defaults = {name: entry.get("defaultValue") for name, entry in TEMPLATE["parameters"].items()}
    image = machine["storageProfile"]["imageReference"]
    roles = {name: value.split("'")[3] for name, value in TEMPLATE["variables"].items()}
    for part in (
        f"--image {image['publisher']}:{image['offer']}:{image['sku']}:{image['version']}",
        f"--name {defaults['vmName']} ",
        f"--nsg {defaults['vmName']}-nsg",
        f"--size {defaults['vmSize']}",
        f"--admin-username {defaults['adminUsername']}",
        f"--storage-sku {machine['storageProfile']['osDisk']['managedDisk']['storageAccountType']}",
        f"--security-type {machine['securityProfile']['securityType']}",
        f"identity create --resource-group rg-imds-demo --name {defaults['identityName']}",
        f"keyvault secret set --vault-name kv-x --name {defaults['secretName']}",
        f"--enable-rbac-authorization {str(vault['enableRbacAuthorization']).lower()}",
        f"--retention-days {vault['softDeleteRetentionInDays']}",
        f"--source-address-prefixes '{defaults['sshFrom']}'",
        f"--role {roles['secretsOfficer']}",
    ):
        assert part in calls, part
    assert calls.count(f"--role {roles['secretsUser']}") == 2
