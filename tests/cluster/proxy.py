"""A proxy before an API server that answers, cuts or holds back what a test says."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import urllib3


def status(code, message="injected", headers=None):
    """A fault: the server refuses in its own words."""

    def answer(handler):
        handler.answer(code, json.dumps({"kind": "Status", "message": message, "code": code}).encode(), headers)

    return answer


def cut(handler):
    """A fault: the connection ends without an answer."""
    handler.close_connection = True


def lose_answer(handler):
    """A fault: the server does what was asked, and nobody hears of it."""
    handler.forward().read()
    handler.close_connection = True


def garble(handler):
    """A fault: something that is not an API server answers."""
    handler.answer(200, b"<html>welcome</html>")


def hang(handler):
    """A fault: no answer until the proxy is closed."""
    handler.close_connection = True
    handler.server.proxy.closed.wait(60)


def expire(handler):
    """A fault for watches: the version has become too old, told inside the stream."""
    event = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}
    handler.answer(200, json.dumps(event).encode() + b"\n")


def break_off(handler):
    """A fault for watches: the connection breaks in the middle of an event."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'8\r\n{"type":\r\n')
    handler.close_connection = True


class Proxy:
    """Listens on loopback; `faults` by method, or "WATCH", are what becomes of such requests; `asked` are all."""

    def __init__(self, kubeconfig, certificate):
        self.faults = {}
        self.asked = []
        self.closed = threading.Event()
        self.target = kubeconfig["clusters"][0]["cluster"]["server"]
        self.pool = urllib3.PoolManager(ca_certs=str(certificate), maxsize=16, retries=False)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.proxy = self
        cluster = {"name": "tests", "cluster": {"server": f"http://127.0.0.1:{self._server.server_port}"}}
        self.kubeconfig = kubeconfig | {"clusters": [cluster]}
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        """Let go of everybody that hangs."""
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self.pool.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _serve(self):
        size = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(size) if size else None
        kind = "WATCH" if "watch=true" in self.path else self.command
        self.server.proxy.asked.append((kind, self.path))
        fault = self.server.proxy.faults.get(kind)
        if fault:
            fault(self)
            return
        answer = self.forward()
        if kind != "WATCH":
            self.answer(answer.status, answer.read())
            return
        self.send_response(answer.status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for chunk in answer.stream():
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")
        except (urllib3.exceptions.HTTPError, OSError):
            self.close_connection = True

    do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815  the base class's names

    def forward(self):
        """What the API server answers."""
        headers = {name: self.headers[name] for name in ("Authorization", "Content-Type") if name in self.headers}
        proxy = self.server.proxy
        return proxy.pool.request(
            self.command, proxy.target + self.path, body=self.body, headers=headers, preload_content=False
        )

    def answer(self, code, body, headers=None):
        """Answer whole."""
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass
