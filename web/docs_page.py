"""`/docs` and `/redoc`, their OpenAPI document, and the greeting in the terminal; all offline."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import multiprocessing
import re
import secrets
import sys
from http import HTTPStatus
from pathlib import Path
from string import Template
from typing import Any

import fastapi_offline
from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope
from uvicorn.main import main as uvicorn_command

import auth
from config import Settings, is_loopback
from errors import catalog
from gateways.sandbox import FAULTS, SLOW_PATTERN
from settlement.idempotency import STORED_ERRORS
from web.problems import PROBLEM_SCHEMA, VALIDATION_RULES
from web.route import PUBLIC, run_in_thread

DESCRIPTION = """
Payment methods, orders, and charges that happen exactly once.

**Authorize** with a JWT (`Authorization: Bearer …`). In development `/docs` is authorized already
on the machine that serves it (at `localhost`): the bar on top of it holds working tokens.
Elsewhere press *Authorize* there and paste yours.

**The first paid order** takes three clicks on *Execute*, with the examples as they are:

1. `POST /payment-methods` saves a card. It becomes your default.
2. `POST /orders` places an order and answers with its `id`.
3. `POST /orders/{order_id}/payments` with that id charges the card: 201, and the order is `paid`.

**Money** is an integer in the currency's minor unit: `1099` with `USD` is 10.99 USD, `1099` with
`JPY` is 1099 yen. **Errors** are problem documents (RFC 9457) with a stable `code`;
[/errors](/errors) explains every one and what to do next. **Repeating** a `POST` or `PUT` is safe
with an `Idempotency-Key`: the same key is the same request, done once.

<details>
<summary>Test cards of the sandbox, the default gateway in development</summary>

| card number | outcome |
|---|---|
| `4242 4242 4242 4242`, `5555 5555 5555 4444`, `3782 822463 10005` | succeeds |
| `4000 0000 0000 0002` | declined: `generic_decline` |
| `4000 0000 0000 9995` | declined: `insufficient_funds` |
| `4000 0000 0000 0069` | declined: `expired_card` |
| `4000 0000 0000 0127` | declined: `incorrect_cvc` |
| `4000 0000 0000 0119` | declined: `processing_error` |
| `4100 0000 0000 0019` | declined: `fraudulent` |
| `4000 0027 6000 3184` | `requires_action`: a person approves or declines on a page |
| `4000 0000 0000 0259` | succeeds, then a dispute is opened |
| `4000 0000 0000 5126` | succeeds; a refund stays `pending`, then fails |

Use any expiry that is not past, any CVC and any name. PayPal and bank accounts succeed.

