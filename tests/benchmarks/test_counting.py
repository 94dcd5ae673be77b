"""What was sent to PostgreSQL: statements, round trips, and scripts to send it again."""

from __future__ import annotations

import pytest

from benchmarks.counting import Traffic, split
from benchmarks.touched import take_notices

LOCK = "SELECT id FROM orders WHERE id = 7 FOR UPDATE"
INSERT = "INSERT INTO sandbox.charges (reference) VALUES ('a; b')"


@pytest.mark.parametrize(
    ("message", "statements"),
    [
        ("SELECT 1", 1),
        ("SELECT 1; ", 1),
        ("BEGIN; SELECT 1; COMMIT", 3),
        ("SELECT ';', 'it''s; so', E'\\';' , \"a;b\"", 1),
        ("DO $$ BEGIN; END $$", 1),
        ("DO $a$ x; $b$ y; $a$; SELECT 2", 2),
    ],
)
def test_a_semicolon_ends_a_statement_where_it_is_not_quoted(message: str, statements: int) -> None:
    assert len(split(message)) == statements


def test_control_of_transactions_is_a_round_trip_and_no_statement() -> None:
    requests = [["BEGIN", LOCK, INSERT, "COMMIT"], ["BEGIN", LOCK, INSERT, "ROLLBACK"]]
    counts = Traffic(requests, wal_bytes=300, in_background=True).counts()
    assert (counts.statements, counts.gateway_statements) == (1.0, 1.0)
    assert (counts.round_trips, counts.wal_bytes) == (4.0, 150)


def test_several_statements_in_one_message_are_one_round_trip() -> None:
    counts = Traffic([[f"BEGIN; {LOCK}; {INSERT}; COMMIT"]], 0, in_background=False).counts()
    assert (counts.statements, counts.gateway_statements) == (1.0, 1.0)
    assert counts.round_trips == 1.0


def test_what_the_roles_look_for_meanwhile_is_not_counted_as_the_requests() -> None:
    requests = [[LOCK], [LOCK, "SELECT min(due_at) FROM sandbox.webhooks"], [LOCK]]
    counts = Traffic(requests, 0, in_background=False).counts()
    assert (counts.statements, counts.gateway_statements, counts.round_trips) == (1.0, 0.0, 1.0)
    assert Traffic(requests, 0, in_background=True).counts().round_trips == 1.3


def test_requests_become_scripts_each_as_it_was_sent() -> None:
    poll = "SELECT min(due_at) FROM sandbox.webhooks"
    requests = [["BEGIN", f"{LOCK};", "COMMIT"], ["BEGIN", LOCK, "COMMIT", poll]]
    requests.append(["BEGIN", LOCK, "COMMIT"])
    script = f"BEGIN;\n{LOCK};\nCOMMIT;\n"
    assert Traffic(requests, 0, in_background=False).scripts() == [script, script]


def test_notices_are_found_among_other_messages_however_they_are_cut() -> None:
    def message(kind: bytes, body: bytes) -> bytes:
        return kind + (len(body) + 4).to_bytes(4, "big") + body

    notice = message(b"N", b"SNOTICE\0C00000\0Mduration: 1 ms  plan:\n{}\0\0")
    sent = message(b"Z", b"I") + notice + message(b"D", b"N\0\0M") + notice
    found, buffer = [], b""
    for byte in sent:
        texts, buffer = take_notices(buffer + bytes([byte]))
        found += texts
    assert found == ["duration: 1 ms  plan:\n{}"] * 2
    assert buffer == b""
