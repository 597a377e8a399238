"""What: catalogue, pools, endpoints, placement, reconciler."""

from django.apps import AppConfig


class InferenceConfig(AppConfig):
    name = "inference"
