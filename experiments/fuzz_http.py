"""Does a server stand what its clients may send? From its own OpenAPI, and with hostile requests.

Starts Chameleon on the tiny model with runtime loading, notes the answers to known requests, and sends

    schema    requests that Schemathesis makes from /openapi.json for each route that we add or wrap, both
              such as the schema allows and such as it forbids
    names     completions whose `model` is a path, a look-alike, a control sign or 10 kB
    numbers   completions with wild `max_tokens`, `priority` and `vllm_xargs`
    changed   completions and chats that are sound but for a field or two: many of them reach the engine
    controls  loads, unloads and pins of such names, from real folders, devices and paths to nowhere
    after     wild numbers and texts after `/chameleon/arrivals?after=`
    raw       bodies that are no JSON, or nested 100,000 deep, to each of our POST routes
    keys      with --tenants only: admin's routes asked for with wild Authorization headers

With --tenants the server has an admin key and one tenant: schema, controls, after and raw are the
admin's, names, numbers and changed the tenant's, whose adapters are half of those there are. With
--planted it has a fault behind all that is checked before the engine (`planted_http_fault`), only the
changed ones are sent, and the run fails unless they find it.

A finding is a status of 500 or above (in a stream, too), no answer within the limit, what needs a key and is let in without,
and, after each kind: an unhealthy server, another answer to a known request, another list of models.
Findings in routes that are vLLM's own are listed apart and do not fail the run.

    .venv/bin/pip install -c constraints.txt --group fuzz

    .venv/bin/python -m experiments.fuzz_http --inputs 200 --seed 0
    .venv/bin/python -m experiments.fuzz_http --inputs 100 --seed 1 --tenants
    .venv/bin/python -m experiments.fuzz_http --inputs 100 --planted
"""

import argparse
import contextlib
import functools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.servers.launching import (
    BASE_MODEL,
    RUNTIME_LOADING,
    EngineShape,
    ServedModel,
    chameleon_command,
    cpu_server,
)
from chameleon_lora.servers.process import running_server
from chameleon_lora.servers.tiny_model import TARGET_MODULES, default_cache_dir, ensure_tiny_model
from chameleon_lora.tenants import hash_key
from experiments import planted_http_fault
from experiments.request_mutations import BASES, PROMPT, requests_for

LIMIT_S, START_LIMIT_S = 60.0, 900.0
OK, ERROR = 200, 500
CONTROLS = tuple(f"/v1/{verb}_lora_adapter" for verb in ("load", "unload", "pin", "unpin"))
OURS = (
    *(("POST", path) for path in CONTROLS),
    *(("GET", path) for path in ("/chameleon/state", "/chameleon/arrivals", "/v1/models")),
)
THEIRS = (
    *(("POST", path) for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses")),
    *(("POST", path) for path in ("/v1/messages", "/tokenize", "/detokenize")),
)
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
NAMED = ("acme-0", "acme-1", "bob-0", "bob-1")  # of the tenant acme, and of others
SPARE = "spare"
KEYS = {"admin": "admin-key-0123456789", "acme": "acme-key-0123456789"}
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"

PARTS = ["..", ".", "/", "\\", "acme-0", "~", "%2e", "\0", "\n", "\r", "\x1b[2J", "a"]
NAMES = (
    st.text(max_size=40)
    | st.lists(st.sampled_from(PARTS), max_size=8).map("".join)
    | st.sampled_from(
        ["/etc/passwd", "x" * 10_000, "é" * 5_000, "\u202ea", "\u0430cme-0", "\ud800"]
    )
    | st.sampled_from(["bob-0", "bob-1", SPARE, BASE_MODEL, "outside", ""])
)
COUNTS = st.sampled_from(
    [0, 1, -1, 1 << 31, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30, 1e30, True, "1"]
)
HINTS = COUNTS | st.lists(COUNTS, max_size=3) | st.just({"output_tokens": 1}) | st.none()
NUMBERS = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": COUNTS,
        "priority": COUNTS,
        "vllm_xargs": st.dictionaries(
            st.sampled_from(["output_tokens", "chameleon_share", "x"]), HINTS, max_size=2
        ),
        "prompt": st.just([5] * 100_000) | st.just("x" * 200_000) | st.just(PROMPT),
    },
)
RAW = st.binary(max_size=200) | st.sampled_from(
    [b"[" * 100_000, b'{"a":' * 100_000, b'{"lora_name": NaN}', b'{"lora_name": "\xff"}', b"null"]
)
HEADERS = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=60)
AUTHORIZATIONS = (
    HEADERS
    | HEADERS.map("Bearer {}".format)
    | st.sampled_from([KEYS["admin"], f"Basic {KEYS['admin']}", f"Bearer {KEYS['acme']}"])
    | st.sampled_from(["Bearer", "Bearer ", f"Bearer {KEYS['admin']}x", hash_key(KEYS["admin"])])
).map(str.strip)


