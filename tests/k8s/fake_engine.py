#!/usr/bin/env python3
"""A small real process in an engine's place: same command line as an engine, misbehaves as FAKE says."""

import http.server
import json
import os
import signal
import socketserver
import subprocess
import sys
import time
from pathlib import Path

FAULT = json.loads(os.environ.get("FAKE", "{}"))
SICK = Path(os.environ["HOME"]) / "sick"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"pid": os.getpid(), "env": dict(os.environ), "argv": sys.argv}).encode()
        self.send_response(503 if self.path == "/health" and (SICK.exists() or FAULT.get("sick")) else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def server_bind(self):
        """Without the base class's look-up of its own name, which may wait for a name server."""
        socketserver.TCPServer.server_bind(self)


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def flag(name):
    return sys.argv[sys.argv.index(name) + 1]


def on_term(*_):
    time.sleep(FAULT.get("drain_s", 0))
    sys.exit(0)


signal.signal(signal.SIGTERM, signal.SIG_IGN if FAULT.get("stubborn") else on_term)
say(f"starting {os.environ['POD_IP']}")
if FAULT.get("child"):
    subprocess.Popen(["sleep", "1000"])
if "chatter" in FAULT:
    say("\n".join(["x" * 99] * (FAULT["chatter"] // 100)))
if "crash" in FAULT:
    say("cannot load the model")
    sys.exit(FAULT["crash"])
if "--headless" in sys.argv:
    say(f"headless, process {os.getpid()}, {' '.join(sys.argv[1:])}")
    time.sleep(1000)
time.sleep(FAULT.get("load_s", 0))
Server((flag("--host"), int(flag("--port"))), Handler).serve_forever()
