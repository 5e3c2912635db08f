"""Import, and import with the first token, in a process that has azure.keyvault.secrets loaded.

The interpreter's start is not counted. The processes take turns, so that whatever else the machine does hits all
libraries alike, and the best of each is compared, since it can only add; the medians are in the JSON.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from .children import run_code
from .peers import IDENTITY, MSAL, OURS, PEERS, RESOURCE
from .report import Row

if TYPE_CHECKING:
    from .emulator import EmulatorProcess

IMPORTS = {
    OURS: "from azure_imds_credential import ImdsCredential",
    IDENTITY: "from azure.identity import ManagedIdentityCredential",
    MSAL: "import msal",
}
FIRST_TOKENS = {
    OURS: f"from azure_imds_credential import ImdsCredential; ImdsCredential().get_token('{RESOURCE}/.default').token",
    IDENTITY: "from azure.identity import ManagedIdentityCredential; "
    f"ManagedIdentityCredential().get_token('{RESOURCE}/.default').token",
    MSAL: "import msal, requests; msal.ManagedIdentityClient(msal.SystemAssignedManagedIdentity(), "
    f"http_client=requests.Session()).acquire_token_for_client(resource='{RESOURCE}')['access_token']",
}


def milliseconds(statement: str, endpoint: str) -> float:
    """Time a statement in a process of its own."""
    return float(
        run_code(
            "import azure.keyvault.secrets, time; begun = time.perf_counter(); "
            f"{statement}; print((time.perf_counter() - begun) * 1000)",
            endpoint=endpoint,
        )
    )


def measure(emulator: EmulatorProcess, *, quick: bool) -> list[Row]:
    """Time both, in turns; the first turn writes bytecode and is not counted."""
    rounds = 2 if quick else 61
    machine = emulator.Machine()  # type: ignore[attr-defined] # registered
    endpoint = machine.endpoint()
    samples: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):
        for what, statements in (("import", IMPORTS), ("first token", FIRST_TOKENS)):
            for peer in PEERS:
                spent = milliseconds(statements[peer], endpoint)
                if turn:
                    samples.setdefault((what, peer), []).append(spent)
    machine.close()
    least = {key: min(values) for key, values in samples.items()}
    imports = {peer: 100 * least["import", peer] / least["import", IDENTITY] for peer in PEERS}
    firsts = {peer: least["first token", peer] / least["first token", MSAL] for peer in PEERS}
    detail = {
        what: {peer: {"least": least[what, peer], "median": median(samples[what, peer])} for peer in PEERS}
        for what in ("import", "first token")
    }
    return [
        Row("import, ms", {peer: least["import", peer] for peer in PEERS}),
        Row("import and first token, ms", {peer: least["first token", peer] for peer in PEERS}),
        Row(
            "import, % of azure-identity's",
            imports,
            "at most 5",
            imports[OURS] <= 5,
            {"milliseconds": detail["import"], "processes": rounds},
        ),
        Row(
            "import and first token, times bare msal's",
            firsts,
            "at most 1.1",
            firsts[OURS] <= 1.1,
            {"milliseconds": detail["first token"], "processes": rounds},
        ),
    ]
