"""What the meter says of its own lag."""

from datetime import timedelta
from uuid import uuid4

import pytest
import urllib3
from django.conf import settings

from billing import lag, reserved
from billing.models import GatewayJournal
from kernel.clock import utcnow
from kernel.ids import new_id
from tests.billing.harbour import dedicated, harbour
from tests.billing.test_spans import fact, rate


def test_each_kind_of_usage_shows_the_age_of_what_is_not_booked_yet(no_boots: None) -> None:
    berth, now = harbour(), utcnow()
    for seconds, columns in (
        (7, {}),
        (90, {}),
        (500, {"closed_seq": 1, "pulled_seq": 1, "closed_at": now}),
    ):
        low = now - timedelta(seconds=seconds)
        GatewayJournal.objects.create(gateway_id=berth.gateway_id, boot_id=new_id(), posted_low_at=low, **columns)
    found = lag.lags(now=now)
    assert found[f'meter="tokens",gateway="{berth.gateway_id}"'] == 90
    sheet, pod, deployment = dedicated(berth, 3600), uuid4(), uuid4()
    fact(berth, sheet, "from", now - timedelta(hours=30), pod=pod, deployment=deployment)
    assert lag.lags(now=utcnow())['meter="facts"'] < 60
    rate(now)
    while reserved.facts_take():
        pass
    assert lag.lags(now=now)['meter="accel"'] >= 30 * 3600
    assert lag.lags(now=now)['meter="facts"'] == 0
    assert 'moorage_meter_lag_seconds{meter="reserved"} 0.000\n' in lag.exposition(now=now)
    fact(berth, sheet, "to", now - timedelta(hours=30), pod=pod, deployment=deployment)
    rate(now)
    assert lag.lags(now=now)['meter="accel"'] < 30 * 3600


def test_the_meter_answers_a_scrape_that_has_the_token(no_boots: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "INTERNAL_TOKEN", "internal")
    monkeypatch.setattr(lag, "exposition", lambda *, now: lag.HEAD)
    with lag.listener("127.0.0.1:0") as port:
        url = f"http://127.0.0.1:{port}"
        pool = urllib3.PoolManager(retries=False)
        assert pool.request("GET", f"{url}/metrics").status == 401
        token = {"Authorization": "Bearer internal"}
        assert pool.request("GET", f"{url}/", headers=token).status == 404
        answer = pool.request("GET", f"{url}/metrics", headers=token)
        assert (answer.status, answer.data.decode()) == (200, lag.HEAD)
        pool.clear()
        with lag.listener(f"127.0.0.1:{port}") as second:  # taken: it goes on without
            assert second is None
    with lag.listener("") as port:
        assert port is None
