"""What goes to the recorder: kept for a little while, in order, and counted when it cannot be sent."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from navsrv.server.records import FRAME, INPUT, KEEP_MOST, NEVER_NS, NOTE, RecordSink, unpack

Socket = zmq.Socket[bytes]


@pytest.fixture
def context() -> Iterator[zmq.Context[Socket]]:
    made: zmq.Context[Socket] = zmq.Context()
    yield made
    made.destroy(linger=0)  # closes what the tests left open


def received(puller: Socket) -> list[tuple[bytes, bytes]]:
    assert puller.poll(5000)
    return [(kind, content) for kind, _, content in map(unpack, puller.recv_multipart())]


def test_kept_records_leave_together_and_in_order(context: zmq.Context[Socket], tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/records"
    puller = context.socket(zmq.PULL)
    puller.bind(endpoint)
    sink = RecordSink(context, endpoint)
    assert sink.due_ns == NEVER_NS
    sink.keep(INPUT, b"1")
    sink.keep(FRAME, b"2")
    assert sink.due_ns < NEVER_NS
    sink.put(NOTE, b"3")  # replay needs what came before it to stay before it
    assert received(puller) == [(INPUT, b"1"), (FRAME, b"2"), (NOTE, b"3")]
    assert sink.due_ns == NEVER_NS
    for i in range(KEEP_MOST):
        sink.keep(INPUT, b"%d" % i)
    assert [c for _, c in received(puller)] == [b"%d" % i for i in range(KEEP_MOST)]
    sink.keep(INPUT, b"last")
    sink.close()
    assert received(puller) == [(INPUT, b"last")]
    puller.close()


def test_every_record_that_cannot_be_sent_is_counted(context: zmq.Context[Socket]) -> None:
    """Catches a batch that counts as one loss."""
    sink = RecordSink(context, "inproc://nobody")
    assert sink._socket is not None
    sink._socket.close(linger=0)
    sink._socket = context.socket(zmq.PUSH)  # connected to nothing: a send would block
    for _ in range(3):
        sink.keep(INPUT, b"x")
    sink.flush()
    assert sink.lost == 3
    sink.close()


def test_nothing_is_kept_without_a_recorder(context: zmq.Context[Socket]) -> None:
    sink = RecordSink(context, None)
    sink.keep(INPUT, b"x")
    assert sink.due_ns == NEVER_NS
    assert sink._kept == []
