"""The OpenAPI document is true: what it allows works, what it forbids is refused, answers are as it says.

schemathesis makes the calls from the document alone. They are the same ones in each run
of the same sources.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from portal_app.db import transaction
from portal_app.services import tokens, users
from portal_app.views.admin_api import OPERATIONS
from portal_app.views.admin_api.operation import Operation
from tests.portal.agent_server import AgentServer
from tests.portal.app_user import ORIGIN, VpnApp
from tests.portal.pages import add_account
from tests.portal.scripts import API, Script, configured

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
#: Calls of one operation; there are some two dozen operations.
EXAMPLES = 12


@pytest.fixture
def database() -> str:
    return "sqlite"


@pytest.fixture
def script(
    app: Flask,
    make_nodes: Callable[..., list[AgentServer]],
    monkeypatch: pytest.MonkeyPatch,
) -> Script:
    """A script at a portal with something to find: alice has an app and a configuration."""
    make_nodes(1)
    add_account("alice", permissions=["staff"])
    with transaction(read_only=True) as db:
        alice = users.find(db, "alice")
    assert alice is not None
    VpnApp(app, alice).authorize().connect()
    script = Script(app)
    configured(script, "alice", profile_id="lab")
    # Not the address is looked at here.
    monkeypatch.setattr(tokens, "PER_SOURCE", tokens.Limit("admin API source", 10**6, 0.001))
    return script


@pytest.fixture
def document(script: Script) -> dict[str, Any]:
    answer = script.http.get(f"{API}/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json
    return found


def name_what_is_there(case: Any, there: dict[str, Any]) -> None:
    """Let a call name what exists; others are hardly ever found."""
    if isinstance(case.body, dict):
        if "profile_id" in case.body:
            case.body |= {"profile_id": "lab", "protocol": "wireguard"}
            case.body.pop("node", None)
        # Good only with each other, and before a time that is made up.
        for name in ("cut_at", "downloads", "notice"):
            case.body.pop(name, None)
    for name in case.path_parameters or {}:
        case.path_parameters[name] = there[name]
    # No page ends where a text that is made up says.
    if case.query:
        case.query.pop("after", None)


def calls(
    app: Flask, script: Script, document: dict[str, Any], operation: Operation, mode: GenerationMode
) -> set[int]:
    """Make calls of an operation from the document alone, check the answers, return their statuses."""
    described = schemathesis.openapi.from_dict(document)
    described.app = app
    found = described[operation.path][operation.method]
    checks = CHECKS + ([negative_data_rejection] if mode is GenerationMode.NEGATIVE else [])
    there = what_is_there(script)
    answered = set()
    numbers = itertools.count()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=found.as_strategy(generation_mode=mode))
    def call(case: Any) -> None:
        if mode is GenerationMode.POSITIVE and next(numbers) % 2 == 0:
            name_what_is_there(case, there)
        case.headers = dict(case.headers or {}) | {"Authorization": f"Bearer {script.token}"}
        answer = case.call(base_url=f"{ORIGIN}{API}")
        answered.add(answer.status_code)
        case.validate_response(answer, checks=checks)

    call()
    return answered


def what_is_there(script: Script) -> dict[str, Any]:
    """Return a value for each parameter of a path; the user has each of them."""
    return {
        "name": "alice",
        "node": "node0",
        "connection_id": script.get("/users/alice/connections").json["items"][0]["id"],
        "authorization_id": script.get("/users/alice/authorizations").json["items"][0]["id"],
    }


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_what_the_document_allows_works(
    app: Flask, script: Script, document: dict[str, Any], operation: Operation
) -> None:
    answered = calls(app, script, document, operation, GenerationMode.POSITIVE)

    assert operation.status in answered
    assert 401 not in answered


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_what_the_document_forbids_is_refused(
    app: Flask, script: Script, document: dict[str, Any], operation: Operation
) -> None:
    assert 401 not in calls(app, script, document, operation, GenerationMode.NEGATIVE)


@pytest.mark.parametrize("lie", ["a field is a number", "a field is not there", "a status is missing"])
def test_document_that_is_not_true_is_noticed(
    app: Flask, script: Script, document: dict[str, Any], lie: str
) -> None:
    """Else this file would prove nothing."""
    (get_user,) = (operation for operation in OPERATIONS if operation.name == "get_user")
    user = document["components"]["schemas"]["User"]
    if lie == "a field is a number":
        user["properties"]["name"] = {"type": "integer"}
    elif lie == "a field is not there":
        user["required"].append("nickname")
    else:
        del document["paths"]["/users/{name}"]["get"]["responses"]["404"]

    with pytest.raises(FailureGroup):
        calls(app, script, document, get_user, GenerationMode.POSITIVE)


def test_document_is_a_good_one(document: dict[str, Any]) -> None:
    schemathesis.openapi.from_dict(document).validate()


def test_document_has_every_call_and_no_other(app: Flask, document: dict[str, Any]) -> None:
    described = {
        (method.upper(), f"{API}{path}") for path, methods in document["paths"].items() for method in methods
    }
    served = {
        (method, rule.rule.replace("<path:", "<").replace("<", "{").replace(">", "}"))
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith(API) and not rule.rule.endswith("/openapi.json")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }

    assert described == served


def test_calls_without_a_token_are_refused_as_described(
    app: Flask, script: Script, document: dict[str, Any]
) -> None:
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            answer = script.http.open(API + path.replace("{", "").replace("}", ""), method=method.upper())
            assert answer.status_code == 401
            assert "401" in described["responses"]
            assert "security" in described
