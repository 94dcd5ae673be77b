"""Which webhooks are Stripe's, and what they tell."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import httpx
import pytest

from conformance.doubles.stripe import (
    FOREIGN_SECRET,
    SECRET,
    StripeDouble,
    sign,
)
from gateways.base import (
    Charge,
    Dispute,
    GatewayEvent,
    MethodChange,
    Refund,
    SignatureInvalid,
)
from gateways.stripe import StripeGateway
from tests.support.stripe import (
    gateway_for,
    pay,
    refund_request,
    save,
)
from tests.support.stripe_answers import CHARGED, INTENT

# Webhooks ---------------------------------------------------------------------------------------


def events_of(gateway: StripeGateway, double: StripeDouble) -> dict[str, GatewayEvent]:
    """The events that were sent, by type, the newest of each."""
    found = [gateway.parse_webhook(httpx.Headers(head), body) for head, body in double.sent]
    return {event.type: event for event in found}


def test_events_tell_the_state_of_a_charge(gateway: StripeGateway, double: StripeDouble) -> None:
    _, captured = pay(gateway, double)
    _, held = pay(gateway, double, capture=False)
    _, declined = pay(gateway, double, "insufficient")
    _, waiting = pay(gateway, double, "action")
    events = events_of(gateway, double)
    for kind, charge in {
        "payment_intent.succeeded": captured,
        "payment_intent.amount_capturable_updated": held,
        "payment_intent.payment_failed": declined,
        "payment_intent.requires_action": waiting,
    }.items():
        event = events[kind]
        assert (event.payment_id, event.reference) == (7, charge.reference)
        assert event.charge is not None
        # An event names the charge behind it only, which knows when exactly it ends.
        assert dataclasses.replace(event.charge, capture_before=charge.capture_before) == charge
    double.expire(held.reference)
    events = events_of(gateway, double)
    for kind in ("charge.expired", "payment_intent.canceled"):
        assert events[kind].payment_id == 7
        assert events[kind].charge == Charge(held.reference, "voided", 1099, "USD")


def test_events_tell_of_refunds(gateway: StripeGateway, double: StripeDouble) -> None:
    _, charge = pay(gateway, double)
    refund = gateway.refund(refund_request(charge, 400))
    double.fail_refund(refund.reference)
    events = events_of(gateway, double)
    created, failed = events["refund.created"], events["refund.failed"]
    assert (created.refund, created.payment_id) == (refund, 7)
    assert created.refund_key == double.refunds[refund.reference]["metadata"]["key"]
    assert failed.refund == dataclasses.replace(refund, status="failed")
    assert failed.reference == charge.reference
    refunded = events["charge.refunded"]
    assert refunded.needs_lookup
    assert (refunded.reference, refunded.payment_id) == (charge.reference, 7)


def test_a_refund_that_was_made_by_hand_has_no_id_of_ours(
    gateway: StripeGateway, double: StripeDouble
) -> None:
    _, charge = pay(gateway, double)
    reference = double.refund_outside(charge.reference, 300)
    event = events_of(gateway, double)["refund.created"]
    assert event.refund == Refund(reference, "succeeded", 300, "USD")
    assert (event.payment_id, event.reference) == (None, charge.reference)


@pytest.mark.parametrize("won", [True, False])
def test_events_tell_of_disputes(gateway: StripeGateway, double: StripeDouble, won: bool) -> None:
    _, charge = pay(gateway, double)
    dispute = double.dispute(charge.reference)
    event = events_of(gateway, double)["charge.dispute.created"]
    due = datetime.fromtimestamp(
        double.disputes[dispute]["evidence_details"]["due_by"], timezone.utc
    )
    assert event.dispute == Dispute(dispute, "open", 1099, "USD", "fraudulent", due)
    assert event.reference == charge.reference
    double.close_dispute(dispute, won=won)
    closed = events_of(gateway, double)["charge.dispute.closed"].dispute
    assert closed is not None
    assert closed.status == ("won" if won else "lost")


def test_events_tell_of_methods(gateway: StripeGateway, double: StripeDouble) -> None:
    saved = save(gateway, double)
    double.replace_card(saved.token, last4="1111", exp_year=2050)
    double.detach(saved.token)
    events = events_of(gateway, double)
    details = {"brand": "visa", "last4": "1111", "exp_month": 12, "exp_year": 2050}
    updated = events["payment_method.automatically_updated"]
    assert updated.method == MethodChange(saved.token, details)
    assert events["payment_method.detached"].method == MethodChange(saved.token, None)


def event(kind: str, found: Any, **changes: Any) -> tuple[dict[str, str], bytes]:
    """A signed event."""
    body = {"id": "evt_1", "object": "event", "type": kind, "data": {"object": found}, **changes}
    raw = json.dumps(body).encode()
    return signed(raw), raw


def signed(raw: bytes) -> dict[str, str]:
    return {"stripe-signature": sign(raw, SECRET, int(time.time()))}


@pytest.fixture(scope="module")
def reader() -> Iterator[StripeGateway]:
    gateway = gateway_for("http://127.0.0.1:9")
    yield gateway
    gateway.close()


def test_a_charge_without_our_key_is_somebody_elses(reader: StripeGateway) -> None:
    intent = {**INTENT, "metadata": {"payment_id": "7"}}
    found = reader.parse_webhook(*event("payment_intent.succeeded", intent))
    assert found == GatewayEvent("evt_1", "payment_intent.succeeded", None, None)


@pytest.mark.parametrize("kind", ["customer.created", "payment_intent.created", "x", "v2.core.a"])
def test_other_events_mean_nothing(reader: StripeGateway, kind: str) -> None:
    assert reader.parse_webhook(*event(kind, None)) == GatewayEvent("evt_1", kind, None, None)


@pytest.mark.parametrize(
    "payment_id",
    [None, "", "0", "-7", "+7", "07", "7.0", "７", "7 ", "1e3", "9" * 19, "9" * 5000, 7, {}, []],
)
def test_an_id_that_is_not_ours_leaves_the_reference(
    reader: StripeGateway, payment_id: object
) -> None:
    intent = {**INTENT, "metadata": {"payment_id": payment_id, "key": "key-1"}}
    found = reader.parse_webhook(*event("payment_intent.succeeded", intent))
    assert (found.payment_id, found.reference) == (None, "pi_1")
    assert found.charge == CHARGED


def test_an_id_may_be_as_large_as_a_bigint(reader: StripeGateway) -> None:
    intent = {**INTENT, "metadata": {"payment_id": str(2**63 - 1), "key": "key-1"}}
    found = reader.parse_webhook(*event("payment_intent.succeeded", intent))
    assert found.payment_id == 2**63 - 1


@pytest.mark.parametrize("kind", ["charge.expired", "charge.refunded"])
def test_a_charge_without_a_payment_intent_is_none_of_ours(
    reader: StripeGateway, kind: str
) -> None:
    charge = {"id": "ch_1", "amount": 5, "currency": "usd", "payment_intent": None}
    found = reader.parse_webhook(*event(kind, charge))
    assert found == GatewayEvent("evt_1", kind, None, None)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        *(("needs_response", "open"), ("under_review", "open"), ("a new word", "open")),
        *(("warning_needs_response", "open"), ("warning_closed", "won")),
        *(("won", "won"), ("lost", "lost")),
    ],
)
def test_every_status_of_a_dispute_has_its_word(
    reader: StripeGateway, theirs: str, ours: str
) -> None:
    dispute = {
        **{"id": "du_1", "amount": 5, "currency": "usd", "payment_intent": "pi_1"},
        **{"reason": "a sentence, perhaps", "status": theirs},
    }
    found = reader.parse_webhook(*event("charge.dispute.updated", dispute)).dispute
    assert found == Dispute("du_1", ours, 5, "USD", "general")  # type: ignore[arg-type]


def test_a_method_that_is_no_card_changes_nothing(reader: StripeGateway) -> None:
    kind = "payment_method.automatically_updated"
    found = reader.parse_webhook(*event(kind, {"id": "pm_1", "type": "link"}))
    assert found == GatewayEvent("evt_1", kind, None, None)


@pytest.mark.parametrize("age", [0, 290, -290])
def test_a_webhook_is_taken_within_the_tolerance(
    reader: StripeGateway, double: StripeDouble, age: float
) -> None:
    forged = double.forge(*event("x", None), age=age)
    assert forged is not None
    reader.parse_webhook(httpx.Headers(forged[0]), forged[1])


@pytest.mark.parametrize(("age", "foreign"), [(310, False), (-310, False), (0, True)])
def test_a_webhook_is_refused_out_of_time_or_of_another_endpoint(
    reader: StripeGateway, double: StripeDouble, age: float, foreign: bool
) -> None:
    _, body = event("x", None)
    forged = double.forge({}, body, age=age, foreign=foreign)
    assert forged is not None
    with pytest.raises(SignatureInvalid):
        reader.parse_webhook(httpx.Headers(forged[0]), forged[1])


def test_while_a_secret_is_rotated_both_are_good() -> None:
    gateway = gateway_for("http://127.0.0.1:9", webhook_secrets=["whsec_new", SECRET])
    _, body = event("x", None)
    now = int(time.time())
    old, new = sign(body, SECRET, now), sign(body, "whsec_new", now)
    both = f"{sign(body, FOREIGN_SECRET, now)},{new.partition(',')[2]}"
    for header in (old, new, both):
        gateway.parse_webhook({"stripe-signature": header}, body)
    with pytest.raises(SignatureInvalid):
        gateway.parse_webhook({"stripe-signature": sign(body, FOREIGN_SECRET, now)}, body)
    gateway.close()


@pytest.mark.parametrize("place", [0, 5, -1])
def test_a_changed_body_is_refused(reader: StripeGateway, place: int) -> None:
    headers, body = event("x", None)
    changed = bytearray(body)
    changed[place] ^= 1
    with pytest.raises(SignatureInvalid):
        reader.parse_webhook(headers, bytes(changed))


@pytest.mark.parametrize(
    "header",
    [
        *("", "t=", "v1=", "t=1", "v1=a", "t=a,v1=b", "t=1=2,v1=b", ",,,", "=", "t=-1,v1=b"),
        *("t=1,v0=b", "t=" + "9" * 5000 + ",v1=b", "t=１,v1=b", "t=1,v1=é", "t=1,v1=\udcff"),
        *("t=1,t=2,v1=b", "t=1_0,v1=b", "t=99999999999999,v1=b", "\x00", "t=1,v1=" + "a" * 9000),
    ],
    ids=lambda header: ascii(header[:16]),
)
def test_an_absurd_header_is_refused(reader: StripeGateway, header: str) -> None:
    with pytest.raises(SignatureInvalid):
        reader.parse_webhook({"stripe-signature": header}, b"{}")


def test_no_header_is_refused(reader: StripeGateway) -> None:
    with pytest.raises(SignatureInvalid):
        reader.parse_webhook({}, b"{}")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"nonsense", b"\xff\xfe", b"{", b"[]", b"null", b"1", b'"text"', b"{}"),
        *(b"[" * 100_000, b'{"a":' * 100_000, b'{"id": 1, "type": "x"}', b'{"id": "evt_1"}'),
        b'{"id": "evt_1", "type": {}}',
        b'{"id": "evt_1", "type": "refund.created"}',
        b'{"id": "evt_1", "type": "refund.created", "data": []}',
        b'{"id": "evt_1", "type": "refund.created", "data": {"object": "re_1"}}',
        b'{"id": "evt_1", "type": "payment_intent.succeeded",'
        b' "data": {"object": {"metadata": {"key": "key-1"}}}}',
    ],
    ids=lambda body: ascii(body[:16]),
)
def test_a_signed_body_that_is_no_event_is_refused(reader: StripeGateway, body: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        reader.parse_webhook(signed(body), body)


@pytest.mark.parametrize("name", ["id", "status", "amount", "amount_received", "currency"])
def test_an_event_without_a_field_is_refused(reader: StripeGateway, name: str) -> None:
    ours = {**INTENT, "metadata": {"payment_id": "7", "key": "key-1"}}
    intent = {key: value for key, value in ours.items() if key != name}
    with pytest.raises(SignatureInvalid):
        reader.parse_webhook(*event("payment_intent.succeeded", intent))
