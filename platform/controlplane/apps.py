"""The control plane: the only room that knows all others."""

from django.apps import AppConfig


class ControlplaneConfig(AppConfig):
    name = "controlplane"

    def ready(self) -> None:
        from controlplane import celery, listings, wiring  # noqa: F401  the app that hints are sent through, a check

        wiring.connect()
