"""Every page in a real browser, in three languages and both themes: nothing overflows, is blocked or broken, axe-core
finds nothing serious, and the keyboard alone goes everywhere.

With MOORAGE_SHOTS set to a folder, each page is kept there as a picture for a person to look at.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
import urllib3
from axe_playwright_python.sync_playwright import Axe
from django.conf import settings
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from billing.invoicing import invoice_draft, invoice_issue
from billing.services import sheet_publish
from controlplane.console import words
from controlplane.embedded.environment import ROOT
from inference.services import endpoint_create
from kernel import ids
from kernel.clock import month_of, utcnow
from kernel.money import PICO
from kernel.pricing import IN_MISS, OUT
from tenants.members import invitation_create
from tenants.models import ApiKey
from tests.controlplane.console.conftest import Person
from tests.controlplane.console.purse import give, use
from tests.controlplane.console.test_prices import BY_THE_CLOCK
from tests.scenarios.browser_walk import ARGUMENTS, CHROMIUM, VIEWPORT
from tests.services import free_port, wait_until

pytestmark = pytest.mark.browser
LOOKS = (("en", "light"), ("zh-hans", "dark"), ("ar", "light"), ("ar", "dark"))
WIDTHS = (1280, 360)
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
GRAVE = {"serious", "critical"}
TO_THE_TOP = """() => {
  document.body.tabIndex = -1;
  document.body.focus();
  document.body.removeAttribute("tabindex");
}"""
# What a keyboard has to reach: of a group of radio buttons the chosen one, of closed menus and dialogs nothing.
REACHABLE = """() => {
  window.reachable = [
    ...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']")
  ].filter(at => at.checkVisibility({visibilityProperty: true}) && !at.disabled && at.tabIndex === 0
    && !(at.type === "radio" && !at.checked));
  return window.reachable.map(at => `${at.localName} ${at.id || at.textContent.trim().slice(0, 40)}`);
}"""
FOCUSED = """() => {
  const at = document.activeElement, box = at.getBoundingClientRect();
  const style = getComputedStyle(at.closest(".choice") ?? at);
  const drawn = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  return {
    number: window.reachable?.indexOf(at),
    seen: drawn && box.bottom > 0 && box.top < innerHeight,
    page: at === document.body,
    dialog: at.closest("dialog")?.id ?? "",
  };
}"""
# A date field has a stop for its day, its month, its year and its calendar.
STOPS_OF_A_DATE = 4


@dataclass(frozen=True, slots=True)
class Site:
    """A running console: where, and who opens which pages."""

    url: str
    people: dict[Person | None, tuple[str, ...]]
    endpoint: str


@pytest.fixture
def site(
    database_url: str, newcomer: Callable[..., Person], person: Person, operator: Person, prices: None, pool: object
) -> Iterator[Site]:
    """The console as uvicorn serves it, under the web role, with something on every page."""
    give(person, 250 * PICO)
    start, end = month_of(month_of(utcnow())[0] - timedelta(seconds=1))
    contract = replace(BY_THE_CLOCK, region=settings.REGION, tenant_id=str(person.tenant.id), effective_from=start)
    sheet_publish(sheet=contract, actor="test")
    _row, invitation_secret = invitation_create(tenant_id=person.tenant.id, actor="test", note="Ada", role="developer")
    person.post("/keys", {"name": "nightly job", "scopes": "inference", "rpm": "60", "concurrency": "4"})
    key = ApiKey.objects.get(tenant=person.tenant)
    broken = {"EngineReady": "The engine ended by itself (3 restarts): Killed", "Ready": "Killed"}
    endpoint_id = berthed(person, "support-bot", broken)
    berthed(person, "chat", {})
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
            "/", "/catalogue", "/catalogue/tiny-deepseek", "/prices",
            "/endpoints", "/endpoints/new", f"/endpoints/{endpoint_id}", "/playground", "/keys",
            f"/keys/{key.public_id}", "/usage", "/billing", f"/billing/{invoice}", f"/billing/{invoice}/1", "/members",
            "/account",
        )  # fmt: skip
        across = (
            "/operator/tenants", f"/operator/tenants/{ids.encode(ids.TENANT, person.tenant.id)}",
            "/operator/invoices", "/operator/pools", "/operator/health?books=check",
        )  # fmt: skip
        nobodys = ("/sign-in", "/nowhere", f"/invitation/{invitation_secret}")
        fresh = ("/", "/endpoints", "/playground", "/keys", "/usage", "/billing")
        yield Site(
            url, {None: nobodys, newcomer("Empty"): fresh, person: own, operator: across}, f"/endpoints/{endpoint_id}"
        )
    finally:
        server.terminate()
        server.wait(30)


def berthed(person: Person, name: str, broken: dict[str, str]) -> str:
    """An endpoint with every condition as the reconciler leaves it: met, or not met with a message."""
    endpoint, _ = endpoint_create(
        tenant_id=person.tenant.id, actor="t", name=name, release="tiny-deepseek", rung="dedicated",
        region=settings.REGION,
    )  # fmt: skip
    endpoint.conditions = [
        {
            "type": kind,
            "status": "False" if kind in broken else "True",
            "reason": "CrashLoop" if kind in broken else "Running",
            "message": broken.get(kind, ""),
            "at": "2026-11-24T09:00:00+00:00",
        }
        for kind in words.CONDITIONS
    ]
    endpoint.observed_generation = endpoint.generation
    endpoint.save(update_fields=["conditions", "observed_generation"])
    return ids.encode(ids.ENDPOINT, endpoint.id)


def answers(url: str) -> bool:
    try:
        return urllib3.request("GET", f"{url}/sign-in", retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def sign_in(context: BrowserContext, site: Site, person: Person | None, language: str, theme: str) -> None:
    """The session that the person has already, without the form; None has none."""
    values = {settings.LANGUAGE_COOKIE_NAME: language, "theme": theme}
    if person:
        values[settings.SESSION_COOKIE_NAME] = person.browser.session.session_key or ""
    context.add_cookies([{"name": name, "value": value, "url": site.url} for name, value in values.items()])


def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("MOORAGE_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def _is_fault(said: ConsoleMessage) -> bool:
    return said.type == "error" and not said.location["url"].endswith("/nowhere")


def listen(page: Page, faults: list[str]) -> None:
    """Keep what the browser complains of: a script's error, or something that the content policy blocked."""
    page.on("console", lambda said: faults.append(f"{page.url}: {said.text}") if _is_fault(said) else None)
    page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))


