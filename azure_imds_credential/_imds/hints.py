"""What a reader of an error does next. IMDS's words choose a hint; they decide nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .._endpoint import MAX_CONCURRENT, MAX_PER_WINDOW
from .._errors import SHORTAGE_HINT
from .._identity import Identity
from ..exceptions import (
    IdentityMismatchError,
    IdentityUnavailableError,
    ImdsRequestError,
    ImdsServiceError,
    ImdsThrottledError,
)
from .response import Verdict


def hint_for(verdict: Verdict, identity: Identity, environ: Mapping[str, str] | None = None) -> str:
    """Return the sentence that tells the reader of an error what to do next."""
    environ = os.environ if environ is None else environ
    if verdict.error is IdentityUnavailableError:
        return _assign(verdict.description or "", identity)
    if verdict.error is IdentityMismatchError:
        return _mismatch(identity)
    if verdict.error is ImdsRequestError:
        return _refused(verdict)
    if verdict.error is ImdsThrottledError:
        return (
            f"A VM may ask IMDS {MAX_PER_WINDOW} times a second and {MAX_CONCURRENT} at once. Find out who else asks; "
            "share one token between the processes with shared_cache=True."
        )
    if verdict.is_fault:
        return "Fix the transport, hook or policy that was given to the credential: this is no answer of IMDS."
    if verdict.is_blocked:
        return (
            "Something in this process kept it from the network, as pytest-socket, vcrpy, requests_mock or an audit "
            "hook does: let it pass, or use azure_imds_credential.testing.ImdsEmulator. The log says at DEBUG what "
            "raised it."
        )
    if verdict.is_shortage:
        return SHORTAGE_HINT
    if verdict.is_large and verdict.error is ImdsServiceError:
        return "Check what answers there: the responses of a real IMDS have some 2,000 bytes."
    if verdict.error is ImdsServiceError:
        return "IMDS on this machine fails or is being updated; that usually passes within minutes. Try again later."
    if verdict.status is not None:
        return "Something that is not IMDS answered: a proxy, a portal, another cloud or Docker Desktop."
    if "KUBERNETES_SERVICE_HOST" in environ:
        return (
            "This is a pod: a network policy or AKS's IMDS restriction may block it. With workload identity "
            "(AZURE_FEDERATED_TOKEN_FILE) use azure.identity.WorkloadIdentityCredential."
        )
    return (
        "Is this an Azure VM, scale set, AKS node, container instance or Batch node? Elsewhere use another credential, "
        "or set AZURE_POD_IDENTITY_AUTHORITY_HOST to an emulator."
    )


def _mismatch(identity: Identity) -> str:
    if identity.must_be_system_assigned:
        return "Assign the machine its system-assigned identity, or leave require_system_assigned out."
    discarded = "The token was discarded. Check what answers there: it does not give what it is asked for."
    if identity.value is None:  # no identity was selected, so it can only be the resource
        return discarded
    return f"{discarded} If it is another identity, see which ones the machine has, and name the one you mean."


def _refused(verdict: Verdict) -> str:
    if verdict.refused_by_agent:
        # https://learn.microsoft.com/azure/virtual-machines/metadata-security-protocol/overview
        return (
            "The Metadata Security Protocol's guest agent (azure-proxy-agent) refuses this process: have its rules for "
            "IMDS allow this program and user."
        )
    if verdict.code == "invalid_resource":
        return "Check the scope: its resource must exist in the identity's tenant."
    if verdict.status in (401, 403):
        return "IMDS refuses this process: look at the machine's Metadata Security Protocol and its other policies."
    return "IMDS does not accept this request: check scope and identity, and what changed there of late."


def several_identities(description: str) -> bool:
    """Return whether IMDS says that it cannot choose. Its wording is no contract, so this only chooses a hint."""
    return "ultiple" in description


def _assign(description: str, identity: Identity) -> str:
    if "az login" in description:  # `azure-imds emulate --from azure-cli` hands on the words of the Azure CLI
        return "Log in where the emulator runs: `az login`. It need not be started again."
    if identity.value is None:
        if several_identities(description):
            return "Name one with client_id, object_id or resource_id: `az vm identity show -g GROUP -n VM` lists them."
        return (
            "Assign one: `az vm identity assign -g GROUP -n VM`. A new assignment may take minutes to arrive "
            "(wait_for_identity waits for it)."
        )
    return (
        f"Is this {identity.kind} right, and is the identity assigned to this machine? "
        "`az vm identity assign -g GROUP -n VM --identities RESOURCE_ID` does it; a new assignment may take minutes "
        "to arrive (wait_for_identity waits for it)."
    )
