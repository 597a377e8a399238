"""The composition root: the one place that hands rooms to each other."""

from billing import services as billing
from controlplane import probe, projection
from inference import ports


def connect() -> None:
    """Give inference what it asks of billing and of the gateways' Redis."""
    ports.connect(
        ports.Ports(
            hold_place=billing.hold_place,
            reserved_hold_place=billing.reserved_hold_place,
            hold_close=billing.hold_close,
            route_project=projection.project_routes,
            route_remove=projection.remove_route,
            publish_pods=projection.publish_pods,
            probe=probe.probe,
        )
    )
