"""A client of the service for apps in Python.

with Minutehand("http://127.0.0.1:8700") as minutehand:
    made = minutehand.recommend("anna", k=10)
    minutehand.act(made["recommendation_id"], made["items"][0]["item_id"], "click")
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import quote

import httpx

from common.errors import InputError
from serving.app.address import APP_KEY

Id = int | str


class Refused(InputError):
    """The service answered with an error. The text is its sentence, `status` is the HTTP status, 0 without an answer.

    Status 503 and 0: the same call may succeed later, and events that are sent twice count once.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Minutehand:
    """Talks to the service at `url`. Threads may share it. `key` is by default that of the environment."""

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 15.0) -> None:
        key = os.environ.get(APP_KEY, "") if key is None else key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=False)

    def recommend(
        self, user_id: Id, k: int = 10, context: Mapping[str, Any] | None = None, *, task: str | None = None,
        log: bool = True,
    ) -> dict[str, Any]:  # fmt: skip
        """Returns the k best items for a user, as docs/your-app.md describes them. Raises Refused.

        `task` ranks them. `log=False`: nobody is shown the list, so no impression is logged.
        """
        body: dict[str, Any] = {"user_id": user_id, "k": k, "context": dict(context or {}), "log": log}
        return self._post("recommend", body | ({"task": task} if task is not None else {}))

    def act(self, recommendation_id: str, item_id: Id, action: str, **fields: Any) -> dict[str, Any]:
        """Reports what a user did with an item of a recommendation. `fields`: ts_ms, value. Raises Refused."""
        body = {"recommendation_id": recommendation_id, "item_id": item_id, "action": action}
        return self._post("events", body | fields)

    def events(self, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Sends several events. Returns how many were accepted, and why others were not."""
        return self._post("events", {"events": list(events)})

    def item(self, item_id: Id, **attributes: Any) -> dict[str, Any]:
        """Sets attributes of an item. Those that are left out keep their values. Raises Refused."""
        return self._post("items", {"item_id": item_id, "attributes": attributes})

    def user(self, user_id: Id, **attributes: Any) -> dict[str, Any]:
        """Sets attributes of a user. Raises Refused."""
        return self._post("users", {"user_id": user_id, "attributes": attributes})

    def forget(self, user_id: Id) -> dict[str, Any]:
        """Forgets what a user did, and the user's attributes. Raises Refused."""
        text = f'"{user_id}"' if isinstance(user_id, str) else str(user_id)
        return self._ask("DELETE", f"users/{quote(text, safe='')}")

    def _post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._ask("POST", route, json=body)

    def _ask(self, method: str, route: str, **body: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, f"/v1/{route}", **body)
        except httpx.HTTPError as e:
            raise Refused(0, f"{self._http.base_url} does not answer: {e or type(e).__name__}") from None
        content: dict[str, Any] = answer.json()
        if "error" in content:
            raise Refused(answer.status_code, content["error"])
        return content

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
