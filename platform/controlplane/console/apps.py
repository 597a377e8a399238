"""The web console: server-rendered pages over the services of the other rooms."""

from django.apps import AppConfig


class ConsoleConfig(AppConfig):
    name = "controlplane.console"
    label = "console"
