"""Coverage-guided fuzzing of `judge`: `python tests/fuzz_responses.py -max_total_time=60`.

Not a test module: libFuzzer takes over the process. tests/test_fuzz.py runs a bounded piece of it.
"""

from __future__ import annotations

import json
import sys

import atheris

with atheris.instrument_imports(include=["azure_imds_credential", "json"]):
    from azure_imds_credential._identity import Identity
    from azure_imds_credential._imds.response import EXCERPT_LIMIT, Response, Situation, judge
    from azure_imds_credential._jwt import MAX_LIFE
    from azure_imds_credential._whoami import identity_info

RESOURCE = "https://vault.azure.net"
CLIENT = "6a7b8c9d-0000-4000-8000-00000000abcd"
IDENTITIES = [Identity(), Identity("client_id", CLIENT), Identity(must_be_system_assigned=True)]
NAMES = ("server", "date", "retry-after", "x-ms-request-id", "location")
SEEDS = (
    b'{"access_token":"e30.e30.e30","expires_in":"3600","resource":"https://vault.azure.net"}',
    b'{"error":"invalid_request","error_description":"Identity not found"}',
)


def judge_one(data: bytes) -> None:
    """Build a response from bytes, judge it, and check what every verdict promises."""
    provider = atheris.FuzzedDataProvider(data)
    status = provider.PickValueInList(
        [200, 200, 200, 400, 404, 410, 429, 500, 302, provider.ConsumeIntInRange(100, 999)]
    )
    headers = {name: provider.ConsumeUnicode(20) for name in NAMES if provider.ConsumeBool()}
    if provider.ConsumeBool():
        headers["server"] = "IMDS/1"
    situation = Situation(
        seen=provider.ConsumeBool(), is_booting=provider.ConsumeBool(), has_proxy_agent=provider.ConsumeBool()
    )
    identity = provider.PickValueInList(IDENTITIES)
    body = provider.ConsumeBytes(4096)
    if provider.ConsumeBool():
        body = SEEDS[len(body) % 2].replace(b"3600", body[:40])

    verdict = judge(Response(status, headers, body), identity, RESOURCE, situation, 1.79e9)
    for shown in (verdict.description, verdict.code, verdict.excerpt, verdict.request_id):
        assert shown is None or (len(shown) <= EXCERPT_LIMIT and shown.isprintable())
    if verdict.error is None:
        assert status == 200
        document = json.loads(body.decode("utf-8-sig"))
        assert document["access_token"] == verdict.access_token
        assert 0 < verdict.life <= MAX_LIFE
        identity_info(verdict.access_token)
    else:
        assert not verdict.access_token


if __name__ == "__main__":
    atheris.Setup(sys.argv, judge_one)
    atheris.Fuzz()
