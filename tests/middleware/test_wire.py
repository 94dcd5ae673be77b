"""What one connection may send, how slowly, and how many connections there may be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from prometheus_client.exposition import generate_latest

from middleware.connection_limits import MAX_HEADERS, MAX_PIPELINED, MAX_REQUEST, MAX_SECTION
from observability import rejections
from tests.support.guarded import Guarded, guarded
from tests.support.raw import problem_of, read_all, send_until_cut_off

GET = b"GET / HTTP/1.1\r\nHost: shop\r\n"
LAST = b"Connection: close\r\n\r\n"
UNREAD = b"POST /unread HTTP/1.1\r\nHost: shop\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Guarded]:
    with guarded() as server:
        yield server


@pytest.fixture(autouse=True)
def fresh_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejections, "_lines", {})


def refused(reason: str) -> float:
    return (
        rejections.registry.get_sample_value("estore_requests_rejected_total", {"reason": reason})
        or 0.0
    )


def head_of(size: int) -> bytes:
    """A request of so many bytes, without a body."""
    start, end = GET + b"X-Filler: ", b"\r\n" + LAST
    return start + b"x" * (size - len(start) - len(end)) + end


# --- Sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [200, MAX_SECTION // 2, MAX_SECTION])
def test_a_head_of_16_kib_is_answered(server: Guarded, size: int) -> None:
    assert server.ask(head_of(size)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("size", [MAX_SECTION + 40, 2 * MAX_SECTION, 100_000])
def test_a_larger_head_is_431(server: Guarded, size: int) -> None:
    before = refused("headers_too_large")
    problem = problem_of(server.ask(head_of(size)))
    assert (problem["status"], problem["code"]) == (431, "headers_too_large")
    assert refused("headers_too_large") == before + 1


def test_a_large_head_is_counted_across_the_segments_it_comes_in(server: Guarded) -> None:
    with server.connect() as connection:
        connection.sendall(GET)
        for _ in range(40):
            server.wait_for_bytes()
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"X-A: " + b"x" * 500 + b"\r\n")
        assert problem_of(read_all(connection))["code"] == "headers_too_large"


def test_24_mb_in_one_header_are_cut_off_after_a_part_of_them(server: Guarded) -> None:
    with server.connect() as connection:
        connection.sendall(GET + b"X-A: ")
        assert send_until_cut_off(connection, 24_000_000) < 24_000_000


def test_a_hundred_headers_are_taken_and_more_are_431(server: Guarded) -> None:
    ninety_eight = b"a: b\r\n" * (MAX_HEADERS - 2)
    assert server.ask(GET + ninety_eight + LAST).startswith(b"HTTP/1.1 200")
    answer = server.ask(GET + ninety_eight + b"a: b\r\n" + LAST)
    assert problem_of(answer)["code"] == "headers_too_large"


@pytest.mark.parametrize(
    "end",
    [
        b"0\r\nX-A: " + b"x" * 4 * MAX_SECTION + b"\r\n\r\n",
        b"0\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n",
        b"1;" + b"x" * 4 * MAX_SECTION + b"\r\na\r\n0\r\n\r\n",
    ],
    ids=["one long trailer", "many trailers", "a long chunk extension"],
)
def test_what_goes_with_a_chunked_body_is_bounded(server: Guarded, end: bytes) -> None:
    answer = server.ask(CHUNKED + b"\r\n1\r\na\r\n" + end)
    assert problem_of(answer)["code"] == "headers_too_large"


def test_trailers_are_no_headers(server: Guarded) -> None:
    answer = server.ask(CHUNKED + LAST + b"1\r\na\r\n0\r\nAuthorization: Bearer x\r\n\r\n")
    assert answer.endswith(b"\r\n\r\na")
    assert b"authorization" not in server.headers


def test_a_body_in_chunks_of_one_byte_is_read(server: Guarded) -> None:
    size = 65_536
    answer = server.ask(CHUNKED + LAST + b"1\r\na\r\n" * size + b"0\r\n\r\n")
    assert answer.endswith(b"a" * size)


def test_a_request_that_never_ends_is_cut_off_though_it_was_answered(server: Guarded) -> None:
    with server.connect() as connection:
        connection.sendall(UNREAD + b"Content-Length: 99999999\r\n\r\n")
        assert MAX_REQUEST <= send_until_cut_off(connection, 24_000_000) < 24_000_000


def test_a_request_too_large_is_413(server: Guarded) -> None:
    start = b"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 99999999\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(start + b"x" * (MAX_REQUEST + 1 - len(start)))
        assert problem_of(read_all(connection))["code"] == "body_too_large"
    server.wait_for_connections(0)  # it is noticed that the client has ended it


def test_few_requests_wait_for_the_answer_to_an_earlier_one(server: Guarded) -> None:
    before = len(server.requests)
    with server.connect() as connection:
        connection.sendall(GET.replace(b"/ ", b"/slow ") + b"\r\n")
        connection.sendall((GET + b"\r\n") * (MAX_PIPELINED + 2))
        assert read_all(connection) == b""  # no turn to be answered, so it is only closed
    assert len(server.requests) == before + 1


def test_requests_sent_at_once_are_answered_in_order(server: Guarded) -> None:
    body = b"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n"
    answer = server.ask((body + b"\r\nfirst") + (GET + b"\r\n") * 8 + body + LAST + b"final")
    assert answer.count(b"HTTP/1.1 200") == 10
    assert answer.index(b"first") < answer.index(b"final")


# --- What is no HTTP --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: shop\r\n folded\r\n\r\n",
        b"GET / HTTP/7.3\r\nHost: shop\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET http://other/ HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET ftp://shop/ HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"CONNECT shop:443 HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\naa",
        b"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 1\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
        b"Content-Length: 2\r\n\r\n{}",
    ],
)
def test_what_is_no_http_is_400_with_a_problem_document(server: Guarded, request_: bytes) -> None:
    before, requests = refused("invalid_request"), len(server.requests)
    problem = problem_of(server.ask(request_))
    assert (problem["status"], problem["code"]) == (400, "invalid_request")
    assert (refused("invalid_request"), len(server.requests)) == (before + 1, requests)


def test_an_upgrade_is_ignored_and_what_follows_it_too(server: Guarded) -> None:
    upgrade = GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    answer = server.ask(upgrade + GET.replace(b"/ ", b"/smuggled ") + b"\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 200")
    assert "/smuggled" not in server.requests


def test_uvicorns_other_parser_is_not_used() -> None:
    with guarded(parser="h11") as server:
        assert problem_of(server.ask(b"nonsense\r\n\r\n"))["code"] == "invalid_request"
        assert server.ask(GET + LAST).startswith(b"HTTP/1.1 200")


# --- Time -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begun",
    [
        b"G",
        GET,
        GET + b"X-A: ",
        b"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 9\r\n\r\nabc",
        CHUNKED + b"\r\n5\r\nab",
        CHUNKED + b"\r\n2\r\nab\r\n0\r\nX-A:",
    ],
)
def test_a_request_that_does_not_arrive_within_10_seconds_is_408(begun: bytes) -> None:
    before = refused("request_timeout")
    with guarded() as server, server.connect() as connection:
        connection.sendall(begun)
        server.wait_for_bytes()
        server.later(9)
        assert len(server.connections.all) == 1
        server.later(11)
        problem = problem_of(read_all(connection))
        assert (problem["status"], problem["code"]) == (408, "request_timeout")
        assert problem["retryable"] is True
        server.later(20)  # the caller never closes its side
        server.wait_for_connections(0)
    assert refused("request_timeout") == before + 1


def test_a_later_request_of_a_connection_has_10_seconds_too() -> None:
    with guarded() as server, server.connect() as connection:
        connection.sendall(GET + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(GET)
        server.wait_for_bytes()
        server.later(11)
        assert problem_of(read_all(connection))["code"] == "request_timeout"


def test_a_silent_connection_is_closed_after_10_seconds() -> None:
    with guarded() as server, server.connect() as connection:
        server.wait_for_connections(1)
        server.later(9)
        assert len(server.connections.all) == 1
        server.later(11)
        assert read_all(connection) == b""
        server.wait_for_connections(0)


def test_a_connection_is_closed_when_the_rest_of_an_answered_request_never_comes() -> None:
    with guarded() as server, server.connect() as connection:
        connection.sendall(UNREAD + b"Content-Length: 9\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"abc")
        server.wait_for_bytes()
        server.later(11)
        assert read_all(connection) == b""
        server.wait_for_connections(0)


def test_a_connection_is_closed_when_an_answered_request_ends_and_no_other_comes() -> None:
    with guarded() as server, server.connect() as connection:
        connection.sendall(UNREAD + b"Content-Length: 3\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"abc")  # uvicorn would wait for ever now
        server.later(11)
        assert read_all(connection) == b""
        server.wait_for_connections(0)


def test_a_request_that_is_being_answered_may_take_as_long_as_it_takes() -> None:
    with guarded() as server, server.connect() as connection:
        connection.sendall(GET.replace(b"/ ", b"/slow ") + b"\r\n" + GET)
        while not server.requests:
            server.wait_for_connections(1)
        server.later(1000)  # nor does the half of the next one count before it is its turn
        server.answer.set()
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        server.later(11)
        assert problem_of(read_all(connection))["code"] == "request_timeout"


def test_a_caller_that_does_not_read_its_answer_is_dropped() -> None:
    before = refused("slow_reader")
    with guarded() as server, server.connect() as connection:
        connection.sendall(GET.replace(b"/ ", b"/big ") + b"\r\n")
        connection.recv(1)
        server.later(0)
        server.later(9)
        assert len(server.connections.all) == 1
        server.later(11)
        server.wait_for_connections(0)
    assert refused("slow_reader") == before + 1


def test_a_caller_that_reads_slowly_gets_its_answer() -> None:
    with guarded() as server, server.connect() as connection:
        connection.sendall(GET.replace(b"/ ", b"/big ") + LAST)
        received = len(connection.recv(1))
        for seconds in range(0, 200, 9):
            server.later(seconds)
            for _ in range(20):
                received += len(connection.recv(65536))
        received += len(read_all(connection))
        assert received > 32_000_000


# --- Numbers ----------------------------------------------------------------------------------


def test_where_there_is_no_room_the_connection_that_waited_longest_makes_way() -> None:
    with guarded(at_most=4) as server, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(server.connect()) for _ in range(4)]
        server.wait_for_connections(4)
        silent[0].sendall(GET + b"\r\n")
        assert silent[0].recv(65536).startswith(b"HTTP/1.1 200")  # it waits since now
        assert server.ask(GET + LAST).startswith(b"HTTP/1.1 200")
        assert read_all(silent[1]) == b""
        silent[0].sendall(GET + LAST)
        assert read_all(silent[0]).startswith(b"HTTP/1.1 200")


def test_an_idle_connection_makes_way_for_a_new_one() -> None:
    with guarded(at_most=1) as server, server.connect() as idle:
        idle.sendall(GET + b"\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        assert server.ask(GET + LAST).startswith(b"HTTP/1.1 200")
        assert read_all(idle) == b""


def test_300_half_sent_requests_shut_nobody_out() -> None:
    with guarded(at_most=64) as server, contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(server.connect()).sendall(GET)
        assert server.ask(GET + LAST).startswith(b"HTTP/1.1 200")
        assert len(server.connections.all) <= 64


def test_nobody_whose_request_is_being_answered_makes_way() -> None:
    with guarded(at_most=2) as server, contextlib.ExitStack() as stack:
        for number in (1, 2):
            stack.enter_context(server.connect()).sendall(GET.replace(b"/ ", b"/slow ") + b"\r\n")
            while len(server.requests) < number:
                server.wait_for_connections(number)
        with server.connect() as connection:
            problem = problem_of(read_all(connection))
        assert (problem["status"], problem["code"]) == (503, "overloaded")


def test_one_address_has_a_part_of_the_connections_and_others_have_the_rest() -> None:
    with guarded(per_address=2) as server, contextlib.ExitStack() as stack:
        server.connections.unlimited.networks.clear()  # the test itself is on this machine
        crowd = [stack.enter_context(server.connect("127.0.0.2")) for _ in range(2)]
        other = stack.enter_context(server.connect("127.0.0.3"))
        server.wait_for_connections(3)
        third = stack.enter_context(server.connect("127.0.0.2"))
        assert read_all(crowd[0]) == b""  # its own oldest one makes way
        for connection in (crowd[1], third, other):
            connection.sendall(GET + LAST)
            assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_one_address_is_429_while_all_its_connections_are_busy() -> None:
    with guarded(per_address=1) as server, contextlib.ExitStack() as stack:
        server.connections.unlimited.networks.clear()
        busy = stack.enter_context(server.connect("127.0.0.2"))
        busy.sendall(GET.replace(b"/ ", b"/slow ") + b"\r\n")
        while not server.requests:
            server.wait_for_connections(1)
        with server.connect("127.0.0.2") as connection:
            answer = read_all(connection)
        problem = problem_of(answer)
        assert (problem["status"], problem["code"]) == (429, "rate_limited")
        assert b"Retry-After: 1\r\n" in answer


@pytest.mark.parametrize(
    ("trusted", "address"),
    [([], "127.0.0.1"), ([], ""), (["10.0.0.0/8"], "10.1.2.3"), (["192.0.2.7"], "192.0.2.7")],
)
def test_proxies_and_this_machine_have_no_limit_of_their_own(
    trusted: list[str], address: str
) -> None:
    with guarded(trusted=trusted) as server:
        assert address in server.connections.unlimited
        assert "192.0.2.8" not in server.connections.unlimited


def test_nothing_is_remembered_of_connections_that_have_ended() -> None:
    with guarded(at_most=4) as server:
        for _ in range(3):
            assert server.ask(GET + LAST).startswith(b"HTTP/1.1 200")
            server.ask(b"nonsense\r\n\r\n")
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(server.connect()).sendall(GET)
        server.wait_for_connections(0)
        assert (server.connections.waiting, server.connections.by_address) == ({}, {})


# --- What is told -----------------------------------------------------------------------------


def test_refusals_are_counted_each_and_logged_once_in_ten_seconds(
    server: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[dict[str, object]] = []
    monkeypatch.setattr(
        rejections.log, "warning", lambda event, **fields: lines.append({"event": event, **fields})
    )
    now = 1000.0
    monkeypatch.setattr("observability.rejections.time", SimpleNamespace(monotonic=lambda: now))
    before = refused("invalid_request")
    for _ in range(3):
        server.ask(b"nonsense\r\n\r\n")
    assert refused("invalid_request") == before + 3
    assert [line["refused"] for line in lines] == [1]
    now += 10
    server.ask(b"nonsense\r\n\r\n")
    assert [line["refused"] for line in lines] == [1, 3]
    assert lines[0]["event"] == "http.rejected"
    assert (lines[0]["reason"], lines[0]["address"]) == ("invalid_request", "127.0.0.1")
    assert b'estore_requests_rejected_total{reason="invalid_request"}' in generate_latest(
        rejections.registry
    )
