"""`/checkout/return`: where a shopper lands after a redirect that names no other address."""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from web.route import ServiceRoute

router = APIRouter(prefix="/checkout", route_class=ServiceRoute, include_in_schema=False)

# No script, no style from elsewhere, and nothing of what the gateway added to the address.
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Thank you</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:30rem;margin:20vh auto;padding:0 1rem;
text-align:center;color:#1a2233}</style>
<h1>Thank you</h1>
<p>You can close this page. The store tells you in a moment whether the payment went through.</p>
</html>"""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Referrer-Policy": "no-referrer",  # the address holds the gateway's ids
}


@router.get("/return")
async def show_return() -> HTMLResponse:
    """Says thank you; the outcome comes by webhook, look-up, or POST /payments/{id}/confirm."""
    return HTMLResponse(PAGE, headers=HEADERS)
