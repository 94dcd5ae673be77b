"""What each missing guard lets happen, and a short run of the proof without it."""

from __future__ import annotations

from proof.prove import AT_RANDOM, prove

# Among the report's findings.
CONSEQUENCES = {
    "unique-live-payment": "double_charges",
    "claim-before-call": "violations",
    "stored-key": "violations",
    "unknown-is-open": "violations",
    "idempotency": "violations",
    "refund-reservation": "violations",
    "reconciler": "stuck",
    "resend-window": "double_charges",
    "action-expiry": "stuck",
    "outside-books": "violations",
    "outside-refund-once": "violations",
}
# Without a committed claim, a charge is only lost when we die before it is written down; and what
# was lost is only sent again too late if we were dead meanwhile.
KILLS = {"claim-before-call": ["gateway.charge.after"], "resend-window": [AT_RANDOM]}
TAKE_TIME = {"resend-window", "action-expiry"}
TAKE_STRANGERS = {"outside-books", "outside-refund-once"}


def check_that_the_proof_fails_without(guard: str) -> None:
    report = prove(
        crashes=0,
        seed=20,
        broken=guard,
        kill_at=KILLS.get(guard, []),
        age=guard in TAKE_TIME,
        outside=guard in TAKE_STRANGERS,
    )
    assert not report.holds
    assert getattr(report, CONSEQUENCES[guard]), report.text()