class LetInError(Exception):
    """Somebody got what is not for everybody."""


@dataclass(slots=True)
class Tally:
    """What one kind of request was answered."""

    tried: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    is_ours: bool = True

    def note(self, send: Callable[[], Any]) -> None:
        """One request more."""
        self.tried += 1
        try:
            response = send()
        except requests.RequestException as error:
            self.findings[f"no answer: {type(error).__name__}"] += 1
            return
        except LetInError as error:
            self.findings[f"let in: {error}"] += 1
            return
        status, said = response.status_code, response.text
        if status == OK and (begun := said.find('data: {"error"')) >= 0:
            said = said[begun:].partition("\n")[0]
            status = json.loads(said.removeprefix("data: "))["error"]["code"]
        self.statuses[status] += 1
        if status >= ERROR:
            self.findings[f"{status}: {said[:160]}"] += 1


@dataclass(frozen=True, slots=True)
class Target:
    """A server under test.

    Attributes:
        adapters: its folder.
        has_keys: whether it asks for the admin's and the tenant's.
    """

    url: str
    adapters: Path
    has_keys: bool

    def headers(self, who: str) -> dict[str, str]:
        """What `who` sends."""
        key = {"Authorization": f"Bearer {KEYS[who]}"} if self.has_keys else {}
        return {"content-type": "application/json", **key}

    def get(self, path: str, who: str = "admin", **parameters: Any) -> Any:
        """One answer."""
        return requests.get(
            self.url + path, params=parameters, headers=self.headers(who), timeout=LIMIT_S
        )

    def post(self, path: str, body: Any, who: str = "admin") -> Any:
        """One answer; a body of bytes is sent as it is, surrogates of others are escaped."""
        raw = body if isinstance(body, bytes) else json.dumps(body)
        return requests.post(self.url + path, raw, headers=self.headers(who), timeout=LIMIT_S)


