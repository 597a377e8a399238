#!/usr/bin/env python3
"""A small real process in an engine's place: `vllm serve MODEL … --host H --port P`, one token per completion."""

import http.server
import json
import socketserver
import sys

USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
CHOICE = {"index": 0, "text": "aye", "message": {"role": "assistant", "content": "aye"}, "finish_reason": "length"}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer({"status": "well"})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = {"id": "cmpl-1", "object": "text_completion", "choices": [CHOICE], "usage": USAGE}
        if asked.get("stream"):
            self._send(b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(answer).encode(), "text/event-stream")
        else:
            self._answer(answer)

    def _answer(self, body):
        self._send(json.dumps(body).encode(), "application/json")

    def _send(self, data, media):
        self.send_response(200)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def server_bind(self):
        """Without the base class's look-up of its own name, which may wait for a name server."""
        socketserver.TCPServer.server_bind(self)


def flag(name):
    return sys.argv[sys.argv.index(name) + 1]


Server((flag("--host"), int(flag("--port"))), Handler).serve_forever()
