"""Every page over HTTP: who may see it, what its policy forbids, its language, its markup."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from django.utils.translation import override

from controlplane.console import queries
from controlplane.console.templatetags.console import day, instant
from inference import refusals
from inference.catalogue_files import catalogue
from inference.models import Deployment, Endpoint
from inference.services import endpoint_create
from kernel import ids
from kernel.money import PICO
from tenants.models import ApiKey
from tenants.selectors import endpoint_cap_get
from tenants.services import member_add, tenant_create
from tests.conftest import as_role
from tests.controlplane.console.conftest import Person
from tests.controlplane.console.markup import Markup

PAGES = (
    "/",
    "/catalogue",
    "/catalogue/tiny-deepseek",
    "/prices",
    "/endpoints",
    "/endpoints/new",
    "/playground",
    "/keys",
    "/usage",
    "/billing",
)
POSTS = ("/tenant", "/playground/stream", "/keys", "/keys/x/revoke", "/endpoints/new", "/endpoints/ep_x/scale")


def paused_endpoint(person: Person, name: str = "tiny") -> Endpoint:
    endpoint, _ = endpoint_create(
        tenant_id=person.tenant.id,
        actor="test",
        name=name,
        release="tiny-deepseek",
        rung="dedicated",
        region=settings.REGION,
        paused=True,
    )
    return endpoint


def public(endpoint: Endpoint) -> str:
    return ids.encode(ids.ENDPOINT, endpoint.id)


@pytest.mark.parametrize("path", [*PAGES, "/endpoints/ep_x", "/endpoints/ep_x/live", "/endpoints/quote"])
def test_an_anonymous_visitor_is_sent_to_the_sign_in(database, path):
    with as_role("web"):
        answer = Client().get(path)
    assert answer.status_code == 302
    assert answer["Location"] == f"/sign-in?next={path}"


@pytest.mark.parametrize("path", POSTS)
def test_an_anonymous_post_changes_nothing(database, path):
    with as_role("web"):
        assert Client().post(path).status_code in {302, 401}


@pytest.mark.parametrize("path", PAGES)
def test_a_member_sees_the_page_and_its_markup_is_sound(person, pool, path):
    answer = person.get(path)
    assert answer.status_code == 200
    assert Markup(answer.content.decode()).faults == []


@pytest.mark.parametrize("path", ["/sign-in", *PAGES])
def test_the_policy_allows_nothing_inline_and_no_eval(person, pool, path):
    policy = person.get(path)["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(("language", "direction"), [("en", "ltr"), ("zh-hans", "ltr"), ("ar", "rtl")])
@pytest.mark.parametrize("path", PAGES)
def test_every_page_speaks_the_language_that_was_chosen(person, pool, path, language, direction):
    person.post("/language", {"language": language, "next": "/"})
    markup = Markup(person.get(path).content.decode())
    assert (markup.language, markup.direction) == (language, direction)
    assert markup.faults == []


@pytest.mark.parametrize(("language", "heading"), [("zh-hans", "概览"), ("ar", "نظرة عامة")])
def test_the_words_are_those_of_the_language(person, language, heading):
    person.post("/language", {"language": language, "next": "/"})
    assert f"<h1>{heading}</h1>" in person.get("/").content.decode()


def test_nothing_of_a_signed_in_page_is_kept_by_caches(person, pool):
    assert "no-store" in person.get("/")["Cache-Control"]


def test_signing_in_leads_to_the_overview_and_a_wrong_password_does_not(newcomer):
    person = newcomer()
    with as_role("web"):
        visitor = Client()
        wrong = visitor.post("/sign-in", {"username": person.user.username, "password": "wrong"})
        right = visitor.post("/sign-in", {"username": person.user.username, "password": "harbour-master"})
    assert wrong.status_code == 200
    assert 'role="alert"' in wrong.content.decode()
    assert (right.status_code, right["Location"]) == (302, "/")


def test_a_form_from_another_site_is_refused_with_a_page(person):
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(person.user)
    with as_role("web"):
        answer = browser.post("/keys", {"name": "stolen"})
    assert answer.status_code == 403
    assert "This form has expired" in answer.content.decode()
    assert ApiKey.objects.filter(tenant=person.tenant).count() == 0


def test_a_person_without_a_tenant_is_told_so(database):
    user = User.objects.create_user(f"alone-{uuid4().hex}", password="harbour-master")
    browser = Client()
    browser.force_login(user)
    with as_role("web"):
        answer = browser.get("/")
    assert answer.status_code == 403
    assert Markup(answer.content.decode()).faults == []


def test_a_member_of_two_tenants_switches_and_only_between_them(newcomer):
    person, stranger = newcomer("First"), newcomer("Foreign")
    second = tenant_create(name="Second", currency="USD")
    member_add(tenant_id=second.id, user=person.user, role="developer")
    assert person.post("/tenant", {"tenant": str(second.id)}).status_code == 302
    assert "Second</bdi></p>" in person.get("/").content.decode()
    assert person.post("/tenant", {"tenant": str(stranger.tenant.id)}).status_code == 404
    assert "Second</bdi></p>" in person.get("/").content.decode()


def test_a_missing_page_is_a_404_in_the_consoles_look(person):
    answer = person.get("/nowhere")
    assert answer.status_code == 404
    assert Markup(answer.content.decode()).faults == []


def test_the_endpoint_page_shows_the_real_id_in_the_calls(person, pool):
    endpoint = paused_endpoint(person)
    page = person.get(f"/endpoints/{public(endpoint)}").content.decode()
    assert Markup(page).faults == []
    assert page.count(public(endpoint)) > 5
    assert f"&quot;model&quot;: &quot;{public(endpoint)}&quot;" in page


@pytest.mark.parametrize("action", ["", "/live", "/scale", "/pause", "/resume", "/delete"])
def test_another_tenants_endpoint_looks_absent(newcomer, pool, action):
    owner, stranger = newcomer(), newcomer()
    path = f"/endpoints/{public(paused_endpoint(owner))}{action}"
    absent = f"/endpoints/ep_00000000000000000000000000{action}"
    ask: Callable[[str], object] = stranger.get if action in {"", "/live"} else stranger.post
    theirs, nobodys = ask(path), ask(absent)
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.content == nobodys.content


def test_the_polled_part_is_sent_only_when_it_changed(person, pool):
    endpoint = paused_endpoint(person)
    page = person.get(f"/endpoints/{public(endpoint)}").content.decode()
    poll = re.search(r'hx-get="([^"]+)"', page)
    assert poll
    assert person.get(poll[1]).status_code == 204
    Endpoint.objects.filter(id=endpoint.id).update(
        conditions=[
            {"type": "Ready", "status": "False", "reason": "Paused", "message": "", "at": "2026-11-24T09:00:00+00:00"}
        ]
    )
    changed = person.get(poll[1])
    assert changed.status_code == 200
    assert "hx-swap-oob" in changed.content.decode()
    again = re.search(r'hx-get="([^"]+)"', changed.content.decode())
    assert again
    assert person.get(again[1]).status_code == 204


def test_an_endpoint_that_is_gone_sends_the_polling_browser_to_the_list(person):
    answer = person.get("/endpoints/ep_00000000000000000000000000/live")
    assert answer["HX-Redirect"] == "/endpoints"


def test_scaling_and_deleting_go_through_and_are_said(person, pool):
    endpoint = paused_endpoint(person)
    path = f"/endpoints/{public(endpoint)}"
    assert person.post(f"{path}/scale", {"replicas": "2"}).status_code == 302
    assert "The number of replicas is changed." in person.get(path).content.decode()
    assert person.post(f"{path}/delete").status_code == 302
    assert "is being deleted" in person.get(path).content.decode()


def test_a_refused_change_is_said_on_the_endpoints_page(person, pool):
    path = f"/endpoints/{public(paused_endpoint(person))}"
    assert person.post(f"{path}/scale", {"replicas": "65"}).status_code == 302
    assert "replicas is from 0 to 64" in person.get(path).content.decode()
    assert person.post(f"{path}/scale", {"replicas": "many"}).status_code == 302
    assert "note-bad" in person.get(path).content.decode()


def test_what_a_service_refuses_is_shown_beside_its_field(person, pool):
    form = {
        "release": "tiny-deepseek",
        "rung": "dedicated",
        "region": settings.REGION,
        "replicas": "1",
        "name": "Not A Name",
    }
    answer = person.post("/endpoints/new", form)
    page = answer.content.decode()
    assert answer.status_code == 422
    assert 'aria-invalid="true"' in page
    assert "name has 1 to 48" in page
    assert Markup(page).faults == []
    assert Endpoint.objects.filter(tenant=person.tenant).count() == 0


def test_a_quote_that_nothing_fits_gives_every_pools_reason(person, pool):
    answer = person.get(f"/endpoints/quote?release=tiny-deepseek&region={settings.REGION}&replicas=999")
    assert f"pool {pool.name} has 6" in answer.content.decode()


def test_a_keys_text_is_shown_once_and_never_stored(person):
    form = {"name": "server", "scopes": "inference", "rpm": "60", "concurrency": "4"}
    answer = person.post("/keys", form).content.decode()
    shown = re.search(r"moorage_live_\w+", answer)
    assert shown
    key = ApiKey.objects.get(tenant=person.tenant)
    assert (key.name, key.rpm, key.concurrency, key.expires_at) == ("server", 60, 4, None)
    assert shown[0] not in person.get("/keys").content.decode()
    assert key.public_id in person.get("/keys").content.decode()


def test_what_a_key_may_not_have_is_shown_beside_its_field(person):
    form = {"name": "server", "scopes": "inference", "rpm": "0", "concurrency": "4", "expires_on": "2020-01-01"}
    answer = person.post("/keys", form)
    assert answer.status_code == 422
    assert "rpm is from 1 to 1000000" in answer.content.decode()


def test_a_key_is_revoked_by_its_tenant_alone(newcomer):
    owner, stranger = newcomer(), newcomer()
    owner.post("/keys", {"name": "server", "scopes": "inference", "rpm": "60", "concurrency": "4"})
    key = ApiKey.objects.get(tenant=owner.tenant)
    assert stranger.post(f"/keys/{key.public_id}/revoke").status_code == 404
    key.refresh_from_db()
    assert key.revoked_at is None
    assert owner.post(f"/keys/{key.public_id}/revoke").status_code == 302
    key.refresh_from_db()
    assert key.revoked_at is not None


def test_the_stream_wants_a_session_and_a_json_object(person):
    with as_role("web"):
        anonymous = Client().post("/playground/stream", "{}", content_type="application/json")
        malformed = person.browser.post("/playground/stream", "[1", content_type="application/json")
        a_list = person.browser.post("/playground/stream", "[]", content_type="application/json")
    assert anonymous.status_code == 401
    assert (malformed.status_code, a_list.status_code) == (400, 400)
    assert json.loads(malformed.content)["error"]["code"] == "invalid_json"


def test_the_theme_comes_from_the_cookie_and_nothing_else_does(person):
    person.browser.cookies["theme"] = "dark"
    assert 'data-theme="dark"' in person.get("/").content.decode()
    person.browser.cookies["theme"] = '"><script>'
    assert 'data-theme="auto"' in person.get("/").content.decode()


@pytest.mark.parametrize(
    ("language", "refusal", "pool_refusal"),
    [("zh-hans", "replicas 的范围是 0 到 64", "配方"), ("ar", "قيمة replicas من 0 إلى 64", "الوصفة")],
)
def test_what_services_refuse_is_said_in_the_readers_language(person, pool, language, refusal, pool_refusal):
    person.post("/language", {"language": language, "next": "/"})
    path = f"/endpoints/{public(paused_endpoint(person))}"
    person.post(f"{path}/scale", {"replicas": "65"})
    assert refusal in person.get(path).content.decode()
    quote = person.get(f"/endpoints/quote?release=tiny-deepseek&region={settings.REGION}&replicas=999")
    assert pool_refusal in quote.content.decode()


def test_a_stored_condition_is_said_in_the_readers_language_and_a_log_line_marked_as_english(person, pool):
    endpoint = paused_endpoint(person)
    Endpoint.objects.filter(id=endpoint.id).update(
        conditions=[
            {"type": kind, "status": "False", "reason": reason, "message": message, "at": "2026-11-24T09:00:00+00:00"}
            for kind, reason, message in (
                ("Scheduled", "Unschedulable", "No node of this pool is in service."),
                ("EngineReady", "StartFailed", "The engine cannot be started: exec format error"),
                ("Ready", "CrashLoop", "Traceback (most recent call last)"),
            )
        ]
    )
    person.post("/language", {"language": "zh-hans", "next": "/"})
    page = person.get(f"/endpoints/{public(endpoint)}").content.decode()
    assert "此资源池没有在服务的节点。" in page
    assert re.search("引擎无法启动.exec format error", page)
    assert '<bdi dir="ltr" lang="en">Traceback (most recent call last)</bdi>' in page


def test_the_spend_at_an_endpoint_is_capped_and_the_cap_is_taken_away(person, pool):
    endpoint = paused_endpoint(person)
    path = f"/endpoints/{public(endpoint)}"
    assert person.post(f"{path}/cap", {"cap": "12.5"}).status_code == 302
    assert 'name="cap" value="12.5"' in person.get(path).content.decode()
    assert endpoint_cap_get(tenant_id=person.tenant.id, endpoint_id=public(endpoint)) == 12 * PICO + PICO // 2
    assert person.post(f"{path}/cap", {"cap": "much"}).status_code == 302
    assert "an amount is a decimal string" in person.get(path).content.decode()
    person.post(f"{path}/cap", {"cap": ""})
    assert endpoint_cap_get(tenant_id=person.tenant.id, endpoint_id=public(endpoint)) == 0


def test_a_cap_at_another_tenants_endpoint_is_refused_as_absent(newcomer, pool):
    owner, stranger = newcomer(), newcomer()
    endpoint_id = public(paused_endpoint(owner))
    assert stranger.post(f"/endpoints/{endpoint_id}/cap", {"cap": "1"}).status_code == 404
    assert endpoint_cap_get(tenant_id=stranger.tenant.id, endpoint_id=endpoint_id) == 0


def test_an_endpoint_changes_over_to_another_recipe_of_its_release(person, pool, monkeypatch):
    known = catalogue()
    second = replace(known.recipes["tiny-deepseek-cpu"], id="tiny-deepseek-cpu-2")
    wider = replace(known, recipes={**known.recipes, second.id: second})
    for module in (queries, refusals):
        monkeypatch.setattr(module, "catalogue", lambda: wider)
    endpoint = paused_endpoint(person)
    path = f"/endpoints/{public(endpoint)}"
    current = Deployment.objects.get(endpoint=endpoint).recipe
    other = next(name for name in ("tiny-deepseek-cpu", second.id) if name != current)
    assert f'<option value="{other}">' in person.get(path).content.decode()
    assert person.post(f"{path}/update", {"recipe": other}).status_code == 302
    assert Deployment.objects.get(endpoint=endpoint).recipe == other
    person.post(f"{path}/update", {"recipe": "nothing"})
    assert "there is no recipe nothing" in person.get(path).content.decode()


@pytest.mark.parametrize(
    ("language", "shown"), [("en", "24 Nov 2026"), ("zh-hans", "2026年11月24日"), ("ar", "24 نوفمبر")]
)
def test_dates_are_written_as_the_language_writes_them(language, shown):
    with override(language):
        assert shown in day(datetime(2026, 11, 24, tzinfo=UTC))
        assert shown in instant(datetime(2026, 11, 24, 9, 30, tzinfo=UTC))
