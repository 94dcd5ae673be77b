"""What has to be asked about a webhook before it can be told: whose it is, and how it stands."""

from __future__ import annotations

from dataclasses import dataclass

from gateways.base import Dispute, Guard, MethodChange, NotExecuted, OutcomeUnknown
from gateways.paypal import disputes, vault
from gateways.paypal.client import Client
from gateways.paypal.events import Subject, subject_of_payment
from gateways.paypal.states import read_dispute


@dataclass(frozen=True, slots=True)
class Answer:
    """What a webhook is about, and what PayPal says of it when it is asked."""

    subject: Subject
    dispute: Dispute | None = None
    method: MethodChange | None = None


NOTHING = Answer(Subject())


def ask_about(client: Client, guard: Guard, subject: Subject) -> Answer:
    """By PayPal's answers alone. Raises OutcomeUnknown when there is none."""
    try:
        if subject.token is not None:
            return _about_token(client, guard, subject.token)
        if subject.dispute_id is not None:
            return _about_dispute(client, guard, subject.dispute_id)
        if subject.capture_id is not None:
            return _about_capture(client, guard, subject.capture_id)
    except NotExecuted as error:
        raise OutcomeUnknown(str(error)) from None
    return Answer(subject)


def _about_token(client: Client, guard: Guard, token: str) -> Answer:
    gone = guard.run(lambda: vault.is_gone(client, token))
    return Answer(Subject(), method=MethodChange(token, None)) if gone else NOTHING


def _about_dispute(client: Client, guard: Guard, dispute_id: str) -> Answer:
    case = guard.run(lambda: disputes.find(client, dispute_id))
    if case is None:
        return NOTHING
    return Answer(subject_of_payment(case.capture), dispute=read_dispute(case.dispute))


def _about_capture(client: Client, guard: Guard, capture_id: str) -> Answer:
    capture = guard.run(lambda: disputes.find_capture(client, capture_id))
    return Answer(subject_of_payment(capture)) if capture is not None else NOTHING
