"""The process before torch."""

import os

import pytest

from loophil.process import ENVIRONMENT, prepare_process


def test_threads_rest_and_memory_is_kept_but_what_was_said_before_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_WAIT_POLICY", "7")
    asked: list[tuple[int, int]] = []

    class Libc:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            asked.append((parameter, value))
            return 1

    monkeypatch.setattr("loophil.process.platform.libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr("loophil.process.ctypes.CDLL", lambda name: Libc)
    prepare_process()
    assert {name: os.environ[name] for name in ENVIRONMENT} == ENVIRONMENT | {"OMP_WAIT_POLICY": "7"}  # what was said before stays
    assert dict(asked) == {-3: 2**30, -1: 2**31 - 1, -8: 1}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX of malloc.h
    asked.clear()
    monkeypatch.setattr("loophil.process.platform.libc_ver", lambda: ("", ""))
    prepare_process()
    assert asked == []
