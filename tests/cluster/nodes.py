"""Nodes for a control plane without kubelets: they register, keep their leases, and run what is bound to them.

A pod of an image of this machine becomes a real process, by the pod runner of `k8s/local`, on an address of its
own; a pod of any other image is said to be ready and nothing runs.
"""

import itertools
import queue
import re
import ssl
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from k8s.client.connection import Connection, RefusedError
from k8s.cluster import UnreachableError
from k8s.local import logfile
from k8s.local.admission import IMAGE
from k8s.local.node import addresses, is_free
from k8s.local.rollout import condition, ended, instant
from k8s.local.runner import Runner, Settings, pod_folder

STRATEGIC = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"

_TURN_S = 0.05
# A control plane that was away takes its nodes for silent, until its controllers have read everything anew: they back
# off for up to a minute.
_DOUBTED_S = 90.0


def machine(name, *, labels=None, resources=None, taints=(), arch="amd64", cpu=128):
    """A Node object: what it offers (extended `resources` by name), and by which labels and taints it is known."""
    size = {"cpu": str(cpu), "memory": "2Ti", "pods": "110", "ephemeral-storage": "8Ti"}
    size |= {resource: str(count) for resource, count in (resources or {}).items()}
    own = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": arch}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": own | (labels or {})},
        "spec": {"taints": list(taints)},
        "status": {
            "capacity": size,
            "allocatable": size,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        },
    }


