"""A throw-away Kubernetes control plane on loopback: etcd, API server, scheduler and controllers; no nodes."""

import base64
import ctypes
import json
import os
import secrets
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from tests.services import free_port

BUILD = Path(__file__).parent / "controlplane" / "build"
READY_WITHIN_S = 90.0

# By the name of its kubeconfig: the user, and its group. `app` is Moorage: it may do what a test's roles say.
USERS = {
    "admin": ("admin", "system:masters"),
    "nodes": ("nodes", "system:masters"),
    "controllers": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "groups": ("leader-worker-set", "system:masters"),
    "app": ("moorage", ""),
}

# One line per write of `admin` and `app`: reads, nodes and the control plane itself are left out.
_READS = {"level": "None", "verbs": ["get", "list", "watch"]}
_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {
            "level": "None",
            "users": ["system:apiserver", *(user for name, (user, _) in USERS.items() if name not in ("admin", "app"))],
        },
        {"level": "Request"},
    ],
}

# What these need is not there: clouds, kubelets, volumes, certificate requests.
_CONTROLLERS_OFF = (
    "node-ipam-controller",
    "ttl-controller",
    "cronjob-controller",
    "persistentvolume-binder-controller",
    "persistentvolume-attach-detach-controller",
    "persistentvolume-expander-controller",
    "persistentvolumeclaim-protection-controller",
    "persistentvolume-protection-controller",
    "ephemeral-volume-controller",
    "certificatesigningrequest-signing-controller",
    "certificatesigningrequest-approving-controller",
    "certificatesigningrequest-cleaner-controller",
    "legacy-serviceaccount-token-cleaner-controller",
)


