"""Observed facts as JSON and back, and the pods that gateways may route to. Pure."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID

from inference.core.words import ReplicaState
from k8s.observe import Observed, ObservedPod
from kernel import wire


def to_json(observed: Observed) -> dict[str, Any]:
    """Plain JSON values; equal facts give equal values."""
    value = asdict(observed)
    value["deployment_id"] = str(observed.deployment_id)
    value["pods"] = [
        pod | {"started_at": pod["started_at"].isoformat() if pod["started_at"] else None} for pod in value["pods"]
    ]
    return value


def from_json(value: Mapping[str, Any]) -> Observed:
    """The facts that `to_json` wrote."""
    pods = tuple(
        ObservedPod(
            **{
                **pod,
                "started_at": datetime.fromisoformat(pod["started_at"]) if pod["started_at"] else None,
            }
        )
        for pod in value["pods"]
    )
    return Observed(**{**value, "deployment_id": UUID(value["deployment_id"]), "pods": pods})


def pod_records(
    observed: Observed | None, states: Mapping[UUID, ReplicaState], *, stopped: bool
) -> list[wire.PodRecord]:
    """Pods that listen, with what they are for: proving, serving, or draining once the endpoint stops."""
    records: list[wire.PodRecord] = []
    for pod in observed.pods if observed else ():
        state = states.get(UUID(pod.uid))
        if not pod.address or not pod.ready or state is None or state is ReplicaState.GONE:
            continue
        records.append(wire.PodRecord(pod.uid, pod.address, wire.DRAINING if stopped else state.value))
    return records
