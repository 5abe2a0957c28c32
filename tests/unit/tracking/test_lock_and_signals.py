"""One process in a run folder; a first signal asks, a second Ctrl-C insists."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest

from cai_dist.errors import Interrupted, UserError
from cai_dist.tracking import lock
from cai_dist.tracking.lock import RunLock, is_held
from cai_dist.tracking.signals import SIGNALS, StopFlag

HOLD = """
import sys
from pathlib import Path
from cai_dist.tracking.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate(timeout=60)


def test_a_second_process_gets_one_line_with_the_holder(tmp_path, holder):
    with pytest.raises(UserError) as caught, RunLock(tmp_path):
        pass
    assert str(holder.pid) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 2


def test_a_killed_holder_frees_the_folder(tmp_path, holder):
    holder.kill()
    holder.wait(timeout=60)
    with RunLock(tmp_path):
        pass


def test_the_lock_is_freed_and_can_be_taken_again(tmp_path):
    for _ in range(2):
        with RunLock(tmp_path), pytest.raises(UserError), RunLock(tmp_path):
            pass


def test_whether_somebody_works_here(tmp_path, holder):
    assert is_held(tmp_path)
    holder.kill()
    holder.wait(timeout=60)
    assert not is_held(tmp_path), "killed: the file is still there, the lock is not"
    assert not is_held(tmp_path / "never-begun")
    with RunLock(tmp_path):
        assert is_held(tmp_path), "by this process itself"


def test_a_look_at_the_lock_turns_no_run_away(tmp_path, monkeypatch):
    """`show` holds the lock for the moment of its look."""
    monkeypatch.setattr(lock, "_LOOK_SECONDS", 60.0)  # a busy machine wakes the timer late
    (tmp_path / ".lock").touch()
    with open(tmp_path / ".lock") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        timer = threading.Timer(0.03, fcntl.flock, (looking, fcntl.LOCK_UN))
        timer.start()
        with RunLock(tmp_path):
            assert is_held(tmp_path)
        timer.join()


@pytest.fixture
def before():
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield handlers
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_sets_the_flag(before, number, capfd):
    with StopFlag() as stop:
        assert not stop() and stop.signal_name == ""
        os.kill(os.getpid(), number)
        assert stop() and stop.signal_name == signal.Signals(number).name
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_a_second_ctrl_c_raises_and_a_second_sigterm_does_not(before):
    with StopFlag() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_name == "SIGTERM"
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(5)  # the handler runs in here at the latest


def test_install_again_takes_the_signal_back_and_restore_returns_the_first(before):
    stop = StopFlag()
    stop.install()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as another library would
    stop.install()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop()
    stop.restore()
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_outside_the_main_thread_there_is_no_flag_and_no_error(before):
    flags: list[bool] = []

    def use() -> None:
        with StopFlag() as stop:
            flags.append(stop())

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(timeout=60)
    assert flags == [False]
