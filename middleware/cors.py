"""Which origins' pages may call the service, and a problem document for those that may not."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from errors import InvalidRequest
from observability import logs


class Cors(CORSMiddleware):
    """The framework's rules, with problem documents instead of its plain-text refusals."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        problem = InvalidRequest.of(
            "Origin", "cors", "This origin may not send this request; see CORS_ORIGINS"
        )
        refusal = Response(
            problem.body(logs.get_bound("request_id")),
            problem.status,
            media_type="application/problem+json",
        )
        refusal.headers["Vary"] = response.headers.get("vary", "Origin")
        return refusal
