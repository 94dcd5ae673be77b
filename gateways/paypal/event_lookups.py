"""Reads from PayPal what a webhook is about, because its own content cannot be trusted."""

from dataclasses import dataclass

from gateways.base import Dispute, Guard, MethodChange, NotExecuted, OutcomeUnknown
from gateways.paypal import disputes, vault
from gateways.paypal.client import Client
from gateways.paypal.events import Subject, subject_of_payment
from gateways.paypal.states import read_dispute


@dataclass(frozen=True, slots=True)
class Found:
    """The subject of a webhook, with the dispute or the payment method as PayPal shows it."""

    subject: Subject
    dispute: Dispute | None = None
    method: MethodChange | None = None


NOTHING = Found(Subject())


def look_up(client: Client, guard: Guard, subject: Subject) -> Found:
    """Raises OutcomeUnknown if PayPal does not answer."""
    token, dispute_id, capture_id = subject.token, subject.dispute_id, subject.capture_id
    try:
        if token is not None:
            gone = guard.run(lambda: vault.is_gone(client, token))
            return Found(Subject(), method=MethodChange(token, None)) if gone else NOTHING
        if dispute_id is not None:
            found = guard.run(lambda: disputes.find(client, dispute_id))
            if found is None:
                return NOTHING
            return Found(subject_of_payment(found.capture), dispute=read_dispute(found.dispute))
        if capture_id is not None:
            capture = guard.run(lambda: disputes.find_capture(client, capture_id))
            return Found(subject_of_payment(capture)) if capture is not None else NOTHING
    except NotExecuted as error:
        raise OutcomeUnknown(str(error)) from None
    return Found(subject)