class Nodes:
    """Any number of nodes, driven by two threads of this process. `tls`: certificate and key of their log server.

    `speed` is how much faster than ours their clock runs: probes, back-offs and graces take that much less.
    `ips` are the addresses that pods which nothing runs for are said to have. Leases are renewed each `renew_s`.
    """

    def __init__(self, kubeconfig, root, engines, tls, *, speed=1, ips=None, renew_s=1.0):
        self._api = Connection(kubeconfig)
        self._workers = ThreadPoolExecutor(8)
        self._settings = Settings(
            root=root, engines=engines, workers=self._workers, clock=lambda: time.monotonic() * speed
        )
        self._logs = _log_server(self, tls)
        self._machines, self._live = {}, set()
        self._runners, self._played, self._uids = {}, set(), {}
        nowhere = (f"10.{a}.{b}.{c}" for a, b, c in itertools.product(range(128, 256), range(256), range(1, 255)))
        self._ips = iter(ips) if ips else nowhere
        self._inbox = queue.SimpleQueue()
        self._renew_at, self._renew_s = 0.0, renew_s
        self._doubted_until = 0.0
        self._closed = threading.Event()
        self._end_watch = lambda: None
        self.errors = []
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._watch, self._drive)]
        for thread in self._threads:
            thread.start()

    def add(self, *machines):
        """Register nodes, ready for pods."""
        for item in machines:
            name = item["metadata"]["name"]
            self._machines[name] = item
            item["status"]["daemonEndpoints"] = {"kubeletEndpoint": {"Port": self._logs.server_port}}
            item["status"]["conditions"] = [_ready()]
            self._api.call("POST", "/api/v1/nodes", body=item)
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}}
            self._api.call("POST", LEASES, body=lease | {"spec": self._lease(name)})
            self._live.add(name)

    def lose(self, *names):
        """The nodes lose power, all between the same two renewals: their processes are gone, and nobody says so."""
        self._inbox.put(("LOST", names))

    def revive(self, name):
        """The node is back, without its processes."""
        self._live.add(name)
        self._renew(name)
        self._say_ready(name)
        self._end_watch()

    def remove(self, *names):
        """Take nodes out of the cluster; their processes go with them."""
        self.lose(*names)
        for name in names:
            del self._machines[name]
            self._api.call("DELETE", f"/api/v1/nodes/{name}")
            self._api.call("DELETE", f"{LEASES}/{name}")

    def close(self):
        """Leave no process, no node and no thread; what went wrong meanwhile is raised."""
        self._closed.set()
        self._end_watch()
        for thread in self._threads:
            thread.join(10)
        for uid in list(self._runners):
            self._kill(uid)
        self.remove(*self._machines)
        self._logs.shutdown()
        self._logs.server_close()
        self._workers.shutdown()
        assert not self.errors, self.errors

    def log(self, namespace, name, lines):
        """The last lines of a pod, None where there is none."""
        uid = self._uids.get((namespace, name))
        return logfile.tail(pod_folder(self._settings.root, uid) / "log", lines) if uid else None

    def _watch(self):
        """Every pod that is bound to a node, now and as it changes, into the inbox."""
        bound = {"fieldSelector": "spec.nodeName!="}
        while not self._closed.is_set():
            try:
                found = self._api.call("GET", "/api/v1/pods", query=bound)
                self._inbox.put(("LIST", found["items"]))
                query = bound | {"watch": "true", "resourceVersion": found["metadata"]["resourceVersion"]}
                for event in self._api.stream("/api/v1/pods", query=query, silence_s=600, opened=self._set_end):
                    self._inbox.put((event["type"], event["object"]))
            except (UnreachableError, RefusedError):
                self._closed.wait(0.2)

    def _set_end(self, end):
        self._end_watch = end
        if self._closed.is_set():
            end()

    def _drive(self):
        while not self._closed.is_set():
            try:
                self._turn()
            except UnreachableError:
                self._doubted_until = time.monotonic() + _DOUBTED_S
                self._closed.wait(0.2)
            except Exception as error:  # noqa: BLE001  a thread has nobody to raise to; `close` does
                self.errors.append(error)
            time.sleep(_TURN_S)

    def _turn(self):
        while not self._inbox.empty():
            self._take(*self._inbox.get())
        if time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + self._renew_s
            for name in list(self._live):
                self._renew(name)
                if time.monotonic() < self._doubted_until:
                    self._say_ready(name)
        for uid, runner in list(self._runners.items()):
            runner.step()
            self._report(runner)
            if runner.finished:
                del self._runners[uid]
                self._forget(runner.pod)

    def _take(self, event, item):
        if event == "LIST":
            listed = {pod["metadata"]["uid"] for pod in item}
            for uid in set(self._runners) - listed:
                self._kill(uid)
            for pod in item:
                self._follow(pod)
        elif event == "LOST":
            self._live.difference_update(item)
            for uid, runner in list(self._runners.items()):
                if runner.pod["spec"]["nodeName"] in item:
                    self._kill(uid)
        elif event == "DELETED":
            self._kill(item["metadata"]["uid"])
        elif event in ("ADDED", "MODIFIED"):
            self._follow(item)

    def _follow(self, pod):
        """Start, keep or end what a pod asks for."""
        uid, node = pod["metadata"]["uid"], pod["spec"]["nodeName"]
        if node not in self._live:
            return
        runner = self._runners.get(uid)
        if runner is not None:
            runner.update({**pod, "status": runner.pod["status"]})
        elif "deletionTimestamp" in pod["metadata"]:
            self._forget(pod)
        elif IMAGE.fullmatch(pod["spec"]["containers"][0]["image"]):
            self._launch(pod)
        elif uid not in self._played:
            self._played.add(uid)
            self._put_status(pod, _played(pod, next(self._ips)))

    def _launch(self, pod):
        meta = pod["metadata"]
        taken = {runner.pod["status"]["podIP"] for runner in self._runners.values()}
        ports = [port["containerPort"] for port in pod["spec"]["containers"][0].get("ports", [])]
        candidates = addresses(self._settings.root, meta["uid"])
        address = next(ip for ip in candidates if ip not in taken and all(is_free(ip, port) for port in ports))
        status = {"phase": "Pending", "podIP": address, "hostIP": "127.0.0.1", "startTime": instant(datetime.now(UTC))}
        status["conditions"] = pod["status"].get("conditions", [])
        self._uids[meta["namespace"], meta["name"]] = meta["uid"]
        self._runners[meta["uid"]] = Runner({**pod, "status": status}, self._settings)

    def _report(self, runner):
        fresh = runner.status()
        if fresh != runner.pod["status"]:
            self._put_status(runner.pod, fresh)
            runner.update({**runner.pod, "status": fresh})

    def _put_status(self, pod, status):
        containers = [{"imageID": "", **item} for item in status["containerStatuses"]]
        body = status | {"podIPs": [{"ip": status["podIP"]}], "containerStatuses": containers}
        patch = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": body}
        self._try("PATCH", f"{_path(pod)}/status", body=patch, content_type=STRATEGIC)

    def _forget(self, pod):
        """The last word of a node on a pod: it has ended."""
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        self._try("DELETE", _path(pod), body=body)

    def _kill(self, uid):
        runner = self._runners.pop(uid, None)
        if runner is None:
            return
        runner.update(ended(runner.pod, grace_s=0, now=datetime.now(UTC)))
        runner.hurry()
        while not runner.finished:
            runner.step()
            time.sleep(0.01)

    def _renew(self, name):
        self._try("PATCH", f"{LEASES}/{name}", body={"spec": self._lease(name)}, content_type=MERGE)

    def _say_ready(self, name):
        status = {"status": {"conditions": [_ready()]}}
        self._try("PATCH", f"/api/v1/nodes/{name}/status", body=status, content_type=STRATEGIC)

    def _lease(self, name):
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now}

    def _try(self, method, path, **what):
        """A call whose object may have gone meanwhile."""
        try:
            self._api.call(method, path, **what)
        except RefusedError as error:
            if error.status not in (404, 409):
                raise


def _path(pod):
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def _ready():
    return condition({}, "Ready", True, "KubeletReady", "", datetime.now(UTC))


def _played(pod, address):
    """The status of a pod that is ready, as far as words go."""
    now = datetime.now(UTC)
    state = {"running": {"startedAt": instant(now)}}
    container = pod["spec"]["containers"][0]
    return {
        "phase": "Running",
        "podIP": address,
        "hostIP": "127.0.0.1",
        "startTime": instant(now),
        "conditions": [condition({}, kind, True, "", "", now) for kind in ("ContainersReady", "Ready")],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": state,
            }
        ],
    }


def _log_server(nodes, tls):
    """What the API server asks a node for when somebody reads a pod's log."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            url = urllib.parse.urlsplit(self.path)
            match = re.fullmatch(r"/containerLogs/([^/]+)/([^/]+)/[^/]+", url.path)
            lines = int(urllib.parse.parse_qs(url.query).get("tailLines", ["1000"])[0])
            text = nodes.log(match[1], match[2], lines) if match else None
            body = (text or "").encode()
            self.send_response(404 if text is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