In development [the sandbox's dashboard](/sandbox) shows its charges. Refund, capture, cancel or
dispute one there, past the service, and see what its books make of it.

</details>
"""

TAGS = [
    {
        "name": "Payment methods",
        "description": "The cards, wallets and accounts that users have saved. "
        "A number goes to the gateway and is forgotten.",
    },
    {"name": "Orders", "description": "What users buy: its price, its status and its history."},
    {"name": "Payments", "description": "Charging an order, once, and what came of it."},
    {
        "name": "Disputes",
        "description": "Shoppers who asked their banks for the money back, for those who answer.",
    },
    {"name": "Webhooks", "description": "Where gateways send their events."},
    {"name": "Sandbox", "description": "The sandbox gateway's own books."},
    {"name": "Errors", "description": "Every error code, and what to do next."},
    {"name": "Operations", "description": "For load balancers and operators."},
]

# The users that /docs can act as in development, with their scopes.
USERS = {"alice": "", "manager": "orders:manage payments:manage webhooks:manage"}

PAGE = Path(__file__).with_name("docs_page.html").read_text(encoding="utf-8")
DEVELOPMENT_ONLY = re.compile("<!-- development -->.*<!-- /development -->", re.DOTALL)
# As browsers write it; names under localhost may be other developers' pages.
LOOPBACK_HOST = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.ASCII | re.I)
PROXY_HEADERS = re.compile(
    "origin|forwarded|via|x-forwarded(-.*)?|x-(real|client)-ip|true-client-ip|cf-.*|cdn-loop"
)
ASSETS = Path(fastapi_offline.__file__).with_name("static")
MAX_ASSET_PATH = 255
ASSETS_MAX_AGE = 24 * 3600  # seconds; their addresses do not name the package's version

# Both pages style inline; ReDoc searches in a worker that it makes from a blob.
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self' 'nonce-{nonce}'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "worker-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)


def install(app: FastAPI, settings: Settings) -> None:
    """Add the pages. Call it after every router was added: the document is made once."""

    async def swagger_ui(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        page, tokens = DEVELOPMENT_ONLY.sub("", PAGE), ""
        if _mints(settings) and _is_developer(request):
            page, tokens = PAGE, json.dumps(_tokens(settings))
        html = Template(page).substitute(
            title=app.title,
            nonce=nonce,
            tokens=tokens,
            remember=json.dumps(not settings.production),
        )
        return _as_page(HTMLResponse(html), nonce)

    async def redoc(request: Request) -> Response:
        # Addresses are relative, so that a proxy may serve all this under a prefix.
        html = get_redoc_html(
            openapi_url="openapi.json",
            title=app.title,
            redoc_js_url="docs/assets/redoc.standalone.js",
            redoc_favicon_url="docs/assets/favicon.png",
            with_google_fonts=False,
        )
        return _as_page(html, secrets.token_urlsafe(16))

    generate = app.openapi
    takes_faults = "sandbox" in settings.gateway_names and not settings.production
    document = functools.cache(lambda: _complete(generate(), takes_faults))
    app.openapi = document  # type: ignore[method-assign]

    @functools.cache
    def render(root_path: str) -> bytes:
        servers = [{"url": root_path}] if root_path else []
        content = document() | {"servers": servers + document()["servers"]}
        return bytes(JSONResponse(content).body)

    async def openapi(request: Request) -> Response:
        # Anybody may ask, and the first time takes a third of a second: nobody waits meanwhile.
        root_path = request.scope["root_path"].rstrip("/")
        body = await run_in_thread(functools.partial(render, root_path), *PUBLIC)
        return Response(body, media_type="application/json")

    app.add_route("/openapi.json", openapi, include_in_schema=False)
    app.mount("/docs/assets", _Assets(directory=ASSETS), name="assets")
    app.add_route("/docs", swagger_ui, include_in_schema=False)
    app.add_route("/redoc", redoc, include_in_schema=False)


def print_greeting(settings: Settings) -> None:
    """Print a greeting for the developer: the address of the docs, a token, a first paid order to
    paste.

    To standard error, in development only, and once however many processes serve.
    """
    if settings.production or not _is_first_of_this_run(settings.data_dir):
        return
    address = _address(settings)
    lines = ["", f"The service is ready. Try it in the browser: {address}/docs", ""]
    if _mints(settings):
        lines += [
            "Or paste this into a shell: alice's token, good for 12 hours, and her first paid order"
            if "sandbox" in settings.gateway_names
            else "A token of alice, good for 12 hours:",
            "",
            f"TOKEN={auth.mint(settings, 'alice')}",
        ]
        if "sandbox" in settings.gateway_names:
            lines += _first_paid_order(address)
        lines.append("")
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()


class _Assets(StaticFiles):
    """The files of the two pages. A missing one is HTTPException(404), like any other path."""

    def get_path(self, scope: Scope) -> str:
        if len(scope["path"]) > MAX_ASSET_PATH:
            raise HTTPException(404)  # each of its parts would be looked up
        return super().get_path(scope)

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = f"public, max-age={ASSETS_MAX_AGE}"
        return response


def _mints(settings: Settings) -> bool:
    return settings.environment == "development" and settings.algorithm == "HS256"


def _is_developer(request: Request) -> bool:
    """Whether somebody on this machine opens the page, with no proxy between.

    Both ends count: a page whose name was rebound to 127.0.0.1 connects from here, but names its
    own host. Proxies and forwarded ports connect from here too, and mostly name their client.
    """
    peer, hosts = request.client, request.headers.getlist("host")
    return (
        peer is not None
        and is_loopback(peer.host)
        and len(hosts) == 1
        and LOOPBACK_HOST.fullmatch(hosts[0]) is not None
        # A visitor sends no Origin; a script of a site that CORS_ORIGINS names does.
        and not any(map(PROXY_HEADERS.fullmatch, request.headers.keys()))
        # nginx asks so by default; no browser does.
        and request.scope["http_version"] != "1.0"
    )


def _tokens(settings: Settings) -> dict[str, dict[str, str]]:
    return {
        user: {"token": auth.mint(settings, user, scope), "scope": scope}
        for user, scope in USERS.items()
    }


def _as_page(response: Response, nonce: str) -> Response:
    response.headers["Cache-Control"] = "no-store"
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY.format(nonce=nonce)
    return response


# The OpenAPI document ---------------------------------------------------------------------------

_MEMBERS = sorted({name for error in catalog().values() for name in error.example} - {"detail"})

PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "A problem document (RFC 9457). Some codes add members "
    f"({', '.join(f'`{name}`' for name in _MEMBERS)}); `GET /errors/{{code}}` shows which.",
    "type": "object",
    "required": ["type", "title", "status", "code", "detail", "request_id", "retryable"],
    "properties": {
        "type": {
            "type": "string",
            "format": "uri-reference",
            "description": "Where this code is explained: `/errors/` and the code.",
        },
        "title": {"type": "string", "description": "The same for every occurrence."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "code": {"type": "string", "description": "Stable: the member for programs to go by."},
        "detail": {"type": "string", "description": "This occurrence, for people."},
        "request_id": {"type": "string", "description": "What to tell support."},
        "retryable": {
            "type": "boolean",
            "description": "Whether the very same request may succeed later.",
        },
        "errors": {
            "type": "array",
            "description": "With `invalid_request`: everything that is wrong.",
            "items": {
                "type": "object",
                "required": ["field", "code", "message"],
                "properties": {
                    "field": {"type": "string", "description": "Where: `details.card_number`."},
                    "code": {"type": "string", "description": "Which rule was broken."},
                    "message": {"type": "string", "description": "What to send instead."},
                },
            },
        },
    },
    "additionalProperties": True,
}

HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "The id of this request: the caller's own `X-Request-Id` when it is 1 to "
        "128 of `A-Za-z0-9._-`, else a new one.",
        "schema": {"type": "string", "examples": ["8b3f0c5e0f7c4a55a6f6f3b7f0a1c2d3"]},
    },
    "Location": {
        "description": "The path of the resource, or of the page that a browser is led to.",
        "schema": {"type": "string", "format": "uri-reference", "examples": ["/orders/1"]},
    },
    "Link": {
        "description": 'The next page (`rel="next"`, RFC 8288); absent on the last one.',
        "schema": {"type": "string", "examples": ['</orders?limit=50&cursor=51>; rel="next"']},
    },
    "WWW-Authenticate": {
        "description": "The scheme to authenticate with.",
        "schema": {"type": "string", "examples": ["Bearer"]},
    },
    "Idempotent-Replayed": {
        "description": "`true` when this is the answer that the first request with this "
        "`Idempotency-Key` got; absent in the first answer.",
        "schema": {"type": "string", "examples": ["true"]},
    },
    "Retry-After": {
        "description": "How many seconds to wait before the next attempt.",
        "schema": {"type": "integer", "examples": [1]},
    },
}

# The headers that come with a status, beside X-Request-Id.
HEADERS_BY_STATUS = {
    "201": ["Location"],
    "202": ["Location"],
    "307": ["Location"],
    "401": ["WWW-Authenticate"],
    "503": ["Retry-After"],
}

PATH_EXAMPLES = {"code": "payment_declined", "gateway": "sandbox"}  # the others are ids
IDEMPOTENCY_KEY, SANDBOX_FAULT = "Idempotency-Key", "Sandbox-Fault"
HEADER_SCHEMAS: dict[str, dict[str, Any]] = {
    IDEMPOTENCY_KEY: {"pattern": r"^[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?$"},
    SANDBOX_FAULT: {"oneOf": [{"enum": sorted(FAULTS)}, {"pattern": f"^{SLOW_PATTERN}$"}]},
}
_FASTAPIS_OWN = ("HTTPValidationError", "ValidationError")  # ours are problem documents with 400


def _complete(document: dict[str, Any], takes_faults: bool) -> dict[str, Any]:
    """Complete FastAPI's document with what this service does."""
    document["servers"] = [{"url": "/", "description": "This service"}]
    components = document["components"]
    schemas = components["schemas"]
    for name in _FASTAPIS_OWN:
        schemas.pop(name, None)
    schemas[PROBLEM_SCHEMA["$ref"].rsplit("/", 1)[1]] = PROBLEM
    components["headers"] = HEADERS
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            _untitle(field)
    used = set()
    for path in document["paths"].values():
        for method, operation in path.items():
            used.update(operation["tags"])
            _complete_parameters(method, operation, takes_faults)
            _complete_responses(operation)
            for media_type in operation.get("requestBody", {}).get("content", {}).values():
                _untitle(media_type["schema"])
    document["tags"] = [tag for tag in document["tags"] if tag["name"] in used]
    return document


def _complete_parameters(method: str, operation: dict[str, Any], takes_faults: bool) -> None:
    for parameter in list(operation.get("parameters", ())):
        schema = parameter["schema"]
        _untitle(schema)
        if "anyOf" in schema:  # a parameter can be left out, null cannot be sent
            alternatives = [part for part in schema["anyOf"] if part != {"type": "null"}]
            if len(alternatives) == 1:
                del schema["anyOf"]
                schema.update(alternatives[0])
        if parameter["in"] == "path":
            parameter["example"] = PATH_EXAMPLES.get(parameter["name"], 1)
        if parameter["in"] == "header":
            parameter["name"] = "-".join(map(str.capitalize, parameter["name"].split("-")))
            schema.update(HEADER_SCHEMAS.get(parameter["name"], {}))
            if (
                # The other methods are safe to repeat anyway.
                (parameter["name"] == IDEMPOTENCY_KEY and method not in ("post", "put"))
                or (parameter["name"] == SANDBOX_FAULT and not takes_faults)
            ):
                operation["parameters"].remove(parameter)


def _complete_responses(operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    if operation["operationId"] in VALIDATION_RULES:
        rules = ", ".join(f"`{rule}`" for rule in VALIDATION_RULES[operation["operationId"]])
        responses["400"]["description"] += f". Rules that no schema can tell: {rules}"
    if any(name in json.dumps(responses.get("422")) for name in _FASTAPIS_OWN):
        del responses["422"]
    parameters = {parameter["name"] for parameter in operation.get("parameters", ())}
    for status, response in responses.items():
        if response["description"] == "Successful Response":
            response["description"] = HTTPStatus(int(status)).phrase
        names = ["X-Request-Id", *HEADERS_BY_STATUS.get(status, ())]
        if "cursor" in parameters and status == "200":
            names.append("Link")
        if IDEMPOTENCY_KEY in parameters and _is_replayed(status, response):
            names.append("Idempotent-Replayed")
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
        for media_type in response.get("content", {}).values():
            _untitle(media_type.get("schema", {}))


def _is_replayed(status: str, response: dict[str, Any]) -> bool:
    """Whether an answer of this kind is kept for its Idempotency-Key."""
    codes = response.get("content", {}).get("application/problem+json", {}).get("examples", ())
    return status < "300" or any(catalog()[code] in STORED_ERRORS for code in codes)


def _untitle(schema: dict[str, Any]) -> None:
    # "Product Id" is Pydantic's invention, and Swagger UI shows it in the place of `product_id`.
    schema.pop("title", None)


# The greeting -----------------------------------------------------------------------------------


def _first_paid_order(address: str) -> list[str]:
    """Lines of shell that save a card, place an order and pay it. They may be run again: the card
    is saved by then (409), and the new order is paid with it."""
    card = {"card_number": "4242 4242 4242 4242", "exp_month": 12, "exp_year": 2034}
    method = {"payment_type": "card", "details": card}
    order = {"product_id": "sku-42", "quantity": 1, "total_amount": 1099}
    headers = "-H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json'"
    find_id = "grep -o '\"id\":[0-9]*' | grep -o '[0-9]*'"
    return [
        f"curl -s {address}/payment-methods {headers} -d '{json.dumps(method)}'; echo",
        f"ORDER=$(curl -s {address}/orders {headers} -d '{json.dumps(order)}' | {find_id})",
        f"curl -s {address}/orders/$ORDER/payments {headers} -d '{{}}'; echo",
    ]


def _is_first_of_this_run(data_dir: Path) -> bool:
    """Whether this is the first worker of this run to greet; a reload is the same run.

    The authentication key of multiprocessing is random, and the same for all processes of a run.
    """
    run = hashlib.sha256(multiprocessing.current_process().authkey).hexdigest()
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with (data_dir / "announced").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed: workers start at the same time
            file.seek(0)
            if file.read() == run:
                return False
            file.truncate(0)
            file.write(run)
    except OSError:
        return True  # nowhere to remember it; one greeting too many does no harm
    return True


def listens_on(settings: Settings) -> tuple[str, int]:
    """The host and port that the service listens on, as far as this process can know."""
    host, port = settings.host, settings.port
    program = Path(sys.argv[0])
    if program.stem == "uvicorn" or program.parts[-2:] == ("uvicorn", "__main__.py"):
        # Its command line decides, not our settings; its workers see the same one.
        context = uvicorn_command.make_context(
            "uvicorn", sys.argv[1:], resilient_parsing=True, auto_envvar_prefix="UVICORN"
        )
        host, port = context.params["host"], context.params["port"]
    return host, port


def _address(settings: Settings) -> str:
    host, port = listens_on(settings)
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 - every address of this machine
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
