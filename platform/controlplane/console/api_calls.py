"""The same thing over the API: ready curl commands and client code, with real ids and the real address."""

import json
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.utils.translation import gettext as _

API = "/api/v1"
KEY = "$MOORAGE_API_KEY"


@dataclass(frozen=True, slots=True)
class Call:
    """A titled piece of text to copy."""

    title: str
    text: str


def _curl(request: HttpRequest, method: str, path: str, body: dict[str, Any] | None = None) -> str:
    address = request.build_absolute_uri(f"{API}{path}")
    lines = [f"curl -X {method} {address}", f'  -H "Authorization: Bearer {KEY}"']
    if method == "POST":
        lines.append('  -H "Idempotency-Key: $(uuidgen)"')
    if body is not None:
        lines.append('  -H "Content-Type: application/json"')
        lines.append(f"  -d '{_shell(json.dumps(body, ensure_ascii=False))}'")
    return " \\\n".join(lines)


def _shell(text: str) -> str:
    return text.replace("'", "'\\''")


def read(request: HttpRequest, title: str, path: str) -> Call:
    """GET of a collection or an object."""
    return Call(title, _curl(request, "GET", path))


def endpoint_create(request: HttpRequest, body: dict[str, Any]) -> Call:
    """POST of a new endpoint, with what the form holds."""
    return Call(_("Create an endpoint"), _curl(request, "POST", "/endpoints", body))


def example_endpoint(request: HttpRequest) -> Call:
    """POST of a new endpoint, as an example for a tenant that has none."""
    return endpoint_create(
        request, {"name": "my-endpoint", "release": "tiny-deepseek", "rung": "dedicated", "replicas": 1}
    )


def endpoint_changes(request: HttpRequest, endpoint_id: str, replicas: int) -> list[Call]:
    """Every change that the endpoint's page offers."""
    path = f"/endpoints/{endpoint_id}"
    return [
        read(request, _("Read it"), path),
        Call(_("Scale it"), _curl(request, "POST", f"{path}/scale", {"replicas": replicas})),
        Call(_("Run it by another recipe"), _curl(request, "POST", f"{path}/update", {"recipe": "RECIPE"})),
        Call(_("Cap what is spent at it in a month"), _curl(request, "PUT", f"{path}/cap", {"cap": "50"})),
        Call(_("Pause it"), _curl(request, "POST", f"{path}/pause")),
        Call(_("Resume it"), _curl(request, "POST", f"{path}/resume")),
        Call(_("Delete it"), _curl(request, "DELETE", path)),
    ]


def keys(request: HttpRequest) -> list[Call]:
    """Create, list and revoke keys."""
    body = {"name": "server", "scopes": ["inference"]}
    return [
        Call(_("Create a key"), _curl(request, "POST", "/api-keys", body)),
        read(request, _("List the keys"), "/api-keys"),
        Call(_("Revoke a key"), _curl(request, "DELETE", "/api-keys/PUBLIC_ID")),
    ]


def key(request: HttpRequest, public_id: str) -> list[Call]:
    """Change, rotate and revoke one key."""
    path = f"/api-keys/{public_id}"
    return [
        Call(_("Change its limits"), _curl(request, "PATCH", path, {"rpm": 600, "spend_cap": "50"})),
        Call(_("Rotate it"), _curl(request, "POST", f"{path}/rotate")),
        Call(_("Revoke a key"), _curl(request, "DELETE", path)),
    ]


def completion(model: str) -> list[Call]:
    """A streamed completion through the gateway: curl, and the OpenAI client library."""
    base = f"{settings.GATEWAY_URL}/v1"
    curl = f"""curl -N {base}/chat/completions \\
  -H "Authorization: Bearer {KEY}" \\
  -H "Content-Type: application/json" \\
  -d '{{
    "model": "{model}",
    "stream": true,
    "messages": [{{"role": "user", "content": "Hello"}}]
  }}'"""
    python = f"""import os
from openai import OpenAI

client = OpenAI(
    base_url="{base}",
    api_key=os.environ["MOORAGE_API_KEY"],
)
stream = client.chat.completions.create(
    model="{model}",
    messages=[{{"role": "user", "content": "Hello"}}],
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)"""
    return [Call("curl", curl), Call(_("Python, with the OpenAI library"), python)]