def build():
    """The program of all parts; where this state of the module was never built, that takes minutes."""
    return Path(subprocess.run([BUILD], check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


class ControlPlane:
    """The four servers. A silent node is lost after `node_grace_s`; `audits_reads` has them logged as writes are."""

    def __init__(self, program, folder, *, node_grace_s=4, audits_reads=False):
        self.program, self.folder, self.node_grace_s = program, folder, node_grace_s
        self._audit = _AUDIT if audits_reads else {**_AUDIT, "rules": [_READS, *_AUDIT["rules"]]}
        names = ("api", "etcd", "peer", "controllers", "scheduler")
        self._ports = {name: free_port() for name in names}
        self.url = f"https://127.0.0.1:{self._ports['api']}"
        self.tokens = {name: secrets.token_hex(16) for name in USERS}
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        self._commands, self._processes = {}, {}

    def __enter__(self):
        try:
            self._write_files()
            self._start("etcd", self._etcd())
            self._start("kube-apiserver", self._api())
            # The others would back off for seconds if they began before it answers.
            self._wait(f"{self.url}/readyz")
            self._start("kube-controller-manager", self._controllers())
            self._start("kube-scheduler", self._scheduler())
            self._wait(f"https://127.0.0.1:{self._ports['scheduler']}/readyz")
            # No pod is let in before the controllers have made the account that it runs under.
            self._wait(f"{self.url}/api/v1/namespaces/default/serviceaccounts/default")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in reversed(list(self._processes)):
            self.stop(name)

    def kubeconfig(self, name):
        """The kubeconfig of one of USERS, parsed; its file is FOLDER/NAME.kubeconfig."""
        authority = base64.b64encode(self.certificate.read_bytes()).decode()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": name}}],
            "clusters": [{"name": "tests", "cluster": {"server": self.url, "certificate-authority-data": authority}}],
            "users": [{"name": name, "user": {"token": self.tokens[name]}}],
        }

    def stop(self, name):
        """End one server at once: what etcd holds is thrown away, the rest holds nothing."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    @contextmanager
    def silenced(self, name):
        """One server takes connections and says nothing for as long as the block lasts."""
        process = self._processes[name]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def restart(self, name):
        """Start a stopped server again."""
        self.start(name, self._commands[name])
        if name == "kube-apiserver":
            self._wait(f"{self.url}/readyz")

    def calls(self, user="app"):
        """One audit event per logged call of a user so far, dry runs and refused ones too."""
        lines = (self.folder / "audit.log").read_text().splitlines()
        events = (json.loads(line) for line in lines)
        return [event for event in events if event["user"]["username"] == USERS[user][0]]

    def writes(self, user="app"):
        """Those of them that are writes."""
        return [event for event in self.calls(user) if event["verb"] not in _READS["verbs"]]

    def _write_files(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        # One certificate for all: servers, their authority, and what service account tokens are checked with.
        names = "subjectAltName=IP:127.0.0.1,DNS:localhost"
        extensions = (names, "basicConstraints=critical,CA:TRUE", "keyUsage=critical,digitalSignature,keyCertSign")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
            + ["-days", "30", "-subj", "/CN=tests", "-keyout", self.key, "-out", self.certificate]
            + [word for extension in extensions for word in ("-addext", extension)],
            check=True,
            capture_output=True,
        )
        self._tls = ssl.create_default_context(cafile=self.certificate)
        accounts = (f'{self.tokens[name]},{user},{user},"{group}"\n' for name, (user, group) in USERS.items())
        self._write("tokens.csv", "".join(accounts))
        self._write("audit.json", json.dumps(self._audit))
        for name in USERS:
            self._write(f"{name}.kubeconfig", json.dumps(self.kubeconfig(name)))
        scheduler = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "leaderElection": {"leaderElect": False},
            "clientConnection": {"kubeconfig": self._path("scheduler.kubeconfig"), "qps": 1000, "burst": 2000},
            "podInitialBackoffSeconds": 1,
            "podMaxBackoffSeconds": 2,
        }
        self._write("scheduler.json", json.dumps(scheduler))

    def _write(self, name, text):
        file = self.folder / name
        file.touch(0o600)
        file.write_text(text)

    def _path(self, name):
        return str(self.folder / name)

    def _etcd(self):
        client, peer = (f"http://127.0.0.1:{self._ports[name]}" for name in ("etcd", "peer"))
        return [
            f"--data-dir={self._path('etcd')}",
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        ]

    def _served(self, port):
        return [
            "--bind-address=127.0.0.1",
            f"--secure-port={self._ports[port]}",
            f"--tls-cert-file={self.certificate}",
            f"--tls-private-key-file={self.key}",
        ]

    def _api(self):
        return [
            *self._served("api"),
            f"--etcd-servers=http://127.0.0.1:{self._ports['etcd']}",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=RBAC",
            f"--token-auth-file={self._path('tokens.csv')}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={self.key}",
            f"--service-account-key-file={self.certificate}",
            f"--audit-policy-file={self._path('audit.json')}",
            f"--audit-log-path={self._path('audit.log')}",
            "--audit-log-mode=blocking",
            "--kubelet-preferred-address-types=InternalIP",
        ]

    def _controllers(self):
        return [
            *self._served("controllers"),
            f"--kubeconfig={self._path('controllers.kubeconfig')}",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={self.key}",
            f"--root-ca-file={self.certificate}",
            f"--controllers=*,{','.join(f'-{name}' for name in _CONTROLLERS_OFF)}",
            f"--node-monitor-grace-period={self.node_grace_s}s",
            "--node-monitor-period=1s",
            "--kube-api-qps=1000",
            "--kube-api-burst=2000",
            "--concurrent-namespace-syncs=20",
        ]

    def _scheduler(self):
        return [
            *self._served("scheduler"),
            f"--config={self._path('scheduler.json')}",
            "--authorization-always-allow-paths=/readyz",
        ]

    def start(self, name, command, **environ):
        """A server more, which ends with the others at the latest."""
        self._commands[name] = command
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                env=os.environ | environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  two system calls, no lock
            )

    def _start(self, part, flags):
        self.start(part, [self.program, part, *flags])

    def _wait(self, url):
        end_at = time.monotonic() + READY_WITHIN_S
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.tokens['admin']}"})
        while True:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    tail = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{name} ended with {process.returncode}: {tail}")
            try:
                with urllib.request.urlopen(request, context=self._tls, timeout=5):
                    return
            except (OSError, urllib.error.HTTPError) as error:
                if time.monotonic() > end_at:
                    raise TimeoutError(f"{url} did not answer in time: {error}") from error
            time.sleep(0.05)


def _die_with_parent():
    """PR_SET_PDEATHSIG: a killed test run leaves no server behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
