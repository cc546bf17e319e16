"""Signals that ask a training run to stop or to save.

.venv/bin/python -m pytest tests/test_resume.py -k signal
"""

from harness.stops import hush

import multiprocessing
import os
import signal
import threading
import time
from typing import Any


class Signals:
    """What signals have asked of a training run. Made when it begins; `let_go` when it ends."""

    STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # a job of a cluster has others: see harness/cluster.py
    SAVES = (signal.SIGUSR1,)
    # A cluster may send a stop to compare.py or torchrun and to their processes too, and they hand it on: that makes
    # one stop, not two. In seconds; alone, the second stop counts at once.
    PATIENCE, ALONE = 5.0, True

    def __init__(self) -> None:
        self.between_steps = False  # whether the run looks here after every step; otherwise a stop ends it at once
        self.save = False  # whether one of SAVES has come
        self.stop: int | None = None  # the one of STOPS that came first
        self.since = 0.0  # when it came, time.monotonic's seconds
        begun_by_another = multiprocessing.parent_process() is not None or "LOCAL_RANK" in os.environ  # torchrun's
        self.alone = self.ALONE and not begun_by_another
        self.before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may say what signals do
        for number in (*self.STOPS, *self.SAVES):
            # ignored in a shell's background job, and under nohup
            if number not in (signal.SIGINT, signal.SIGHUP) or signal.getsignal(number) != signal.SIG_IGN:
                self.before[number] = signal.signal(number, self.note)

    def let_go(self) -> None:
        """Restore the earlier signal handlers."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: Any) -> None:
        if number in self.SAVES:
            self.save = True
        elif self.stop is None:
            hush(number)
            self.stop, self.since = number, time.monotonic()
            if not self.between_steps:
                self.leave(number)
        elif self.alone or time.monotonic() - self.since >= self.PATIENCE:
            os._exit(128 + number)

    def leave(self, number: int | None) -> None:
        """End the run if a signal asked for that, by the exceptions that lead to exit codes 129, 130 and 143."""
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number is not None:
            raise SystemExit(128 + number)
