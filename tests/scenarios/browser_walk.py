"""One person's walk through the console in a real browser: sign in, deploy, talk, read the bill.

Locators are roles and labels only, so that a page which a screen reader cannot use fails here too.
"""

from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
VIEWPORT = {"width": 1280, "height": 900}


@dataclass(frozen=True, slots=True)
class Login:
    """Who walks, and the release that is deployed."""

    username: str
    password: str
    release: str = "tiny-deepseek"


def walk(base_url: str, login: Login, screenshot_dir: Path, *, start_timeout_s: int = 300) -> None:
    """Sign-in → deploy → running → key → playground → usage → billing, with a screenshot of each step.

    AssertionError (Playwright's `expect`) names the step that did not come; a console error of the page
    and a violation of its content policy count as failures too.
    """
    screenshot_dir.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            complaints = _walk(browser, base_url, login, screenshot_dir, start_timeout_s)
        finally:
            browser.close()
    assert not complaints, complaints


def _walk(browser: Browser, base_url: str, login: Login, screenshot_dir: Path, start_timeout_s: int) -> list[str]:
    page = browser.new_context(viewport=VIEWPORT, base_url=base_url, locale="en-GB").new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def shoot(step: str) -> None:
        page.screenshot(path=screenshot_dir / f"{step}.png", full_page=True)

    sign_in(page, login)
    shoot("1-overview")
    deploy(page, login.release, "browser-walk")
    shoot("2-endpoint-starting")
    wait_until_running(page, start_timeout_s)
    shoot("3-endpoint-running")
    key = create_key(page, "browser-walk")
    shoot("4-key")
    ask(page, key, "browser-walk", "Say something.")
    shoot("5-playground")
    read_usage(page, "browser-walk")
    shoot("6-usage")
    page.get_by_role("link", name="Billing").click()
    expect(page.get_by_role("heading", level=1, name="Billing")).to_be_visible()
    shoot("7-billing")
    return complaints


def sign_in(page: Page, login: Login) -> None:
    """From the door to the overview."""
    page.goto("/")
    page.get_by_label("Name").fill(login.username)
    page.get_by_label("Password").fill(login.password)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1, name="Overview")).to_be_visible()


def deploy(page: Page, release: str, name: str) -> None:
    """From the catalogue through the form; the price is on the page before the button is pressed."""
    page.get_by_role("link", name="Catalogue", exact=True).click()
    listing = page.get_by_role("article").filter(has_text=release)
    listing.first.get_by_role("link", name="Deploy").click()
    page.get_by_label("Name").fill(name)
    expect(page.get_by_text("Held now, for the first hour")).to_be_visible()
    page.get_by_role("button", name="Deploy", exact=True).click()
    expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()


def wait_until_running(page: Page, timeout_s: int) -> None:
    """The page's own polling shows it; nothing is reloaded."""
    state = page.get_by_role("region", name="State")
    expect(state.get_by_text("Running", exact=True)).to_be_visible(timeout=timeout_s * 1000)


def create_key(page: Page, name: str) -> str:
    """A key for inference; its text is read where a person would copy it."""
    page.get_by_role("link", name="API keys").click()
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Create the key").click()
    secret = page.get_by_role("region", name="Your new key")
    expect(secret).to_contain_text("moorage_")
    return secret.inner_text().strip()


def ask(page: Page, key: str, endpoint: str, prompt: str) -> None:
    """One streamed answer, with its tokens and cost at the end."""
    page.get_by_role("link", name="Playground").click()
    page.get_by_label("API key").fill(key)
    choice = page.get_by_label("Endpoint", exact=True)
    wanted = choice.get_by_role("option").filter(has_text=endpoint).first.get_attribute("value")
    choice.select_option(wanted)
    page.get_by_label("Longest answer, tokens").fill("48")
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("The answer is complete.")).to_be_visible(timeout=120_000)
    expect(page.get_by_role("log")).to_contain_text("Answer tokens")


def read_usage(page: Page, endpoint: str) -> None:
    """The metered line arrives some seconds after the answer."""
    page.get_by_role("link", name="Usage").click()
    table = page.get_by_role("region", name="By day, endpoint, key and meter").get_by_role("table")
    line = table.get_by_role("row").filter(has_text=endpoint).filter(has_text="Answer tokens")
    for _ in range(30):
        if line.count():
            break
        page.wait_for_timeout(1000)
        page.reload()
    expect(line.first).to_be_visible()
