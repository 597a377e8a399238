"""HTTP at its worst: smuggling, slow and endless requests, odd bytes."""

import contextlib
import gzip
import json
import os
import socket
import time
from pathlib import Path

import httpx2
import pytest

from tests.inference.gateway.engine import Engine
from tests.inference.gateway.world import HELLO, Gateway, Tenant, World, gateway
from tests.services import wait_until

POST = b"POST /v1/chat/completions HTTP/1.1\r\n"


@pytest.mark.parametrize(
    "data",
    [
        POST + b"host: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"host: x\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
        POST + b"host: x\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc",
        POST + b"host: x\r\ncontent-length: 3\r\ncontent-length: 30\r\n\r\nabc",
        POST + b"host: x\r\ncontent-length: 3, 3\r\n\r\nabc",
        POST + b"host: x\r\ncontent-length: +3\r\n\r\nabc",
        POST + b"host: x\r\ncontent-length : 3\r\n\r\nabc",
        POST + b"host: x\r\ntransfer-encoding: xchunked\r\n\r\n",
        POST + b"host: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        POST + b"host: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"host: x\r\nx-a: b\r\n folded\r\n\r\n",
        POST + b"host: x\r\nx-a: b\r\n\tfolded\r\n\r\n",
        POST + b"host: x\r\nx-a: b\nx-b: c\r\n\r\n",
        POST + b"host: x\r\nx-a: b\rc\r\n\r\n",
        POST + b"host: x\r\nx-a: b\0c\r\n\r\n",
        POST + b"host: x\r\nhost: y\r\n\r\n",
        POST + b"x-a: no host\r\n\r\n",
        POST + b"host: x\r\nauthorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n",
        b"GET /v1/models HTTP/1.0\r\nhost: x\r\n\r\n",
        b"GET  /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        POST + b"host: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_faults_44_and_46_what_two_parsers_could_read_apart_is_400_and_the_connection_ends(
    door: Gateway, data: bytes
) -> None:
    answer = door.raw(data)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer
    assert b"not well-formed" in answer


def test_a_second_request_behind_the_first_is_never_answered(door: Gateway) -> None:
    one = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    assert door.raw(one + one).count(b"HTTP/1.1 200") == 1
    body = b'{"a":1}'
    post = POST + b"host: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    assert door.raw(post + one).count(b"HTTP/1.1 ") == 1


def test_a_trailer_is_no_header(door: Gateway, tenant: Tenant) -> None:
    trailer = f"authorization: Bearer {tenant.text}\r\n".encode()
    data = POST + b"host: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + trailer + b"\r\n"
    assert door.raw(data, read_s=1).startswith(b"HTTP/1.1 401 ")


def test_a_request_may_come_in_single_bytes_and_in_chunks(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    body = json.dumps({**HELLO, "model": route.endpoint_id}).encode()
    head = POST + f"host: x\r\nauthorization: Bearer {tenant.text}\r\nconnection: close\r\n".encode()
    chunked = head + b"transfer-encoding: chunked\r\n\r\n"
    chunked += b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    host, port = door.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in chunked:
            sock.send(bytes([byte]))
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
    assert engine.asked[-1]["messages"] == HELLO["messages"]


def test_expect_continue_is_answered_before_the_body(door: Gateway) -> None:
    host, port = door.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=3) as sock:
        sock.sendall(POST + b"host: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"{}")
        assert sock.recv(4000).startswith(b"HTTP/1.1 401 ")


def test_fault_39_too_large_a_body_is_413_before_it_is_read(door: Gateway) -> None:
    declared = door.raw(POST + b"host: x\r\ncontent-length: 10485761\r\n\r\n", read_s=3)
    assert declared.startswith(b"HTTP/1.1 413 ")
    endless = b"transfer-encoding: chunked\r\n\r\n" + b"100000\r\n%b\r\n" % (b"x" * 0x100000) * 11
    host, port = door.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(POST + b"host: x\r\n" + endless)
        assert sock.recv(4000).startswith(b"HTTP/1.1 413 ")


def test_fault_39_bodies_that_are_bombs_leave_the_memory_flat(door: Gateway, tenant: Tenant) -> None:
    assert door.process is not None
    bombs = [
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"{" + b",".join(b'"%d":0' % number for number in range(1_000_000)) + b"}",
        b'{"model":"' + b"x" * (9 << 20) + b'"}',
        gzip.compress(bytes(50 << 20)),
    ]
    url, headers = f"{door.url}/v1/chat/completions", tenant.headers
    before = rss_bytes(door.process.pid)
    for _ in range(3):
        for bomb in bombs:
            assert httpx2.post(url, headers=headers, content=bomb).status_code in (400, 404, 413)
        packed = {**headers, "content-encoding": "gzip"}
        assert httpx2.post(url, headers=packed, content=bombs[3]).status_code == 415
    assert rss_bytes(door.process.pid) - before < 100 << 20


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "line",
    [
        b"POST /v1/chat/comp\0letions HTTP/1.1",
        b"POST /v1/chat/completions\rX HTTP/1.1",
        b"POST /v1/chat/completions\nx: y HTTP/1.1",
    ],
)
def test_fault_46_control_characters_in_a_path_are_400(door: Gateway, line: bytes) -> None:
    assert door.raw(line + b"\r\nhost: x\r\n\r\n").startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("name", ["a\r\nset-cookie: b", "a\0b", "a\nlevel=INFO forged"])
def test_fault_46_control_characters_in_a_model_name_reach_no_header_and_no_log(
    door: Gateway, tenant: Tenant, name: str
) -> None:
    answer = door.chat(tenant, name)
    assert answer.status_code == 404
    assert "set-cookie" not in answer.headers
    assert name not in answer.json()["error"]["message"]
    assert "forged" not in door.log.read_text()


def test_too_large_a_head_is_431(door: Gateway) -> None:
    for end in (b"\r\n\r\n", b""):
        answer = door.raw(POST + b"host: x\r\nx-a: " + b"a" * 40_000 + end, read_s=3)
        assert answer.startswith(b"HTTP/1.1 431 ")


def test_fault_39_compressed_bodies_are_415(door: Gateway) -> None:
    answer = door.raw(POST + b"host: x\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nxx", read_s=3)
    assert answer.startswith(b"HTTP/1.1 415 ")


def test_fault_38_slow_heads_and_bodies_and_idle_connections_end_in_time(world: World, tmp_path: Path) -> None:
    limits = {"GATEWAY_HEAD_S": "0.4", "GATEWAY_BODY_S": "0.8", "GATEWAY_IDLE_S": "0.4"}
    with gateway(world, tmp_path, **limits) as door:
        for data, answer in (
            (b"GET / HT", b"HTTP/1.1 408 "),
            (POST + b"host: x\r\ncontent-length: 9\r\n\r\nab", b"HTTP/1.1 408 "),
            (b"", b""),
            (b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", b"HTTP/1.1 200 "),
        ):
            began = time.monotonic()
            assert door.raw(data, read_s=5).startswith(answer)
            assert time.monotonic() - began < 2


def test_fault_38_bytes_that_drip_in_do_not_move_the_deadline(world: World, tmp_path: Path) -> None:
    with gateway(world, tmp_path, GATEWAY_HEAD_S="0.5", GATEWAY_BODY_S="1") as door:
        host, port = door.url.removeprefix("http://").split(":")
        for begun, drop in (
            (POST + b"host: x\r\nx-a: ", b"a"),
            (POST + b"host: x\r\ncontent-length: 900\r\n\r\n", b" "),
        ):
            with socket.create_connection((host, int(port)), timeout=0.05) as sock:
                sock.sendall(begun)
                received, deadline = b"", time.monotonic() + 5
                while not received and time.monotonic() < deadline:
                    sock.sendall(drop)
                    with contextlib.suppress(TimeoutError):
                        received = sock.recv(100)
            assert received.startswith(b"HTTP/1.1 408 ")


def test_beyond_the_connection_cap_a_client_is_told(world: World, tmp_path: Path) -> None:
    with gateway(world, tmp_path, GATEWAY_MAX_CONNECTIONS="3") as door:
        host, port = door.url.removeprefix("http://").split(":")
        held = [socket.create_connection((host, int(port))) for _ in range(3)]
        wait_until(lambda: door.raw(b"", read_s=2).startswith(b"HTTP/1.1 503 "), "the cap")
        for sock in held:
            sock.close()
        wait_until(lambda: door.raw(b"", read_s=0.2) == b"", "room again")


def test_neither_keys_nor_prompts_reach_the_log(world: World, door: Gateway, engine: Engine, tenant: Tenant) -> None:
    route = world.endpoint(tenant, engine.address)
    secret = "planted-prompt-7391"
    messages = [{"role": "user", "content": secret}]
    httpx2.post(
        f"{door.url}/v1/chat/completions",
        headers=tenant.headers,
        json={"model": route.endpoint_id, "messages": messages, "bad": secret},
    )
    assert door.chat(tenant, route.endpoint_id, messages=messages).status_code == 200
    kept = door.log.read_text() + json.dumps([event.to_json() for event in door.events_of(tenant)])
    kept += door.inside("GET", "/internal/metrics").text
    assert secret not in kept
    assert tenant.text not in kept
