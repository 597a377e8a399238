"""Roles at the console's doors, members and their invitations, and sign-ins that are counted."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from controlplane.gates import GATES, OPEN
from kernel.clock import utcnow
from tenants import members, sign_in
from tenants.models import ApiKey, AuditLog, Invitation, Membership, Role, SignInCount
from tenants.permissions import ALLOWED, Action
from tenants.services import member_add
from tests.conftest import as_role
from tests.controlplane.console.conftest import Person
from tests.controlplane.console.markup import Markup

ABSENT_MEMBER = 2**62


def with_role(person: Person, role: str) -> Person:
    Membership.objects.filter(user=person.user).update(role=role)
    return person


def join(person: Person, role: str) -> Membership:
    user = User.objects.create_user(f"user-{uuid4().hex}", password="harbour-master")
    return member_add(tenant_id=person.tenant.id, user=user, role=role)


def route_names(resolver: URLResolver, space: str = "") -> set[str]:
    found: set[str] = set()
    for entry in resolver.url_patterns:
        if isinstance(entry, URLPattern):
            found.add(f"{space}:{entry.name}" if space else str(entry.name))
        else:
            found |= route_names(entry, entry.namespace or space)
    return found


def test_every_route_has_a_gate_or_is_open_and_no_gate_is_left_over() -> None:
    assert route_names(get_resolver()) == set(GATES) | OPEN


def test_every_action_can_be_done_by_an_owner() -> None:
    assert all(Role.OWNER in allowed for allowed in ALLOWED.values())
    assert set(ALLOWED) == set(Action)


@pytest.mark.parametrize(
    ("role", "refused"),
    [
        ("developer", {"/billing"}),
        ("finance", {"/endpoints/new"}),
        ("viewer", {"/billing", "/endpoints/new"}),
        ("owner", set()),
    ],
)
def test_a_page_that_a_role_may_not_see_says_who_may(person, pool, role, refused):
    with_role(person, role)
    for path in ("/", "/catalogue", "/endpoints", "/endpoints/new", "/keys", "/usage", "/billing", "/members"):
        answer = person.get(path)
        page = answer.content.decode()
        assert answer.status_code == (403 if path in refused else 200), path
        assert Markup(page).faults == []
        assert ("This is for: Owner" in page) == (path in refused)
        assert ('href="/billing"' in page) == (role in ALLOWED[Action.BILLING])
        assert ('href="/endpoints/new"' in page) <= (role in ALLOWED[Action.ENDPOINTS])


def test_what_a_role_may_not_do_is_refused_and_its_button_is_not_there(person, pool):
    person.post("/keys", {"name": "server", "scopes": "inference", "rpm": "60", "concurrency": "4"})
    key = ApiKey.objects.get(tenant=person.tenant)
    with_role(person, "finance")
    page = person.get("/keys").content.decode()
    assert "Create the key" not in page
    assert f"revoke-{key.public_id}" not in page
    assert person.post("/keys", {"name": "mine", "scopes": "inference"}).status_code == 403
    assert person.post(f"/keys/{key.public_id}/revoke").status_code == 403
    assert person.post("/members", {"note": "me", "role": "owner"}).status_code == 403
    key.refresh_from_db()
    assert key.revoked_at is None
    assert ApiKey.objects.filter(tenant=person.tenant).count() == 1


def test_a_key_is_allowed_nothing_that_its_maker_is_not(person):
    with_role(person, "developer")
    form = {"name": "server", "scopes": ["manage", "billing"], "rpm": "60", "concurrency": "4"}
    answer = person.post("/keys", form)
    assert answer.status_code == 422
    assert "`billing` is for the role owner or finance" in answer.content.decode()
    assert person.post("/keys", form | {"scopes": ["manage"]}).status_code == 200
    assert ApiKey.objects.get(tenant=person.tenant).scopes == ["manage"]


def test_a_new_role_holds_from_the_next_request(person):
    colleague = join(person, "developer")
    browser = Client()
    browser.force_login(colleague.user)
    other = Person(colleague.user, person.tenant, browser)
    assert other.get("/billing").status_code == 403
    assert person.post(f"/members/{colleague.id}/role", {"role": "finance"}).status_code == 302
    assert other.get("/billing").status_code == 200
    assert person.post(f"/members/{colleague.id}/remove").status_code == 302
    assert "You belong to no tenant yet" in other.get("/").content.decode()


def test_the_last_owner_stays(person):
    own = Membership.objects.get(user=person.user)
    for path, data in ((f"/members/{own.id}/role", {"role": "viewer"}), (f"/members/{own.id}/remove", {})):
        person.post(path, data)
        assert "the last owner" in person.get("/members").content.decode()
        assert Membership.objects.get(user=person.user).role == "owner"
    join(person, "owner")
    person.post(f"/members/{own.id}/role", {"role": "viewer"})
    assert Membership.objects.get(user=person.user).role == "viewer"


def test_members_of_another_tenant_look_absent(newcomer):
    person, stranger = newcomer(), newcomer()
    theirs = Membership.objects.get(user=stranger.user)
    for member_id in (theirs.id, ABSENT_MEMBER, 10**30):
        assert person.post(f"/members/{member_id}/role", {"role": "viewer"}).status_code == 404
        assert person.post(f"/members/{member_id}/remove").status_code == 404
    assert stranger.user.username not in person.get("/members").content.decode()
    assert Membership.objects.get(user=stranger.user).role == "owner"


def invite(person: Person, role: str = "finance") -> str:
    page = person.post("/members", {"note": "Ann of finance", "role": role}).content.decode()
    assert Markup(page).faults == []
    return page.split("/invitation/")[1].split("<")[0]


def test_an_invitation_makes_one_member_with_the_role_once(person):
    secret = invite(person)
    assert secret not in person.get("/members").content.decode()
    assert secret.encode() not in bytes(Invitation.objects.get(tenant=person.tenant).digest)
    name = f"ann-{uuid4().hex}"
    form = {"username": name, "password1": "quay-side-lantern", "password2": "quay-side-lantern"}
    with as_role("web"):
        visitor = Client()
        asked = visitor.get(f"/invitation/{secret}")
        joined = visitor.post(f"/invitation/{secret}", form)
        again = Client().post(f"/invitation/{secret}", form | {"username": f"{name}2"})
        billing = visitor.get("/billing")
    assert Markup(asked.content.decode()).faults == []
    assert (joined.status_code, again.status_code, billing.status_code) == (302, 404, 200)
    assert Membership.objects.get(user__username=name).role == "finance"
    assert not User.objects.filter(username=f"{name}2").exists()


def test_a_weak_password_is_refused_beside_its_field_and_the_invitation_lives(person):
    secret = invite(person)
    with as_role("web"):
        form = {"username": f"ann-{uuid4().hex}", "password1": "short", "password2": "short"}
        answer = Client().post(f"/invitation/{secret}", form)
    assert answer.status_code == 422
    assert "too short" in answer.content.decode()
    assert Markup(answer.content.decode()).faults == []
    assert Invitation.objects.filter(tenant=person.tenant).count() == 1


def test_a_signed_in_person_joins_with_the_account_that_they_have(newcomer):
    person, guest = newcomer(), newcomer()
    secret = invite(person, "viewer")
    assert "and join with this account" in guest.get(f"/invitation/{secret}").content.decode()
    assert guest.post(f"/invitation/{secret}").status_code == 302
    assert Membership.objects.get(user=guest.user, tenant=person.tenant).role == "viewer"
    own = invite(person, "viewer")
    assert "a member of this tenant already" in person.post(f"/invitation/{own}").content.decode()
    assert Membership.objects.get(user=person.user).role == "owner"


def test_a_withdrawn_or_expired_invitation_is_not_there(newcomer):
    person, stranger = newcomer(), newcomer()
    secret = invite(person)
    waiting = Invitation.objects.get(tenant=person.tenant)
    assert stranger.post(f"/invitations/{waiting.id}/withdraw").status_code == 404
    assert person.post(f"/invitations/{waiting.id}/withdraw").status_code == 302
    assert stranger.get(f"/invitation/{secret}").status_code == 404
    late = invite(person)
    Invitation.objects.filter(tenant=person.tenant).update(expires_at="2020-01-01T00:00:00Z")
    assert stranger.get(f"/invitation/{late}").status_code == 404
    assert stranger.get("/invitation/%00").status_code == 404


def test_two_owners_cannot_remove_each_other_both(person):
    second = join(person, "owner")
    first = Membership.objects.get(user=person.user)
    members.member_remove(tenant_id=person.tenant.id, member_id=second.id, actor="t")
    with pytest.raises(Exception, match="last owner"):
        members.member_remove(tenant_id=person.tenant.id, member_id=first.id, actor="t")


def test_the_audit_log_is_on_the_owners_page(person):
    invite(person)
    page = person.get("/members").content.decode()
    assert "member.invited" in page
    with_role(person, "viewer")
    assert "member.invited" not in person.get("/members").content.decode()


def sign_in_once(username: str, password: str, address: str):
    with as_role("web"):
        browser = Client(REMOTE_ADDR=address)
        return browser, browser.post("/sign-in", {"username": username, "password": password})


def test_guessing_at_one_account_ends_with_a_sentence_and_a_time(newcomer):
    person, other = newcomer(), newcomer()
    for number in range(sign_in.MAX_FOR_ACCOUNT):
        _, answer = sign_in_once(person.user.username, "wrong", f"10.1.0.{number}")
        assert answer.status_code == 200
    _, answer = sign_in_once(person.user.username, "harbour-master", "10.1.1.1")
    assert answer.status_code == 429
    assert 0 < int(answer["Retry-After"]) <= sign_in.WINDOW_S
    assert "Too many sign-ins failed" in answer.content.decode()
    assert Markup(answer.content.decode()).faults == []
    assert sign_in_once(other.user.username, "harbour-master", "10.1.1.1")[1].status_code == 302
    assert AuditLog.objects.filter(action="session.throttled", detail__address="10.1.1.1").count() == 1


def test_guessing_at_many_accounts_from_one_network_ends_too(database, monkeypatch):
    monkeypatch.setattr(sign_in, "MAX_FOR_ADDRESS", 5)
    network = f"2001:db8:{uuid4().hex[:4]}:1"
    codes = [sign_in_once(f"nobody-{number}", "wrong", f"{network}::{number}")[1].status_code for number in range(7)]
    assert codes == [200] * 5 + [429] * 2
    assert AuditLog.objects.filter(action="session.throttled", detail__address=f"{network}::5").count() == 1
    assert AuditLog.objects.filter(action="session.throttled", detail__address=f"{network}::6").count() == 0


def test_a_good_sign_in_forgets_the_failures_and_is_audited(newcomer):
    person = newcomer()
    for _ in range(2):
        for _ in range(sign_in.MAX_FOR_ACCOUNT - 1):
            sign_in_once(person.user.username, "wrong", "10.2.0.1")
        assert sign_in_once(person.user.username, "harbour-master", "10.2.0.2")[1].status_code == 302
    opened = AuditLog.objects.filter(action="session.opened", tenant_id=person.tenant.id)
    assert [row.detail for row in opened] == [{"address": "10.2.0.2"}] * 2


def test_counts_of_a_window_that_is_over_are_forgotten(newcomer):
    person = newcomer()
    for number in range(sign_in.MAX_FOR_ACCOUNT + 1):
        sign_in_once(person.user.username, "wrong", f"10.4.0.{number}")
    sign_in.sign_ins_forget()
    assert sign_in_once(person.user.username, "harbour-master", "10.4.1.1")[1].status_code == 429
    SignInCount.objects.update(since=utcnow() - timedelta(seconds=sign_in.WINDOW_S + 1))
    sign_in.sign_ins_forget()
    assert SignInCount.objects.count() == 0
    assert sign_in_once(person.user.username, "harbour-master", "10.4.1.1")[1].status_code == 302


def test_a_sign_in_gets_a_fresh_session(newcomer):
    person = newcomer()
    with as_role("web"):
        browser = Client(REMOTE_ADDR="10.3.0.1")
        session = browser.session
        session["planted"] = "by somebody else"
        session.save()
        planted = browser.session.session_key
        form = {"username": person.user.username, "password": "harbour-master"}
        assert browser.post("/sign-in", form).status_code == 302
        assert browser.session.session_key != planted


def test_a_changed_password_ends_the_other_sessions(newcomer):
    person = newcomer()
    other = Client()
    other.force_login(person.user)
    page = person.get("/account").content.decode()
    assert Markup(page).faults == []
    form = {"old_password": "harbour-master", "new_password1": "quay-side-lantern"}
    form["new_password2"] = form["new_password1"]
    assert person.post("/account", form).status_code == 302
    assert person.get("/").status_code == 200
    with as_role("web"):
        assert other.get("/").status_code == 302