def barriers(page: Page, where: str) -> list[str]:
    """What axe-core finds serious or critical on the page as it is now."""
    found = Axe().run(page).response["violations"]
    return [
        f"{where}: {item['id']} at {node['target']}: {node['failureSummary']}"
        for item in found
        if item["impact"] in GRAVE
        for node in item["nodes"]
    ]


def look(page: Page, path: str, how: str, whose: str) -> list[str]:
    """Open a page, at every width; what is wrong with it."""
    page.goto(path)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    faults = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        if page.evaluate(OVERFLOW) > 0:
            faults.append(f"{path} {how} overflows at {width}")
        faults += barriers(page, f"{path} {how} {width}")
        keep(page, f"{whose}{path.strip('/').replace('/', '_').split('?')[0][:40]}-{how}-{width}")
    return faults


@pytest.mark.parametrize(("language", "theme"), LOOKS)
def test_every_page_fits_is_open_to_all_and_nothing_on_it_is_blocked(site: Site, language: str, theme: str) -> None:
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for number, (person, paths) in enumerate(site.people.items()):
            context = browser.new_context(base_url=site.url)
            sign_in(context, site, person, language, theme)
            page = context.new_page()
            listen(page, faults)
            for path in paths:
                faults += look(page, path, f"{language}-{theme}", f"{number}-")
        browser.close()
    assert not faults, "\n".join(faults)


def unreached(page: Page) -> list[str]:
    """Press Tab from the top of the page: what is never focused, is focused unseen, or out of the page's order."""
    names = page.evaluate(REACHABLE)
    page.evaluate(TO_THE_TOP)
    visited, seen = [], set[int]()
    for _ in range(len(names) + STOPS_OF_A_DATE):
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED)
        visited.append(stop["number"])
        if stop["seen"]:
            seen.add(stop["number"])
    first = list(dict.fromkeys(number for number in visited if number >= 0))
    order = [] if first == sorted(first) else [f"goes by {first}"]
    return order + [name for number, name in enumerate(names) if number not in seen]


def test_the_keyboard_reaches_everything_in_order_and_shows_where_it_is(site: Site) -> None:
    faults: list[tuple[str, list[str]]] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for person, paths in site.people.items():
            context = browser.new_context(base_url=site.url, viewport=VIEWPORT)
            sign_in(context, site, person, "en", "light")
            page = context.new_page()
            for path in paths:
                page.goto(path)
                if missed := unreached(page):
                    faults.append((path, missed))
        browser.close()
    assert not faults, "\n".join(map(str, faults))


def test_the_skip_link_menus_and_dialogs_work_by_the_keyboard_alone(site: Site, person: Person) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        context = browser.new_context(base_url=site.url, viewport=VIEWPORT)
        sign_in(context, site, person, "ar", "dark")
        page = context.new_page()
        page.goto(site.endpoint)
        page.keyboard.press("Tab")
        expect(page.locator(".skip")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_focused()
        menu = page.locator("details.menu").first
        menu.locator("summary").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(menu.get_by_role("button").first).to_be_focused()
        faults = barriers(page, "an open menu")
        page.keyboard.press("Escape")
        expect(menu.locator("summary")).to_be_focused()
        openers = page.locator("main [data-opens]")
        assert openers.count() > 2
        for opener in openers.all():
            opener.focus()
            page.keyboard.press("Enter")
            dialog = page.locator(f"#{opener.get_attribute('data-opens')}")
            expect(dialog).to_be_visible()
            for _ in range(12):
                stop = page.evaluate(FOCUSED)
                assert stop["page"] or stop["dialog"] == dialog.get_attribute("id"), stop
                page.keyboard.press("Tab")
            faults += barriers(page, f"the dialog {dialog.get_attribute('id')}")
            page.keyboard.press("Escape")
            expect(dialog).to_be_hidden()
            expect(opener).to_be_focused()
        browser.close()
    assert not faults, "\n".join(map(str, faults))
