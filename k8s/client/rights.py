"""What Moorage's account may do in a cluster, asked of the API server, against what `rights.yaml` says it needs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from k8s.client.connection import Connection

FILE = Path(__file__).with_name("rights.yaml")
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def missing(connection: Connection) -> list[str]:
    """The needed rights that the account lacks, such as "list nodes"; empty where it has them all."""
    return [
        f"{attributes['verb']} {_said(attributes)}" for attributes in _needed() if not _allowed(connection, attributes)
    ]


def _needed() -> Iterator[dict[str, str]]:
    """Each need as the resource attributes of a review: in every namespace."""
    for rule in yaml.safe_load(FILE.read_text())["rules"]:
        for resource in rule["resources"]:
            plural, _, subresource = resource.partition("/")
            for verb in rule["verbs"]:
                yield {"group": rule["apiGroups"][0], "resource": plural, "subresource": subresource, "verb": verb}


def _said(attributes: dict[str, str]) -> str:
    return "/".join(filter(None, (attributes["group"], attributes["resource"], attributes["subresource"])))


def _allowed(connection: Connection, attributes: dict[str, str]) -> bool:
    body: dict[str, Any] = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    return bool(connection.call("POST", _REVIEWS, body=body)["status"]["allowed"])