def main() -> int:
    """Print the table; 1 if there is a finding in routes of ours."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=200, help="of each kind, route and mode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tenants", action="store_true", help="with an admin key and a tenant")
    parser.add_argument("--planted", action="store_true", help="with a fault that is to be found")
    parser.add_argument("--log", type=Path, default=Path("build/fuzz-http.log"))
    args = parser.parse_args()
    tried: Counter[bool] = Counter()
    findings: Counter[bool] = Counter()
    statuses: Counter[int] = Counter()
    sent, planted = changed if args.planted else kinds, 0
    with server(args.log.absolute(), has_keys=args.tenants, is_planted=args.planted) as target:
        before = known(target)
        for kind, tally in sent(target, args.inputs, args.seed):
            afterwards(target, before, tally)
            show(kind, tally)
            tried[tally.is_ours] += tally.tried
            findings[tally.is_ours] += tally.findings.total()
            statuses += tally.statuses
            planted += sum(
                n for text, n in tally.findings.items() if planted_http_fault.WORDS in text
            )
    print("all answers:", shares(statuses))
    if args.planted:
        print(f"the planted fault was found {planted} times among {tried.total()} requests")
        return 0 if planted else 1
    print(
        f"{tried.total()} requests, seed {args.seed}: {findings[True]} findings in {tried[True]} to "
        f"routes of ours, {findings[False]} in {tried[False]} to vLLM's own"
    )
    return 1 if findings[True] else 0


def show(kind: str, tally: Tally) -> None:
    """One line, and one for each sort of finding."""
    found = tally.findings.total()
    print(f"{kind:42}{tally.tried:6} requests {found:4} findings  {shares(tally.statuses)}")
    for text, count in tally.findings.most_common(10):
        print(f"    {count} times {text!r}", flush=True)


def shares(statuses: Counter[int]) -> str:
    """How many answers had each status, and which part of all."""
    count = statuses.total()
    return ", ".join(f"{status}: {n} ({n / count:.0%})" for status, n in sorted(statuses.items()))


@contextlib.contextmanager
def server(log: Path, *, has_keys: bool, is_planted: bool) -> Iterator[Target]:
    """A running server with the adapters NAMED, and with the fault if that is to be planted."""
    model = ensure_tiny_model(default_cache_dir())
    dims = ModelDims.from_model(model)
    with tempfile.TemporaryDirectory() as home:
        adapters = Path(home) / "adapters"
        for number, name in enumerate(NAMED):
            make_adapter(adapters / name, dims, 8, seed=number, scale=1.0)
        make_adapter(Path(home) / SPARE, dims, 8, seed=9)
        (adapters / "outside").symlink_to(model)
        template = Path(home) / "template.jinja"
        template.write_text(CHAT_TEMPLATE)
        extra: tuple[str, ...] = ("--chat-template", str(template))
        environment = dict(RUNTIME_LOADING)
        if is_planted:
            environment["PYTHONPATH"] = planted_http_fault.announce(Path(home))
        if has_keys:
            tenants, key = Path(home) / "tenants.toml", Path(home) / "admin.key"
            tenants.write_text(
                f'[tenants.acme]\nkeys = ["{hash_key(KEYS["acme"])}"]\nadapters = ["acme-*"]\n'
            )
            key.write_text(KEYS["admin"])
            extra += ("--tenants", str(tenants), "--admin-key-file", str(key))
        shape = EngineShape(target_modules=TARGET_MODULES)
        command = chameleon_command(ServedModel.of(model, adapters, shape), extra)
        with running_server(cpu_server(command, log, environment, START_LIMIT_S)) as url:
            yield Target(url, adapters, has_keys)


def kinds(target: Target, count: int, number: int) -> Iterator[tuple[str, Tally]]:
    """Each kind of request, when all of it is sent."""
    if target.has_keys:
        yield "keys", fuzzed(AUTHORIZATIONS, count, number, lambda value: let_in(target, value))
    yield "names", fuzzed(NAMES, count, number, lambda name: served(target, name))
    yield "numbers", fuzzed(NUMBERS, count, number, lambda fields: completed(target, fields))
    yield from changed(target, count, number)
    after = st.integers() | COUNTS | st.text(max_size=20)
    get = functools.partial(target.get, "/chameleon/arrivals")
    yield "after", fuzzed(after, count, number, lambda value: get(after=value))
    calls = st.tuples(st.sampled_from(CONTROLS), orders(target))
    yield "controls", fuzzed(calls, len(CONTROLS) * count, number, lambda call: target.post(*call))
    for path in CONTROLS:
        yield f"raw {path}", fuzzed(RAW, count, number, functools.partial(target.post, path))
    schema = schemathesis.openapi.from_dict(target.get("/openapi.json").json())
    for method, path in (*OURS, *THEIRS):
        for mode in MODES:
            cases = schema[path][method].as_strategy(generation_mode=mode)
            tally = fuzzed(cases, count, number, lambda case: called(target, case))
            tally.is_ours = (method, path) in OURS
            yield f"schema {method} {path}, {mode.value}", tally


def changed(target: Target, count: int, number: int) -> Iterator[tuple[str, Tally]]:
    """Requests of which many reach the engine."""
    for path in BASES:
        send = functools.partial(asked, target, path)
        yield f"changed {path}", fuzzed(requests_for(path), count, number, send)


def fuzzed(
    cases: st.SearchStrategy[Any], count: int, number: int, send: Callable[[Any], Any]
) -> Tally:
    """So many of the cases, sent one by one; none if there is none."""
    tally = Tally()

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def one(case: Any) -> None:
        tally.note(lambda: send(case))

    with contextlib.suppress(Unsatisfiable):  # a route without parameters has no wrong ones
        one()
    return tally


def orders(target: Target) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies for the routes that load, unload and pin."""
    home = target.adapters.parent
    places = [str(home), str(target.adapters / "outside"), str(target.adapters / NAMED[0])]
    devices = ["/dev/zero", "/dev/stdin", "/proc/self/mem", "/", "~", "~root", "org/name"]
    elsewhere = st.sampled_from([*places, *devices, "https://127.0.0.1:9/x"])
    switches = st.booleans() | COUNTS
    names = st.sampled_from(["a", SPARE]) | NAMES.filter(lambda name: name not in NAMED) | COUNTS
    return st.fixed_dictionaries(
        {"lora_name": names, "lora_path": st.just(str(home / SPARE)) | elsewhere | NAMES},
        optional={"load_inplace": switches, "is_3d_lora_weight": switches},
    )


