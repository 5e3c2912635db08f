"""The fixtures as a user's tests see them: pytest runs inside pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from azure_imds_credential import ImdsCredential
from azure_imds_credential.testing import ImdsEmulator

pytest_plugins = ["pytester"]

# Loaded before the first inner run, which would otherwise load them anew, each one its own copy, and forget them again.
PRELOADED = [
    import_module(name) for name in ("azure.identity", "azure_imds_credential.testing._recording.cassette", "msal")
]
# Without the plugins of others, which cost each inner run half a second.
ALONE = [f"-pno:{name}" for name in ("anyio", "cacheprovider", "hypothesispytest", "platformdirs", "xdist")]
RECORDINGS = Path(__file__).parent.parent / "recordings"


@pytest.fixture
def run(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Runs a test file of a user with the plugin as the entry point loads it. Warnings are errors there too."""

    def run(source: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(test_user=textwrap.dedent(source))
        return pytester.runpytest_inprocess("-W", "error", "--strict-markers", *ALONE, *arguments)

    return run


def test_a_credential_in_one_line(run: Any) -> None:
    """Naming imds_credential is all it takes to get a token; imds_emulator shows what was asked."""
    run(
        """
        def test_token(imds_credential, imds_emulator):
            token = imds_credential.get_token("https://vault.azure.net/.default")
            assert imds_emulator.tokens == [token.token]
            imds_emulator.assert_requests(1, resource="https://vault.azure.net", client_id=None)
        """
    ).assert_outcomes(passed=1)


def test_no_tokens_of_others(run: Any) -> None:
    """A token of one test serves no other one, although every credential of the process shares a cache."""
    run(
        """
        import pytest
        from azure_imds_credential import ImdsCredential
        from azure_imds_credential.testing import ImdsEmulator

        @pytest.fixture(scope="session")
        def shared():
            with ImdsEmulator() as imds:
                yield imds

        def test_leaves_a_token(shared):
            ImdsCredential(endpoint=shared.endpoint).get_token("https://vault.azure.net/.default")

        @pytest.mark.parametrize("fixture", ["imds_emulator", "imds_credential", "no_network"] * 2)
        def test_asks(fixture, request, shared):
            request.getfixturevalue(fixture)
            shared.clear_requests()
            for _ in range(2):
                ImdsCredential(endpoint=shared.endpoint).get_token("https://vault.azure.net/.default")
            shared.assert_requests(1)

        def test_asks_after_the_others(shared):
            shared.clear_requests()
            ImdsCredential(endpoint=shared.endpoint).get_token("https://vault.azure.net/.default")
            shared.assert_requests(1)
        """
    ).assert_outcomes(passed=8)


def test_own_credential(run: Any) -> None:
    """The environment leads any credential to the emulator."""
    run(
        """
        import pytest
        from azure.identity import ManagedIdentityCredential
        from azure_imds_credential import ImdsCredential

        @pytest.mark.parametrize("credential", [ImdsCredential, ManagedIdentityCredential])
        def test_token(imds_emulator, credential):
            with credential() as made:
                assert made.get_token("https://vault.azure.net/.default").token == imds_emulator.tokens[0]
        """
    ).assert_outcomes(passed=2)


@pytest.mark.parametrize("fixture", ["imds_emulator", "imds_credential", "imds_recording"])
def test_other_sources_do_not_count(run: Any, fixture: str) -> None:
    """Whatever other token source the environment names, a test that stands in for a VM sees IMDS."""
    run(
        f"""
        import pytest
        from azure_imds_credential import ManagedIdentitySource, detect_source

        SOURCES = {{
            "APP_SERVICE": ["IDENTITY_ENDPOINT", "IDENTITY_HEADER"],
            "SERVICE_FABRIC": ["IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IDENTITY_SERVER_THUMBPRINT"],
            "MACHINE_LEARNING": ["MSI_ENDPOINT", "MSI_SECRET"],
            "AZURE_ARC": ["IDENTITY_ENDPOINT", "IMDS_ENDPOINT"],
            "CLOUD_SHELL": ["AZUREPS_HOST_ENVIRONMENT"],
        }}

        @pytest.mark.parametrize("source", SOURCES)
        @pytest.mark.imds_recording({str(recording())!r})
        def test_source(source, request, monkeypatch):
            for name in SOURCES[source]:
                monkeypatch.setenv(name, "cloud-shell/1.0")
            assert detect_source() is ManagedIdentitySource[source]
            request.getfixturevalue({fixture!r})
            assert detect_source() is ManagedIdentitySource.IMDS
        """
    ).assert_outcomes(passed=5)


def test_options_of_the_emulator(run: Any) -> None:
    """The marker takes the emulator's options, also for a whole module."""
    run(
        """
        import pytest
        from azure_imds_credential import IdentityUnavailableError
        from azure_imds_credential.testing import UserAssigned

        pytestmark = pytest.mark.imds(identities=[])

        def test_none(imds_credential):
            with pytest.raises(IdentityUnavailableError):
                imds_credential.get_token("https://vault.azure.net/.default")

        @pytest.mark.imds(identities=[UserAssigned("reader")], profile="vmss")
        def test_one(imds_credential):
            assert imds_credential.whoami().client_id == UserAssigned("reader").client_id

        @pytest.mark.imds([UserAssigned("writer")])
        def test_unnamed(imds_emulator):
            assert imds_emulator.identities == (UserAssigned("writer"),)
        """
    ).assert_outcomes(passed=3)


def test_a_failing_count_reads_well(run: Any) -> None:
    """A failed assert_requests shows the requests in the report of the test."""
    result = run(
        """
        def test_token(imds_credential, imds_emulator):
            imds_credential.get_token("https://vault.azure.net/.default")
            imds_emulator.assert_requests(2)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*expected 2 IMDS request(s), found 1. All that came:",
            "E*1. *GET /metadata/identity/oauth2/token?*resource=https*vault.azure.net* (Metadata: true) -> 200",
        ]
    )


def test_no_network(run: Any) -> None:
    """Other addresses and all names are refused, by parsed address; loopback in any spelling works."""
    run(
        """
        import socket
        from http.server import BaseHTTPRequestHandler, HTTPServer
        import pytest

        OUTSIDE = ["192.0.2.1", "127.0.0.1.example.com", "localhost.example.com", "2001:db8::1", "10.0.0.1"]

        @pytest.mark.parametrize("host", OUTSIDE)
        def test_refused(no_network, host):
            with pytest.raises(BaseException, match="would leave this machine") as refusal:
                socket.create_connection((host, 80), timeout=1)
            assert not isinstance(refusal.value, Exception)
            assert len(no_network) == 1
            no_network.clear()

        @pytest.mark.parametrize("send", ["connect", "connect_ex", "sendto", "sendmsg"])
        def test_nothing_sent(no_network, send):
            before = {"sendto": [b"x"], "sendmsg": [[b"x"], [], 0]}.get(send, [])
            with socket.socket(type=socket.SOCK_DGRAM) as udp:
                with pytest.raises(BaseException, match="a connection to 192.0.2.1 would leave"):
                    getattr(udp, send)(*before, ("192.0.2.1", 9))
            no_network.clear()

        LOOK_UPS = ["gethostbyname", "gethostbyname_ex", "getaddrinfo", "gethostbyaddr", "getfqdn"]

        @pytest.mark.parametrize("look_up", LOOK_UPS)
        def test_no_names(no_network, look_up):
            with pytest.raises(BaseException, match="a look-up of management.azure.com would leave"):
                getattr(socket, look_up)("management.azure.com", *([80] if look_up == "getaddrinfo" else []))
            no_network.clear()

        def test_no_names_of_addresses(no_network):
            with pytest.raises(BaseException, match="a look-up of 192.0.2.1 would leave"):
                socket.getnameinfo(("192.0.2.1", 80), 0)
            no_network.clear()

        def test_loopback_without_connections(no_network):
            with socket.socket(type=socket.SOCK_DGRAM) as here, socket.socket(type=socket.SOCK_DGRAM) as there:
                there.bind(("127.0.0.1", 0))
                here.sendmsg([b"1"], [], 0, there.getsockname())
                here.connect(there.getsockname())
                here.sendmsg((b"2", b"3"))
                here.sendmsg(iter([b"4", b"5"]))  # as asyncio has it
                assert [there.recv(9), there.recv(9), there.recv(9)] == [b"1", b"23", b"45"]
            assert socket.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICSERV)[1] == "80"
            HTTPServer(("", 0), BaseHTTPRequestHandler).server_close()  # looks for its own name
            assert no_network == []

        @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.1"])
        def test_loopback(no_network, host):
            with pytest.raises(OSError):
                socket.create_connection((host, 9), timeout=1)
            assert no_network == []

        def test_with_the_emulator(no_network, imds_credential):
            assert imds_credential.get_token("https://vault.azure.net/.default").token
        """
    ).assert_outcomes(passed=21)


def test_a_swallowed_refusal(run: Any) -> None:
    """A test fails when something was refused, even if nothing of it was seen, and is told where it was asked for."""
    result = run(
        """
        import socket, threading
        import pytest, requests

        def ask():
            try:
                socket.create_connection(("192.0.2.1", 80))
            except BaseException:
                pass

        def test_swallowed(no_network):
            ask()

        def test_in_a_thread(no_network):
            thread = threading.Thread(target=ask, name="asker")
            thread.start()
            thread.join()

        def test_in_a_library(no_network):
            try:
                requests.get("http://192.0.2.1/")
            except BaseException:
                pass

        @pytest.mark.usefixtures("no_network")
        class TestOfAClass:
            def test_swallowed(self):
                ask()

        def test_expected(no_network):
            ask()
            assert no_network == ["a look-up of 192.0.2.1 (test_user.py:6 in ask)"]
            no_network.clear()

        def test_not_swallowed(no_network):
            socket.create_connection(("192.0.2.1", 80))

        @pytest.fixture
        def late(no_network):
            yield
            ask()

        def test_at_its_end(late):
            pass
        """
    )
    result.assert_outcomes(failed=5, passed=2, errors=1)
    result.stdout.fnmatch_lines(["  a look-up of 192.0.2.1 (test_user.py:6 in ask)"] * 2)
    result.stdout.fnmatch_lines(["  a look-up of 192.0.2.1 (test_user.py:20 in test_in_a_library, through urllib3*)"])
    result.stdout.fnmatch_lines(["A test that expects this empties the list that the fixture yields."])


PROXY = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        connection, _ = server.accept()
        connection.recv(100)
        connection.close()
"""


def test_no_network_sees_proxies(run: Any) -> None:
    """A proxy on loopback leads away: one that the environment names, and one that is asked for another machine."""
    with subprocess.Popen([sys.executable, "-c", PROXY], stdout=subprocess.PIPE, text=True) as proxy:
        try:
            assert proxy.stdout is not None
            port = int(proxy.stdout.readline())
            result = run(
                f"""
                import socket
                import pytest, requests

                URL = "http://127.0.0.1:{port}"

                @pytest.mark.parametrize("scheme", ["http", "https"])
                @pytest.mark.parametrize("variable", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
                def test_environment(no_network, monkeypatch, variable, scheme):
                    monkeypatch.setenv(variable, URL)
                    with socket.socket() as client, pytest.raises(BaseException, match="{port} of .*_PROXY"):
                        client.connect(("127.0.0.1", {port}))
                    no_network.clear()

                ASKED = [
                    b"CONNECT vault.azure.net:443 HTTP/1.1\\r\\n\\r\\n",
                    b"GET http://vault.azure.net/x HTTP/1.1\\r\\n\\r\\n",
                    b"GET https://[2001:db8::1]:1/x HTTP/1.1\\r\\n\\r\\n",
                    b"\\x05\\x01\\x00\\x03\\x0fvault.azure.net\\x01\\xbb",
                    b"\\x05\\x01\\x00\\x01\\xc0\\x00\\x02\\x01\\x01\\xbb",
                ]

                @pytest.mark.parametrize("asked", ASKED)
                @pytest.mark.parametrize("send", ["send", "sendall", "sendmsg"])
                def test_asked(no_network, send, asked):
                    with socket.create_connection(("127.0.0.1", {port})) as client:
                        with pytest.raises(BaseException, match="a connection through a proxy to .* would leave"):
                            getattr(client, send)([asked] if send == "sendmsg" else asked)
                    no_network.clear()

                @pytest.mark.parametrize("url", ["http://vault.azure.net", "https://vault.azure.net"])
                def test_requests(no_network, url):
                    with pytest.raises(BaseException, match="through a proxy to vault.azure.net"):
                        requests.get(url, proxies={{"http": URL, "https": URL}})
                    no_network.clear()

                HARMLESS = [
                    b"CONNECT localhost:443 HTTP/1.1\\r\\n\\r\\n",
                    b"GET http://127.0.0.1/x HTTP/1.1\\r\\n\\r\\n",
                    b"GET /?at=http://vault.azure.net HTTP/1.1\\r\\n\\r\\n",
                    b"\\x05\\x01\\x00",
                ]

                @pytest.mark.parametrize("asked", HARMLESS)
                def test_harmless(no_network, asked):
                    with socket.create_connection(("127.0.0.1", {port})) as client:
                        client.sendall(asked)

                def test_doubles_of_this_process(no_network):
                    with socket.create_server(("127.0.0.1", 0)) as server:
                        with socket.create_connection(server.getsockname()) as client:
                            client.sendall(b"CONNECT vault.azure.net:443 HTTP/1.1\\r\\n\\r\\n")
                """.replace("\\\\", "\\")
            )
        finally:
            proxy.kill()
    result.assert_outcomes(passed=6 + 15 + 2 + 4 + 1)


def test_real_shared_cache(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fixture writes a token where processes of the user share theirs, finds one there, or empties it."""
    if not sys.platform.startswith("linux") or not os.access("/dev/shm", os.W_OK):
        pytest.skip("tokens are shared where Linux has /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as real:
        monkeypatch.setenv("XDG_RUNTIME_DIR", real)
        with ImdsEmulator() as imds:
            ImdsCredential(endpoint=imds.endpoint, shared_cache=True).get_token("https://vault.azure.net/.default")
            before = {path: path.stat().st_mtime_ns for path in sorted(Path(real).rglob("*.token"))}
            assert len(before) == 1
            source = f"""
                import subprocess, sys
                import pytest
                from azure_imds_credential import ImdsCredential
                from azure_imds_credential._shared.memory_files import empty_folders

                SCOPE = "https://vault.azure.net/.default"
                CODE = "from azure_imds_credential import ImdsCredential as C; import sys; "
                CODE += "C(endpoint=sys.argv[1], shared_cache=True).get_token(sys.argv[2])"

                @pytest.mark.parametrize("fixture", ["imds_emulator", "no_network"])
                def test_own_folder(request, fixture):
                    request.getfixturevalue(fixture)
                    token = ImdsCredential(endpoint="{imds.endpoint}", shared_cache=True).get_token(SCOPE)
                    subprocess.run([sys.executable, "-c", CODE, "{imds.endpoint}", SCOPE], check=True)
                    assert empty_folders(".token") == 1

                @pytest.mark.imds_recording({str(recording())!r})
                def test_replay(imds_recording):
                    ImdsCredential(shared_cache=True).get_token(SCOPE)
                    assert imds_recording.play_count == 1
                    assert empty_folders(".token") == 1
            """
            imds.clear_requests()
            run(source).assert_outcomes(passed=3)
            imds.assert_requests(2)
        assert {path: path.stat().st_mtime_ns for path in sorted(Path(real).rglob("*.token"))} == before


def test_misused_markers(run: Any) -> None:
    """A marker that has no effect, or not the arguments it needs, is told with the test."""
    result = run(
        """
        import pytest

        @pytest.mark.imds(throttle=True)
        def test_without_fixture():
            pass

        @pytest.mark.imds_recording
        def test_without_path(imds_recording):
            pass

        @pytest.mark.imds_recording(path="x.yaml")
        def test_with_a_name(imds_recording):
            pass

        @pytest.mark.imds(throttel=True)
        def test_unknown_option(imds_emulator):
            pass
        """
    )
    result.assert_outcomes(errors=4)
    result.stdout.fnmatch_lines_random(
        [
            "@pytest.mark.imds means nothing: the test does not use imds_emulator",
            "@pytest.mark.imds_recording takes the path of a recording, got ()",
            "@pytest.mark.imds_recording takes the path of a recording, got (path='x.yaml')",
            "E*TypeError: *throttel*",
        ]
    )


def test_no_network_ends_with_the_test(run: Any) -> None:
    """What comes after a test with no_network may use the network again."""
    run(
        """
        import socket
        before = socket.socket.connect, socket.getaddrinfo

        def test_inside(no_network):
            assert (socket.socket.connect, socket.getaddrinfo) != before

        def test_outside():
            assert (socket.socket.connect, socket.getaddrinfo) == before
        """
    ).assert_outcomes(passed=2)


def recording() -> Path:
    """A recording of this project that reads a secret with the system-assigned identity."""
    return next(path for path in sorted(RECORDINGS.glob("*.yaml")) if "system" in path.stem)


REPLAYED = """
    import pytest
    from azure_imds_credential import ImdsCredential

    {marker}
    def test_replayed(imds_recording):
        token = ImdsCredential().get_token("https://vault.azure.net/.default")
        assert token.token.count(".") == 2
        assert imds_recording.play_count == 1
"""


def test_recording_by_test_name(run: Any, pytester: pytest.Pytester) -> None:
    """The recording of a test lies in recordings/MODULE/TEST.yaml beside it, and is replayed without any network."""
    target = pytester.path / "recordings" / "test_user" / "test_replayed.yaml"
    target.parent.mkdir(parents=True)
    target.write_bytes(recording().read_bytes())
    run(REPLAYED.format(marker="")).assert_outcomes(passed=1)


def test_recording_names(run: Any, pytester: pytest.Pytester) -> None:
    """Two tests share no recording: the class is part of its name, and a parameter cannot lead to another folder."""
    run(
        """
        import pytest
        from azure_imds_credential import ImdsCredential
        from azure_imds_credential.testing import ImdsEmulator

        def ask():
            with ImdsEmulator() as imds:
                ImdsCredential(endpoint=imds.endpoint).get_token("https://vault.azure.net/.default")

        @pytest.mark.parametrize("parameter", ["a/../../b", "c:d", "c?d", "a", "A"])
        def test_token(imds_recording, parameter):
            ask()

        class TestOne:
            def test_token(self, imds_recording):
                ask()

            class TestInner:
                def test_token(self, imds_recording):
                    ask()
        """,
        "--imds-record=once",
    ).assert_outcomes(passed=7)
    found = sorted((pytester.path / "recordings" / "test_user").iterdir())
    assert sorted(re.sub("-[0-9a-f]{8}[.]", "-HASH.", path.name) for path in found) == [
        "TestOne.TestInner.test_token.yaml",
        "TestOne.test_token.yaml",
        "test_token[A]-HASH.yaml",
        "test_token[a-..-..-b]-HASH.yaml",
        "test_token[a].yaml",
        "test_token[c-d]-HASH.yaml",
        "test_token[c-d]-HASH.yaml",
    ]


def test_a_recording_can_be_named(run: Any) -> None:
    """A marker names another recording."""
    marker = f"@pytest.mark.imds_recording({str(recording())!r})"
    run(REPLAYED.format(marker=marker)).assert_outcomes(passed=1)


def test_missing_recording(run: Any) -> None:
    """Without a recording the test is an error that says how one is made; nothing is sent."""
    result = run(REPLAYED.format(marker=""))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E*FileNotFoundError: no recording *test_user*test_replayed.yaml*"])


def test_recording_on_request(run: Any, pytester: pytest.Pytester) -> None:
    """With --imds-record=once the test asks whatever IMDS there is; the next run replays that, with it gone."""
    source = """
        import os
        from azure_imds_credential import ImdsCredential
        from azure_imds_credential.testing import ImdsEmulator

        def test_token(imds_recording, monkeypatch):
            with ImdsEmulator() as imds:
                monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
                assert ImdsCredential().get_token("https://vault.azure.net/.default").token
                assert len(imds.requests) == {requests}
    """
    run(source.format(requests=1), "--imds-record=once").assert_outcomes(passed=1)
    assert (pytester.path / "recordings" / "test_user" / "test_token.yaml").is_file()
    run(source.format(requests=0)).assert_outcomes(passed=1)


def test_listed_by_pytest(run: Any) -> None:
    """`pytest --markers` and `--fixtures` show what the plugin offers, each with its explanation."""
    run("", "--markers").stdout.fnmatch_lines(["@pytest.mark.imds(*", "@pytest.mark.imds_recording(path): *"])
    run("", "--fixtures").stdout.fnmatch_lines_random(
        ["imds_emulator -- *", "imds_credential -- *", "no_network -- *", "imds_recording -- *"]
    )


UNUSED = """
import sys

def test_nothing():
    libraries = {"cryptography", "vcr", "yaml", "msal", "requests", "jwt", "trustme"}
    if sys.version_info < (3, 14):  # from then on pdb, which pytest loads, imports asyncio
        libraries.add("asyncio.base_events")
    assert not libraries & set(sys.modules)
    kit = {name for name in sys.modules if name.startswith("azure_imds_credential.testing.")}
    assert kit == {"azure_imds_credential.testing._plugin"}
"""


def test_it_costs_nothing_when_unused(tmp_path: Path) -> None:
    """A run that uses no fixture of the plugin loads no module of the kit but the plugin, and no library it needs."""
    (tmp_path / "test_user.py").write_text(UNUSED)
    command = [sys.executable, "-m", "pytest", "-q", *ALONE, "test_user.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout
