"""Every route that vLLM's server has is one that somebody has looked at, and decided for whom it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chameleon_lora.engine_vllm.api.auth import ADMINS, ASKING, CONTROLS, LISTING, OPEN
from tests.engine_vllm.tenant_settings import ACME, GuardedApp, tenants_text

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(300)]
UNAUTHORIZED, NOT_FOUND = 401, 404
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
LOOKED_AT = "0.32"  # the vLLM whose routes these are
FOR_ADMINS = {
    # what names adapters, requests or settings of all
    *("/metrics", "/load", "/server_info", "/kv_event_sources", "/docs", "/docs/oauth2-redirect"),
    *("/openapi.json", "/redoc", "/weight_info", "/is_paused", "/is_sleeping", "/get_world_size"),
    # answers by id, whosever they are
    *("/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel"),
    *("/abort_requests", "/inference/v1/abort_requests"),
    # the server itself
    *("/collective_rpc", "/pause", "/resume", "/sleep", "/wake_up", "/release_kv_cache_memory"),
    *("/reset_encoder_cache", "/reset_mm_cache", "/reset_prefix_cache", "/scale_elastic_ep"),
    *("/is_scaling_elastic_ep", "/fault_tolerance/apply", "/fault_tolerance/status"),
    *("/init_weight_transfer_engine", "/shutdown_weight_transfer_engine", "/start_weight_update"),
    *("/start_draft_weight_update", "/update_weights", "/finish_weight_update", "/weight_checker"),
    *("/update_weight_version", "/adapters/{adapter_name}"),
    # bodies that are no JSON object, or have their model elsewhere: not read by the middleware
    *("/invocations", "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/realtime"),
    # for other servers of a fleet, and what few ask for
    *("/inference/v1/generate", "/v1/chat/completions/batch", "/generative_scoring"),
    *("/v1/systemone", "/v2/embed"),
    *(f"/v1/{of}/render" for of in ("completions", "chat/completions", "messages", "responses")),
    *(f"/v1/{of}/derender" for of in ("completions", "chat/completions")),
}
LIST_ROUTES = """
import json, sys
from vllm import tasks
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from chameleon_lora.engine_vllm import plugin
plugin.register()
flags = ["--model", "m", "--scheduler-cls", "chameleon_lora.engine_vllm.scheduler"]
parser = make_arg_parser(FlexibleArgumentParser())
args = parser.parse_args([*flags, "--enable-fault-tolerance"])
every = (*tasks.GENERATION_TASKS, *tasks.POOLING_TASKS, *tasks.FRONTEND_TASKS)

class EmbeddingModel:
    hf_config = None

    def get_pooling_task(self, _):
        return "embed"

app = build_app(args, every, EmbeddingModel())
json.dump(sorted({route.path for route in app.routes}), open(sys.argv[1], "w"))
"""


def test_every_route_of_this_vllm_has_been_looked_at(tmp_path: Path) -> None:
    """With every task, and all that vLLM shows in development: a new one has no place below."""
    vllm = pytest.importorskip("vllm")
    if not vllm.__version__.startswith(LOOKED_AT):
        pytest.skip(f"the routes are those of vLLM {LOOKED_AT}")
    shown = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    found = tmp_path / "routes.json"
    command = [sys.executable, "-W", "ignore", "-c", LIST_ROUTES, str(found)]
    subprocess.run(command, env={**os.environ, **shown}, check=True, capture_output=True)
    routes = set(json.loads(found.read_text()))
    assert set() == routes - FOR_ADMINS - OPEN - {LISTING} - ASKING - CONTROLS - ADMINS
    assert set() == (CONTROLS | ADMINS | OPEN | ASKING | {LISTING}) - routes


@pytest.mark.parametrize("path", sorted(FOR_ADMINS | CONTROLS | ADMINS))
def test_what_is_the_admins_reaches_nobody_else(tmp_path: Path, path: str) -> None:
    """By whatever method, with a tenant's key and without."""
    (tmp_path / "tenants.toml").write_text(tenants_text())
    app = GuardedApp.build(tmp_path / "tenants.toml")
    target = path.replace("{response_id}", "resp_1").replace("{adapter_name}", "acme-1")
    for method in METHODS:
        assert UNAUTHORIZED == app.ask(method, target, None, {"model": "acme-1"}).status
        status = app.ask(method, target, ACME, {"model": "acme-1"}).status
        assert status in (UNAUTHORIZED, NOT_FOUND)
    assert [] == app.behind.seen
