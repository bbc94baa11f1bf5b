"""Log records travel as plain data, with all their values."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pytest

from pairpool.transport.log_records import BIG_INT_BITS, BadRecord, pack, unpack
from pairpool.transport.wire import PACKET_LIMIT


def record(**fields: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "tasks", "levelno": 30, "msg": "text", **fields})


def after(one: logging.LogRecord) -> Any:
    return unpack(memoryview(pack(one)), 7)


VALUES: list[Any] = [
    *(None, True, 1, -2.5, float("inf"), 1 << (BIG_INT_BITS + 1), "ä\ud800\0", b"\xff\0"),
    *((1, (2, b"3")), [[], ()], {}, {"a": [1]}, {1: 2, None: (3,)}, {"tuple": [1]}, [{"int": "0x10"}]),
]


@pytest.mark.parametrize("value", VALUES)
def test_plain_values_arrive_unchanged(value: Any) -> None:
    found = after(record(value=value)).value
    assert found == value
    assert type(found) is type(value)


def test_a_subclass_of_str_arrives_as_a_str() -> None:
    class Text(str):
        def __str__(self) -> str:
            return self

    found = after(record(msg=Text("own"), value=Text("own")))
    assert (found.getMessage(), found.value) == ("own", "own")
    assert type(found.msg) is str


def test_records_of_control_characters_are_cut_to_the_limit() -> None:
    packed = pack(record(msg="\1" * 500_000))
    assert len(packed) <= PACKET_LIMIT
    assert "bytes cut" in unpack(memoryview(packed), 0).getMessage()


def test_arguments_in_a_packet_are_not_merged() -> None:
    """`%9999999999d` would take all memory."""
    packed = b'{"name":"tasks","levelno":30,"msg":"%9999999999d","args":[1],"exc_info":true}'
    found = unpack(memoryview(packed), 0)
    assert found.getMessage() == "%9999999999d"
    assert found.exc_info is None


def test_a_pickle_is_not_loaded() -> None:
    with pytest.raises(BadRecord, match="not a record"):
        unpack(memoryview(pickle.dumps(record().__dict__)), 0)
