"""Curves of a run for Weights & Biases."""

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Curves:
    """Curves for Weights & Biases, which never end a run: after the first failure they say so once and fall silent.

    Args:
        mode: offline (files under the run folder), online or disabled.
        folder: the run folder.
        name: the run's name.
        config: everything that was asked, for W&B's table.
        run_id: W&B's name of the run that is resumed, so that its curves go on. Steps that it already has, those after
            the checkpoint, it leaves as they are.
    """

    def __init__(self, mode: str, folder: Path, name: str, config: dict[str, Any], run_id: str | None = None) -> None:
        self.run, self.broken = None, False
        self.run_id = run_id if run_id or mode == "disabled" else uuid.uuid4().hex[:8]
        if mode == "disabled":
            return
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no reports of crashes to anyone
        with self.surviving("start"):
            import wandb

            # W&B's own process is slow to start on a busy machine: half a minute, its default, was not always enough.
            # At the end a server that no longer answers would be waited for without a limit; `wandb sync` sends what
            # is left later.
            limits = {"init_timeout": 60, "x_service_wait": 120, "finish_timeout": 300, "finish_timeout_raises": True}
            settings = wandb.Settings(silent=True, console="off", **limits)
            self.run = wandb.init(
                project="minroformer",
                name=name,
                dir=folder,
                mode=mode,
                id=self.run_id,
                resume="allow" if mode == "online" else None,  # offline, the same id is enough
                config=config,
                settings=settings,
                reinit="create_new",
            )

    @contextlib.contextmanager
    def surviving(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.run, self.broken = None, True
            print(
                f"W&B could not {what} ({' '.join(str(error).split())[:200]}); training goes on without it",
                file=sys.stderr,
            )

    def log(self, step: int, split: str, **values: float) -> None:
        if self.run is not None:
            with self.surviving("log"):
                self.run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def finish(self, exit_code: int = 0) -> None:
        if self.run is not None:
            with self.surviving("finish"):
                self.run.finish(exit_code=exit_code)
                self.run = None
        if self.broken:
            with contextlib.suppress(Exception):  # or W&B would print its traceback at the very end
                import wandb

                wandb.teardown(exit_code=1)
