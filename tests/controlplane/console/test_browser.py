"""Every page in a real browser, in three languages and both themes: nothing overflows, nothing is blocked or broken.

With MOORAGE_SHOTS set to a folder, each page is kept there as a picture for a person to look at.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import urllib3
from django.conf import settings
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

from billing.invoicing import invoice_draft, invoice_issue
from controlplane.embedded.environment import ROOT
from inference.services import endpoint_create
from kernel import ids
from kernel.clock import month_of, utcnow
from kernel.money import PICO
from kernel.pricing import IN_MISS, OUT
from tenants.models import ApiKey
from tests.controlplane.console.conftest import Person
from tests.controlplane.console.purse import give, use
from tests.scenarios.browser_walk import ARGUMENTS, CHROMIUM
from tests.services import free_port, wait_until

pytestmark = pytest.mark.browser
LOOKS = (("en", "light"), ("zh-hans", "light"), ("ar", "dark"))
WIDTHS = (1280, 360)
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@dataclass(frozen=True, slots=True)
class Site:
    """A running console: where, and who opens which pages."""

    url: str
    people: dict[Person, tuple[str, ...]]


@pytest.fixture
def site(database_url: str, person: Person, operator: Person, prices: None, pool: object) -> Iterator[Site]:
    """The console as uvicorn serves it, under the web role, with something on every page."""
    give(person, 250 * PICO)
    person.post("/keys", {"name": "nightly job", "scopes": "inference", "rpm": "60", "concurrency": "4"})
    key = ApiKey.objects.get(tenant=person.tenant)
    endpoint = endpoint_create(
        tenant_id=person.tenant.id, actor="t", name="support-bot", release="tiny-deepseek", rung="dedicated",
        region=settings.REGION,
    )  # fmt: skip
    endpoint_id = ids.encode(ids.ENDPOINT, endpoint.id)
    start, end = month_of(month_of(utcnow())[0] - timedelta(seconds=1))
    for at in (None, end - timedelta(days=2)):
        use(person, endpoint_id=endpoint_id, counts={IN_MISS: 12_345, OUT: 1_000_000}, key_id=key.id, at=at)
    draft = invoice_draft(tenant_id=person.tenant.id, currency="USD", period=(start, end))
    invoice = ids.encode(ids.INVOICE, invoice_issue(invoice_id=draft.id, actor="test", books_whole=True).id)
    port = free_port()
    environ = os.environ | {
        "DATABASE_URL": database_url,
        "MOORAGE_SECRET_KEY": settings.SECRET,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "platform"))),
        "DJANGO_SETTINGS_MODULE": "controlplane.settings",
    }
    argv = [sys.executable, "-m", "uvicorn", "controlplane.asgi:application", f"--port={port}", "--no-access-log"]
    server = subprocess.Popen(argv, env=environ, cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(url), "the console", 60)
        own = (
            "/", "/catalogue", "/endpoints", "/endpoints/new", f"/endpoints/{endpoint_id}", "/playground", "/keys",
            f"/keys/{key.public_id}", "/usage", "/billing", f"/billing/{invoice}", f"/billing/{invoice}/1", "/members",
            "/account",
        )  # fmt: skip
        across = (
            "/operator/tenants", f"/operator/tenants/{ids.encode(ids.TENANT, person.tenant.id)}",
            "/operator/invoices", "/operator/pools", "/operator/health?books=check",
        )  # fmt: skip
        yield Site(url, {person: own, operator: across})
    finally:
        server.terminate()
        server.wait(30)


def answers(url: str) -> bool:
    try:
        return urllib3.request("GET", f"{url}/sign-in", retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def sign_in(context: BrowserContext, site: Site, person: Person, language: str, theme: str) -> None:
    """The session that the person has already, without the form."""
    values = {
        settings.SESSION_COOKIE_NAME: person.browser.session.session_key,
        settings.LANGUAGE_COOKIE_NAME: language,
        "theme": theme,
    }
    context.add_cookies([{"name": name, "value": value, "url": site.url} for name, value in values.items()])


def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("MOORAGE_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def listen(page: Page, faults: list[str]) -> None:
    """Keep what the browser complains of: a script's error, or something that the content policy blocked."""
    page.on(
        "console", lambda message: faults.append(f"{page.url}: {message.text}") if message.type == "error" else None
    )
    page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))


def look(page: Page, path: str, how: str) -> list[str]:
    """Open a page, at every width; what is wrong with it."""
    page.goto(path)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    faults = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        if page.evaluate(OVERFLOW) > 0:
            faults.append(f"{path} {how} overflows at {width}")
        keep(page, f"{path.strip('/').replace('/', '_').split('?')[0][:40]}-{how}-{width}")
    return faults


def test_every_page_fits_and_nothing_on_it_is_blocked(site: Site) -> None:
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for language, theme in LOOKS:
            for person in site.people:
                context = browser.new_context(base_url=site.url)
                sign_in(context, site, person, language, theme)
                page = context.new_page()
                listen(page, faults)
                for path in site.people[person]:
                    faults += look(page, path, f"{language}-{theme}")
                context.close()
        browser.close()
    assert faults == []
