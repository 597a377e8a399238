"""Settings that would cost somebody money are refused at the start, with a sentence."""

import pytest

from inference.gateway.config import Misconfigured, from_environment
from tests.inference.gateway.world import PEPPER


@pytest.mark.parametrize("seconds", ["3600.5", "7200", "0", "-1", "inf", "nan"])
def test_a_request_may_not_run_longer_than_its_money_is_held(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    for name, value in (
        ("MOORAGE_INTERNAL_TOKEN", "t"),
        ("MOORAGE_KEY_PEPPER", PEPPER.hex()),
        ("REDIS_GATEWAY_URL", "redis://127.0.0.1/1"),
        ("GATEWAY_LONGEST_S", "3600"),
    ):
        monkeypatch.setenv(name, value)
    assert from_environment().longest_s == 3600
    monkeypatch.setenv("GATEWAY_LONGEST_S", seconds)
    with pytest.raises(Misconfigured, match="GATEWAY_LONGEST_S is above 0 and at most 3600"):
        from_environment()