def called(target: Target, case: Any) -> Any:
    """A request of Schemathesis, with a key, and for an adapter that is there."""
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = NAMED[0]
    return case.call(base_url=target.url, headers=target.headers("admin"), timeout=LIMIT_S)


def served(target: Target, name: str) -> Any:
    """A completion by a name, which nobody is to get who may not name it.

    Raises:
        LetInError: it is answered all the same.
    """
    answer = completed(target, {"model": name})
    allowed = NAMED[:2] if target.has_keys else (*NAMED, BASE_MODEL, "")
    if answer.status_code == OK and name not in allowed:
        raise LetInError(f"the model {name!r}")
    return answer


def completed(target: Target, fields: dict[str, Any]) -> Any:
    """A completion as the tenant asks for it."""
    body = {"model": NAMED[0], "prompt": PROMPT, "max_tokens": 2, "temperature": 0, **fields}
    return target.post("/v1/completions", body, "acme")


def asked(target: Target, path: str, body: dict[str, Any]) -> Any:
    """Such a request by the tenant, for an adapter that it may name."""
    return target.post(path, {"model": NAMED[0], **body}, "acme")


def let_in(target: Target, authorization: str) -> Any:
    """The admin's page with such a header.

    Raises:
        LetInError: it is shown.
    """
    headers = {"Authorization": authorization.encode("latin-1")}
    answer = requests.get(f"{target.url}/chameleon/state", headers=headers, timeout=LIMIT_S)
    if answer.ok:  # not 401, nor the 400 of bytes that no header may have
        raise LetInError(f"{authorization!r}: {answer.status_code}")
    return answer


def known(target: Target) -> tuple[list[str], list[str]]:
    """The answers to known requests, and the models listed."""
    answers = []
    for name in (BASE_MODEL, *NAMED):
        body = {"model": name, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
        answers.append(target.post("/v1/completions", body).json()["choices"][0]["text"])
    return answers, sorted(card["id"] for card in target.get("/v1/models").json()["data"])


def afterwards(target: Target, before: tuple[list[str], list[str]], tally: Tally) -> None:
    """Note whether the server is as it was, when what was loaded is unloaded."""
    try:
        for name in set(known(target)[1]) - set(before[1]):
            answer = target.post("/v1/unload_lora_adapter", {"lora_name": name})
            if answer.status_code != OK:
                tally.findings[f"{name!r} cannot be unloaded: {answer.text[:160]}"] += 1
        if target.get("/health").status_code != OK:
            tally.findings["the server is not well"] += 1
        answers, listed = known(target)
    except (requests.RequestException, KeyError) as error:
        tally.findings[f"a known request fails: {error!r}"] += 1
        return
    if answers != before[0]:
        tally.findings["known requests are answered otherwise"] += 1
    if listed != before[1]:
        tally.findings[f"the models listed changed: {set(listed) ^ set(before[1])}"] += 1


if __name__ == "__main__":
    sys.exit(main())
