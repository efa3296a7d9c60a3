"""The OpenAPI document is true: what it allows works, what it forbids is refused, answers are as it says.

schemathesis makes the calls from the document alone. They are the same ones in each run.
"""

from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from portal_app.services import tokens
from portal_app.views.admin_api import OPERATIONS
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
    make_app_user: Callable[..., VpnApp],
    monkeypatch: pytest.MonkeyPatch,
) -> Script:
    """A script at a portal with something to find: alice has an app and a configuration."""
    make_nodes(1)
    make_app_user("alice").connect()
    add_account("bob", permissions=["staff"])
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


def name_what_is_there(case: Any) -> None:
    """Let a part of the calls name something that exists; all the others are not found."""
    parameters = case.path_parameters or {}
    if "name" in parameters and len(str(parameters["name"])) % 2:
        parameters["name"] = "alice"
    if "node" in parameters and len(str(parameters["node"])) % 2:
        parameters["node"] = "node0"


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_answers_are_as_the_document_says(
    app: Flask, script: Script, document: dict[str, Any], operation: Any, mode: GenerationMode
) -> None:
    described = schemathesis.openapi.from_dict(document)
    described.app = app
    found = described[operation.path][operation.method]
    refused = [negative_data_rejection] if mode is GenerationMode.NEGATIVE else []
    answered = set()

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
        if mode is GenerationMode.POSITIVE:
            name_what_is_there(case)
        case.headers = dict(case.headers or {}) | {"Authorization": f"Bearer {script.token}"}
        answer = case.call(base_url=f"{ORIGIN}{API}")
        answered.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS + refused)

    call()

    assert 401 not in answered
    if mode is GenerationMode.POSITIVE:
        assert answered & {operation.status, 404, 409}, answered


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
