"""The kinds of machine an emulator can stand for: what differs between them on the token endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .identities import RESOURCE_GROUP, Identity, SystemAssigned, UserAssigned

ProfileName = Literal["vm", "vmss", "aci", "aks"]


@dataclass(frozen=True)
class Profile:
    """One kind of machine.

    Args:
        name: What it is asked for by.
        machine_id: ARM ID of the machine.
        is_imds: IMDS itself answers. Container Instances have an endpoint of their own with another answer.
        identities: What the machine has unless the caller says otherwise.
    """

    name: ProfileName
    machine_id: str
    is_imds: bool
    identities: tuple[Identity, ...]


def _machine(kind: str) -> str:
    return f"{RESOURCE_GROUP}/providers/{kind}"


# Scale sets, AKS nodes and pods reach the same IMDS as a plain VM; captured errors are the same. On an AKS node the
# usual identity is the kubelet's user-assigned one, named after the cluster.
PROFILES: dict[ProfileName, Profile] = {
    profile.name: profile
    for profile in (
        Profile("vm", _machine("Microsoft.Compute/virtualMachines/vm-1"), True, (SystemAssigned(),)),
        Profile("vmss", _machine("Microsoft.Compute/virtualMachineScaleSets/vmss-1"), True, (SystemAssigned(),)),
        Profile("aci", _machine("Microsoft.ContainerInstance/containerGroups/group-1"), False, (SystemAssigned(),)),
        Profile(
            "aks",
            _machine("Microsoft.Compute/virtualMachineScaleSets/aks-nodepool1-vmss"),
            True,
            (UserAssigned("cluster-1-agentpool"),),
        ),
    )
}
