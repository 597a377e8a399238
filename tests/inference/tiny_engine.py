#!/usr/bin/env python3
"""A small real process in the engine's place: `vllm serve MODEL … --host H --port P`, healthy at once."""

import http.server
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        model = sys.argv[sys.argv.index("--served-model-name") + 1].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(model)))
        self.end_headers()
        self.wfile.write(model)

    def log_message(self, *_):
        pass


def flag(name):
    return sys.argv[sys.argv.index(name) + 1]


http.server.ThreadingHTTPServer((flag("--host"), int(flag("--port"))), Handler).serve_forever()
