"""Whose request it is, as the policy is told."""

import pytest

from chameleon_lora.engine_vllm.core.arrival import OTHERS
from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.messages import SHARE
from chameleon_lora.policy.request import RequestId, Share
from chameleon_lora.settings import ServingSettings
from tests.engine_vllm.fake_requests import FakeParams, FakePooling, FakeRequest, make_driver


@pytest.mark.parametrize(
    ("tenants", "extra_args", "expected"),
    [
        ("tenants.toml", {SHARE: ["acme", 2.0]}, Share("acme", 2.0)),
        ("tenants.toml", {}, OTHERS),
        ("tenants.toml", None, OTHERS),
        ("", {SHARE: ["acme", 2.0]}, None),
    ],
)
def test_a_share_counts_only_on_a_server_with_tenants(
    tenants: str, extra_args: dict[str, object] | None, expected: Share | None
) -> None:
    """Elsewhere a client may have written it; here the admin's requests are in one of their own."""
    driver = Driver(make_driver().policy, ServingSettings(tenants=tenants))
    driver.arrived(FakeRequest("r", sampling_params=FakeParams(extra_args)))
    assert expected == driver.policy.request(RequestId("r")).request.share


def test_a_request_for_embeddings_has_its_share_in_its_own_parameters() -> None:
    """It has no sampling parameters."""
    driver = Driver(make_driver().policy, ServingSettings(tenants="tenants.toml"))
    pooling = FakePooling({SHARE: ["acme", 2.0]})
    driver.arrived(FakeRequest("r", sampling_params=None, pooling_params=pooling))
    assert Share("acme", 2.0) == driver.policy.request(RequestId("r")).request.share
