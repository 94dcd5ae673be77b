"""Who asks for a change and under which request, and the answer that the change ends in."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel

from domain.access import Principal
from domain.events import Actor
from errors import Forbidden, ServiceError

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"  # RFC 9457


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer: rendered inside the transaction whose outcome it tells."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def resource(cls, status: int, resource: BaseModel, location: str | None = None) -> Answer:
        headers = {"Content-Type": JSON} | ({"Location": location} if location else {})
        return cls(status, resource.model_dump_json().encode(), headers)

    @classmethod
    def nothing(cls) -> Answer:
        return cls(204, b"")

    @classmethod
    def problem(cls, error: ServiceError, request_id: str) -> Answer:
        headers = {"Content-Type": PROBLEM_JSON, **error.headers}
        return cls(error.status, error.body(request_id), headers)


@dataclass(frozen=True, slots=True)
class Context:
    """The caller of a change."""

    principal: Principal
    request_id: str

    @property
    def actor(self) -> Actor:
        return Actor(type="user", id=self.principal.user_id)

    def owner(self, user_id: str | None) -> str:
        """Whose resource is created: the caller's, or the user's that the body names.

        Raises Forbidden for somebody else without `orders:manage`.
        """
        if user_id is None or user_id == self.principal.user_id:
            return self.principal.user_id
        if not self.principal.manages_orders:
            raise Forbidden("Creating for another user needs the scope orders:manage")
        return user_id
