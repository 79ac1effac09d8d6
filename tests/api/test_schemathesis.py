"""Every operation of the schema, called with data made from it, right and wrong: no 5xx, and answers as described.

A server of the echo profile, with a decision log and experts that come and go, whose admin key the requests have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from expert_router.settings import DecisionLogSettings
from support import live_system, make_home, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemathesis import Case
    from schemathesis.openapi import OpenApiSchema

KEY = "a-key-of-sixteen-characters"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
"""Not that whatever fits the schema is accepted: it cannot say that a conversation ends with a user's turn."""

READ = ["/health/live", "/health/ready", "/v1/experts", "/v1/experts/{name}", "/v1/models", "/v1/models/{name}"]
WRITTEN = ["/query", "/v1/chat/completions", "/v1/experts", "/v1/experts/rollback", "/v1/explain", "/v1/feedback"]
CALLS = [
    *((path, "get", GenerationMode.POSITIVE) for path in READ),  # any text is a name: none is wrong
    ("/v1/experts/{name}", "delete", GenerationMode.POSITIVE),
    *((path, "post", mode) for path in WRITTEN for mode in GenerationMode),
]


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenApiSchema]:
    folder = tmp_path_factory.mktemp("checkout")
    log = DecisionLogSettings(path=folder / "decisions.sqlite")
    dispatcher, live = live_system(make_home(folder), folder / "catalogue", log)
    with serve(dispatcher.engine, dispatcher=dispatcher, live=live, admin_key=KEY) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_all_operations_are_called(schema: OpenApiSchema) -> None:
    there = {(found.ok().path, found.ok().method.lower()) for found in schema.get_all_operations()}
    assert {(path, method) for path, method, _ in CALLS} == there


@pytest.mark.parametrize(("path", "method", "mode"), CALLS)
def test_whatever_is_sent_is_answered_as_the_schema_says(
    schema: OpenApiSchema, path: str, method: str, mode: GenerationMode
) -> None:
    call(schema, path, method, mode, examples=25)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("path", "method", "mode"), CALLS)
def test_so_is_a_lot_of_it(schema: OpenApiSchema, path: str, method: str, mode: GenerationMode) -> None:
    call(schema, path, method, mode, examples=500)


def call(schema: OpenApiSchema, path: str, method: str, mode: GenerationMode, *, examples: int) -> None:
    @seed(20)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=schema[path][method].as_strategy(mode))
    def one(case: Case) -> None:
        case.call_and_validate(checks=CHECKS, headers={"authorization": f"Bearer {KEY}"})

    one()
