"""The rest of IMDS: /metadata/instance, /metadata/versions, /metadata/identity/info."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .._http.messages import TEXT, Answer, compact, instance_error
from .identities import RESOURCE_GROUP, SUBSCRIPTION_ID, TENANT_ID
from .token_endpoint import API_VERSIONS, WRONG_METHOD, header_fault, version_fault

if TYPE_CHECKING:
    from .._http.messages import Received
    from .profiles import Profile

INSTANCE_PATH = "/metadata/instance"
VM_ID = "33333333-3333-3333-3333-333333333333"
IMAGE = {"offer": "ubuntu-24_04-lts", "publisher": "canonical", "sku": "server", "version": "24.04.202601010"}

# Recorded, spaces included.
NO_METADATA_HEADER = instance_error(400, "Bad request: . Required metadata header not specified")
WRONG_PATH = instance_error(404, "Not found")

# Documented status; the words are ours. The documentation names the newest versions, three of them, as here.
FORWARDED = instance_error(400, "Bad request. X-Forwarded-For header is not allowed")
NOT_JSON = instance_error(400, "Bad request. A single value is only available with format=text")
DUPLICATE = instance_error(400, "Bad request. Duplicate query parameters")
UNKNOWN_FORMAT = instance_error(400, "Bad request. format must be json or text")
BAD_VERSION = Answer(
    400,
    compact(
        {
            "error": "Bad request. api-version is invalid or was not specified in the request. "
            "For more information refer to aka.ms/azureimds",
            "newest-versions": [*API_VERSIONS[:-4:-1]],
        }
    ),
)


def answer(request: Received, profile: Profile) -> Answer | None:
    """Return what one of the paths of this module says.

    Args:
        request: The request.
        profile: The kind of machine. Container Instances document no other path than that of the token.

    Returns:
        The answer, or None for a path that is not one of them.
    """
    path = request.path
    if not profile.is_imds:
        return None
    if path == "/metadata/identity/info":
        fault = WRONG_METHOD if request.method != "GET" else header_fault(request) or version_fault(request)
        return fault or Answer(200, compact({"tenantId": TENANT_ID}))
    if path == "/metadata/versions":
        return _header_fault(request) or Answer(200, compact({"apiVersions": list(API_VERSIONS)}))
    if path == INSTANCE_PATH or path.startswith(INSTANCE_PATH + "/"):
        return _header_fault(request) or _instance(request, profile, path)
    return None


def _header_fault(request: Received) -> Answer | None:
    if request.method != "GET":
        return WRONG_METHOD
    # In any case of letters here: Azure's Linux agent (WALinuxAgent, azurelinuxagent/common/protocol/imds.py) and
    # OpenTelemetry's detectors for Azure send "True" from virtual machines everywhere.
    if (request.header("Metadata") or "").lower() != "true":
        return NO_METADATA_HEADER
    return None if request.header("X-Forwarded-For") is None else FORWARDED


def _instance(request: Received, profile: Profile, path: str) -> Answer:
    if any(len(values) > 1 for values in request.query.values()):
        return DUPLICATE
    if request.param("api-version") not in API_VERSIONS:
        return BAD_VERSION
    form = request.param("format") or "json"
    if form not in ("json", "text"):
        return UNKNOWN_FORMAT
    node: Any = document(profile)
    for step in path.removeprefix(INSTANCE_PATH).split("/")[1:]:
        try:
            node = node[int(step)] if isinstance(node, list) else node[step]
        except (KeyError, ValueError, IndexError, TypeError):
            return WRONG_PATH
    if form == "json":
        return NOT_JSON if isinstance(node, str) else Answer(200, json.dumps(node, separators=(",", ":")).encode())
    return Answer(200, _as_text(node).encode(), TEXT)


def _as_text(node: Any) -> str:
    """Return a value as it is; of an object the names of its members, with a slash where they are objects."""
    if isinstance(node, str):
        return node
    items = node.items() if isinstance(node, dict) else ((str(number), item) for number, item in enumerate(node))
    return "\n".join(name if isinstance(item, str) else f"{name}/" for name, item in items)


def document(profile: Profile) -> dict[str, Any]:
    """Return the instance document of a small Linux VM: all strings, empty for what does not apply (IMDSDOC)."""
    kind, name = profile.machine_id.rsplit("/", 2)[1:]
    is_set = kind == "virtualMachineScaleSets"
    machine = f"{name}_0" if is_set else name
    compute = {
        "additionalCapabilities": {"hibernationEnabled": "false"},
        "azEnvironment": "AzurePublicCloud",
        "customData": "",
        "evictionPolicy": "",
        "extendedLocation": {"name": "", "type": ""},
        "host": {"id": ""},
        "hostGroup": {"id": ""},
        "isHostCompatibilityLayerVm": "false",
        "licenseType": "",
        "location": "westeurope",
        "name": machine,
        "offer": IMAGE["offer"],
        "osProfile": {"adminUsername": "azureuser", "computerName": machine, "disablePasswordAuthentication": "true"},
        "osType": "Linux",
        "physicalZone": "",
        "placementGroupId": "",
        "plan": {"name": "", "product": "", "publisher": ""},
        "platformFaultDomain": "0",
        "platformSubFaultDomain": "",
        "platformUpdateDomain": "0",
        "priority": "",
        "provider": "Microsoft.Compute",
        "publicKeys": [],
        "publisher": IMAGE["publisher"],
        "resourceGroupName": "imds-emulator",
        "resourceId": f"{profile.machine_id}/virtualMachines/0" if is_set else profile.machine_id,
        "securityProfile": {
            "encryptionAtHost": "false",
            "secureBootEnabled": "true",
            "securityType": "TrustedLaunch",
            "virtualTpmEnabled": "true",
        },
        "sku": IMAGE["sku"],
        "storageProfile": _storage_profile(machine),
        "subscriptionId": SUBSCRIPTION_ID,
        "tags": "source:emulator",
        "tagsList": [{"name": "source", "value": "emulator"}],
        "userData": "",
        "version": IMAGE["version"],
        "virtualMachineScaleSet": {"id": ""},  # of flexible orchestration; the profile vmss stands for a uniform one
        "vmId": VM_ID,
        "vmScaleSetName": name if is_set else "",
        "vmSize": "Standard_D2s_v5",
        "zone": "1",
    }
    address = {"privateIpAddress": "10.0.0.4", "publicIpAddress": ""}
    interface = {
        "ipv4": {"ipAddress": [address], "subnet": [{"address": "10.0.0.0", "prefix": "24"}]},
        "ipv6": {"ipAddress": []},
        "macAddress": "000D3A000001",
    }
    return {"compute": compute, "network": {"interface": [interface]}}


def _storage_profile(machine: str) -> dict[str, Any]:
    """Return the disks of a VM with one OS disk, no data disk and no local temporary disk (0 kB, says IMDSDOC)."""
    galleries = {"communityGalleryImageId": "", "exactVersion": "", "id": "", "sharedGalleryImageId": ""}
    disk = f"{machine}_OsDisk_1"
    return {
        "dataDisks": [],
        "imageReference": {**galleries, **IMAGE},
        "osDisk": {
            "caching": "ReadWrite",
            "createOption": "FromImage",
            "diffDiskSettings": {"option": ""},
            "diskSizeGB": "30",
            "encryptionSettings": {
                "diskEncryptionKey": {"secretUrl": "", "sourceVault": {"id": ""}},
                "enabled": "false",
                "keyEncryptionKey": {"keyUrl": "", "sourceVault": {"id": ""}},
            },
            "image": {"uri": ""},
            "managedDisk": {
                "id": f"{RESOURCE_GROUP}/providers/Microsoft.Compute/disks/{disk}",
                "storageAccountType": "Premium_LRS",
            },
            "name": disk,
            "osType": "Linux",
            "vhd": {"uri": ""},
            "writeAcceleratorEnabled": "false",
        },
        "resourceDisk": {"size": "0"},
    }
