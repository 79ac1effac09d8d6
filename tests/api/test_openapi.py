"""The documentation pages, and the schema behind them: valid, and true."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.openapi.models import OpenAPI

from expert_router.api.schemas import ErrorResponse
from expert_router.engines.echo import EchoEngine
from support import live_system, make_home, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support import Server

OPERATIONS = {
    ("/v1/chat/completions", "post"),
    ("/v1/models", "get"),
    ("/v1/models/{name}", "get"),
    ("/v1/experts", "get"),
    ("/v1/experts", "post"),
    ("/v1/experts/{name}", "get"),
    ("/v1/experts/{name}", "delete"),
    ("/v1/experts/rollback", "post"),
    ("/v1/feedback", "post"),
    ("/query", "post"),
    ("/v1/explain", "post"),
    ("/health/live", "get"),
    ("/health/ready", "get"),
}


KEY = "a-key-of-sixteen-characters"
SUCCESS = {("/v1/feedback", "post"): "204", ("/v1/experts", "post"): "201"}
"""Of all others: 200."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("checkout")
    dispatcher, live = live_system(make_home(folder), folder / "catalogue")
    with serve(dispatcher.engine, dispatcher=dispatcher, live=live, admin_key=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def schema(server: Server) -> dict[str, Any]:
    loaded: dict[str, Any] = server.http.get("/openapi.json").json()
    return loaded


def operations(schema: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(path, method): operation for path, item in schema["paths"].items() for method, operation in item.items()}


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_the_root_redirects_to_the_home_page(server: Server) -> None:
    response = server.http.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/docs")
    with serve(EchoEngine(), home_page="/chat") as with_page:
        assert with_page.http.get("/").headers["location"] == "/chat"


def test_the_docs_page_is_html_that_reads_the_schema(server: Server) -> None:
    page = server.http.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "/openapi.json" in page.text


def test_the_schema_is_valid_and_whole(schema: dict[str, Any]) -> None:
    assert schema["openapi"].startswith("3.1")
    OpenAPI.model_validate(schema)
    for reference in references(schema):
        place: Any = schema
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
    identifiers = [operation["operationId"] for operation in operations(schema).values()]
    assert len(set(identifiers)) == len(identifiers)
    for (path, _), operation in operations(schema).items():
        declared = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path))


def test_the_schema_documents_every_endpoint_with_a_summary(schema: dict[str, Any]) -> None:
    assert set(operations(schema)) == OPERATIONS
    assert all(operation["summary"] for operation in operations(schema).values())


def test_the_documented_error_is_the_one_that_is_sent(server: Server, schema: dict[str, Any]) -> None:
    for place, operation in operations(schema).items():
        success = SUCCESS.get(place, "200")
        assert set(operation["responses"]) == {success, "default"}  # and no 422: a bad request is a 400
        content = operation["responses"]["default"]["content"]["application/json"]
        assert content["schema"] == {"$ref": "#/components/schemas/ErrorResponse"}
    sent = server.post(model="nobody").json()
    assert ErrorResponse.model_validate(sent).model_dump() == sent


def test_the_examples_work_as_they_stand(server: Server, schema: dict[str, Any]) -> None:
    tried = 0
    for place, operation in operations(schema).items():
        path, _ = place
        if "requestBody" in operation and path != "/v1/feedback":  # its example names a decision of another day
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
            for example in schema["components"]["schemas"][name]["examples"]:
                answer = server.http.post(path, json=example, headers={"authorization": f"Bearer {KEY}"})
                assert str(answer.status_code) == SUCCESS.get(place, "200")
                tried += 1
    assert tried == 5
