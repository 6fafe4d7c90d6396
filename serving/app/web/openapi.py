"""The bodies and answers of the routes as OpenAPI shows them. The contract's rules are the source of their fields."""

from __future__ import annotations

from typing import Any

from serving.app import ids
from serving.app.service import MAX_EVENTS, MAX_K, K
from streaming.contract.contract import Contract
from streaming.contract.schema import rule
from streaming.declaration import Declaration
from streaming.topics import ACTIONS, IMPRESSIONS, ITEMS, USERS
from streaming.views import Views

_TEXT, _INT, _NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required or properties), "properties": properties}


def bodies(declaration: Declaration, views: Views) -> dict[str, dict[str, Any]]:
    """The schema of each route's body, for a declaration."""
    contract = Contract(declaration, views)
    context = {f.name: _shown(rule(f.kind)) for f in declaration.features if f.view == "request"}
    ranking = "the score that the source declares" if declaration.rank else declaration.judged
    question: dict[str, Any] = {
        "user_id": ids.SCHEMA,
        "k": {"type": "integer", "minimum": 1, "maximum": MAX_K, "default": K, "description": "how many items"},
        "context": {"type": "object", "properties": context, "additionalProperties": False,
                    "description": "the features of the request"},
        "task": {"enum": list(declaration.tasks), "description": f"what ranks the items ({ranking})"},
        "log": {"type": "boolean", "default": True, "description": "false: a look, which nobody is shown"},
    }  # fmt: skip
    impressions, actions = (_event(contract, topic, ("ts_ms",)) for topic in (IMPRESSIONS, ACTIONS))
    of_recommendation = {
        **{k: v for k, v in actions["properties"].items() if k != "impression_id"},
        "recommendation_id": _shown(rule("key")),
        "item_id": ids.SCHEMA,
    }
    action = _closed(of_recommendation, ["recommendation_id", "item_id", "action"])
    events = {"anyOf": [action, actions, impressions]}
    several = {"events": events} | {topic: _event(contract, topic, ("ts_ms",)) for topic in (ITEMS, USERS)}
    return {"recommend": _closed(question, ["user_id"])} | {n: _one_or_many(n, s) for n, s in several.items()}


def _event(contract: Contract, topic: str, optional: tuple[str, ...]) -> dict[str, Any]:
    """An event of a topic. The service fills the optional fields, and takes texts for ids."""
    schema: dict[str, Any] = _shown(contract.rule(topic))
    properties = {name: ids.SCHEMA if name in ("user_id", "item_id") else s for name, s in schema["properties"].items()}
    return _closed(properties, [name for name in schema["required"] if name not in optional])


def _closed(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


def _one_or_many(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    several = {"type": "array", "items": schema, "minItems": 1, "maxItems": MAX_EVENTS}
    return {"anyOf": [schema, _closed({name: several}, [name])]}


def _shown(schema: Any) -> Any:
    """A rule of the contract as standard JSON Schema: its limits of bytes become limits of characters."""
    if isinstance(schema, dict):
        names = {"minBytes": "minLength", "maxBytes": "maxLength"}
        return {names.get(name, name): _shown(value) for name, value in schema.items()}
    return schema


def operation(schema: dict[str, Any], with_key: bool) -> dict[str, Any]:
    """What a route adds to OpenAPI: its body, and its key if there is one."""
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"requestBody": body} | secured(with_key)


def secured(with_key: bool) -> dict[str, Any]:
    """What OpenAPI shows of a route's key."""
    return {"security": [{"key": []}]} if with_key else {}


KEY = {"key": {"type": "http", "scheme": "bearer"}}
"""The security scheme of the routes below /v1/."""

_ERROR = _object(error=_TEXT)
_REFUSED = {"type": "array", "items": _object(index=_INT, status=_INT, error=_TEXT)}
_TAKEN = _object(accepted=_INT, refused=_REFUSED)
_ITEM = _object(
    ("item_id", "rank_score", "scores", "source"),
    item_id=ids.SCHEMA, impression_id=_TEXT, rank_score=_NUMBER, source=_TEXT,
    scores={"type": "object", "additionalProperties": _NUMBER},
)  # fmt: skip
_LIST = _object(
    ("items", "arm", "model", "ms"),
    recommendation_id=_TEXT, items={"type": "array", "items": _ITEM}, arm=_TEXT,
    model=_object(lineage=_TEXT, seq=_INT, learned_until_ms=_INT),
    ms={"type": "object", "additionalProperties": _NUMBER},
)  # fmt: skip
_PROBLEMS = {
    400: "the body is no JSON object in UTF-8",
    401: "the API key is missing or wrong",
    408: "the body did not arrive in time",
    409: "a text has another text's hash, or all items of the source look alike",
    413: "the body is too large",
    415: "the body is not application/json",
    422: "a field is wrong",
    503: "Kafka, the model servers or a store are away",
}
_OF_EVENTS = {404: "nobody made this recommendation, or it lacks the item", 410: "the action comes too late"}


def _answers(success: dict[str, Any], problems: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    error = {"application/json": {"schema": {"anyOf": [_ERROR, success]}}}
    return {
        200: {"description": "the answer", "content": {"application/json": {"schema": success}}},
        **{status: {"description": text, "content": error} for status, text in sorted(problems.items())},
    }


ANSWERS = {
    "/v1/recommend": _answers(_LIST, _PROBLEMS),
    "/v1/events": _answers(_TAKEN, _PROBLEMS | _OF_EVENTS),
    "/v1/items": _answers(_TAKEN, _PROBLEMS),
    "/v1/users": _answers(_TAKEN, _PROBLEMS),
    "forget": _answers(_TAKEN, {status: _PROBLEMS[status] for status in (401, 422, 503)}),
}
