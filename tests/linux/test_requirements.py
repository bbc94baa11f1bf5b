"""Requirements: the platform, and the limit of descriptors."""

from __future__ import annotations

import errno
import os
import resource
import sys
from typing import Any

import pytest

from pairpool.linux import requirements


def limit_to(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, resource.RLIM_INFINITY))


def test_error_about_descriptors_gives_advice_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_to(monkeypatch, 100)
    with pytest.raises(OSError, match="descriptors") as caught:
        requirements.require_descriptors(500, "a pool of 160 workers")
    assert caught.value.errno == errno.EMFILE
    text = str(caught.value)
    assert "a pool of 160 workers needs about 500 descriptors" in text
    assert "RLIMIT_NOFILE allows 100" in text
    assert "fewer processes" in text
    advice = int(text.partition("ulimit -n ")[2].partition(")")[0])
    limit_to(monkeypatch, advice)
    requirements.require_descriptors(500, "a pool of 160 workers")  # the advice helps
    limit_to(monkeypatch, 500)
    with pytest.raises(OSError, match="RLIMIT_NOFILE allows 500"):  # what is open counts
        requirements.require_descriptors(500, "a pool of 160 workers")


def test_no_limit_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_to(monkeypatch, resource.RLIM_INFINITY)
    requirements.require_descriptors(10**9, "a very large pool")


def test_this_platform_suffices() -> None:
    requirements.require_linux()


@pytest.mark.parametrize(
    ("where", "name", "value", "words"),
    [
        (sys, "platform", "darwin", "this platform is darwin"),
        (os, "pidfd_open", None, "this Python was built without"),
        (os, "pidfd_open", OSError(errno.ENOSYS, "Function not implemented"), "this kernel refuses pidfd_open"),
        (os, "pidfd_open", OSError(errno.EPERM, "Operation not permitted"), "Operation not permitted"),
    ],
    ids=["macOS", "old Python", "old kernel", "seccomp"],
)
def test_error_about_the_platform_says_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, value: Any, words: str
) -> None:
    if value is None:
        monkeypatch.delattr(where, name)
    elif isinstance(value, OSError):

        def refuse(_pid: int) -> int:
            raise value

        monkeypatch.setattr(where, name, refuse)
    else:
        monkeypatch.setattr(where, name, value)
    with pytest.raises(OSError, match=words) as caught:
        requirements.require_linux()
    assert "Linux 5.4" in str(caught.value)
