"""LeaderWorkerSet on a control plane, as an operator installs it: definitions, its own controller, its webhooks."""

import base64
import json
import shutil
import socket

import yaml

from k8s.client.connection import APPLY, Connection
from tests.k8s.harness import until
from tests.services import free_port

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
HOOKS = "/apis/admissionregistration.k8s.io/v1"
GROUP_PODS = {"matchExpressions": [{"key": "leaderworkerset.sigs.k8s.io/name", "operator": "Exists"}]}


def install(plane):
    """Everything of it, ready; the controller ends with the control plane."""
    admin = Connection(plane.kubeconfig("admin"))
    text = plane.program.with_name("lws.yaml").read_text()
    documents = [document for document in yaml.safe_load_all(text) if document]
    for document in of_kind(documents, "CustomResourceDefinition"):
        path = apply(admin, DEFINITIONS, document)
        # The controller would wait ten seconds for a kind that is not served yet.
        until(lambda path=path: is_served(admin.call("GET", path)))
    port = start(plane, admin)
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        for document in of_kind(documents, kind):
            for hook in document["webhooks"]:
                url = f"https://127.0.0.1:{port}{hook['clientConfig']['service']['path']}"
                bundle = base64.b64encode(plane.certificate.read_bytes()).decode()
                hook["clientConfig"] = {"url": url, "caBundle": bundle}
                if hook["rules"][0]["resources"] == ["pods"]:
                    hook["objectSelector"] = GROUP_PODS
            apply(admin, f"{HOOKS}/{kind.lower()}s", document)


def start(plane, admin):
    """Its controller; the port of its webhooks."""
    admin.call("POST", "/api/v1/namespaces", body={"metadata": {"name": "lws-system"}})
    port, certificates = free_port(), plane.folder / "groups"
    certificates.mkdir()
    shutil.copy(plane.certificate, certificates)
    shutil.copy(plane.key, certificates)
    settings = {
        "apiVersion": "config.lws.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "webhook": {"host": "127.0.0.1", "port": port, "certDir": str(certificates)},
        "health": {"healthProbeBindAddress": "0"},
        "metrics": {"bindAddress": "0"},
    }
    file = plane.folder / "groups.json"
    file.write_text(json.dumps(settings))
    kubeconfig = str(plane.folder / "groups.kubeconfig")
    plane.start("groups", [plane.program.with_name("lws"), f"--config={file}"], KUBECONFIG=kubeconfig)
    until(lambda: listens(port))
    return port


def of_kind(documents, kind):
    return [document for document in documents if document["kind"] == kind]


def apply(admin, collection, document):
    path = f"{collection}/{document['metadata']['name']}"
    admin.call("PATCH", path, query={"fieldManager": "tests"}, body=document, content_type=APPLY)
    return path


def is_served(definition):
    conditions = definition.get("status", {}).get("conditions") or []
    return any((item["type"], item["status"]) == ("Established", "True") for item in conditions)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
