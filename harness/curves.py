"""Curves of a run for Weights & Biases."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.messages import tell


class Curves:
    """Curves for Weights & Biases, which never end a run: after the first failure they say so once and fall silent.

    Args:
        mode: offline (files in the run folder), online or disabled.
        config: all options, for W&B's table.
        run_id: W&B's name of the run that is resumed, so that its curves continue. Steps that W&B already has, those
            after the checkpoint, stay as they are.
    """

    def __init__(self, mode: str, folder: Path, name: str, config: dict[str, Any], run_id: str | None = None) -> None:
        self.run = None
        self.run_id = run_id if run_id or mode == "disabled" else uuid.uuid4().hex[:8]
        if mode == "disabled":
            return
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no reports of crashes to anyone
        with self.survive("start"):
            import wandb

            # W&B's own process is slow to start on a busy machine: half a minute, its default, was not always enough.
            # At the end it would wait without limit for a server that no longer answers; `wandb sync` sends the rest.
            limits = {"init_timeout": 60, "x_service_wait": 120, "finish_timeout": 300, "finish_timeout_raises": True}
            again = {"id": self.run_id, "resume": "allow" if mode == "online" else None}  # offline, the id is enough
            settings = wandb.Settings(silent=True, console="off", **limits)
            where = {"project": "minroformer", "dir": folder, "mode": mode, "reinit": "create_new"}
            self.run = wandb.init(name=name, config=config, settings=settings, **where, **again)

    @contextlib.contextmanager
    def survive(self, what: str) -> Iterator[None]:
        """Report whatever W&B raises in one line, and do not call W&B again."""
        try:
            yield
        except Exception as error:
            self.run = None
            why = " ".join(str(error).split())[:200]
            tell(f"W&B could not {what} ({why}); training goes on without it")
            with contextlib.suppress(Exception):  # or W&B would print its traceback at the very end
                import wandb

                wandb.teardown(exit_code=1)

    def log(self, step: int, split: str, **values: float) -> None:
        if self.run is not None:
            with self.survive("log"):
                self.run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def finish(self, exit_code: int) -> None:
        if self.run is not None:
            with self.survive("finish"):
                self.run.finish(exit_code=exit_code)
