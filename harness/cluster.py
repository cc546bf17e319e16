"""The runs of a comparison as jobs of submitit: on this machine, or on a Slurm cluster.

    python compare.py --launcher local                                    to try it where there is no cluster
    python compare.py --launcher slurm --slurm.partition gpu --slurm.gpus 1 --slurm.time 240 --slurm.cpus 4

One job a run. compare.py stays, shows how far each is, and writes the report when all have ended. The folder of the
comparison must be one that the cluster's machines share; jobs.../ in it has what submitit keeps and each job's log.

What signals mean to a job. By itself a run stops at SIGINT and SIGTERM, and saves and goes on at SIGUSR1 (signals.py);
submitit's signal is SIGUSR2 (or what SUBMITIT_PREEMPT_SIGNAL names, USR1 in its old days), sent 90 seconds before the
time is up and, where the cluster is set so, before preemption. `Work` brings them together:

SIGUSR2   the run finishes its step, saves and ends, and only then submitit's own handler queues the job again.
SIGTERM   Slurm's first word to a job that it preempts, and to one that is cancelled, followed by SIGKILL: the run saves
          and goes on until that comes. Were it to end by itself, Slurm would not queue it again. A local job stops.
SIGUSR1   the run saves and goes on, as ever (it is queued again instead, if it is submitit's signal).
SIGINT    the run finishes its step, saves and ends. compare.py sends it with its cancellation.

Ctrl-C of compare.py, or SIGTERM, cancels its jobs: nothing runs on unasked, and the same command goes on where each run
was. compare.py lost without a word, with its terminal or its machine, leaves the jobs in the queue: tmux keeps it.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.messages import BadInput, run
from harness.signals import Signals

LAUNCHERS = ("local", "slurm")
TURNS = 100  # of a job that is queued again since its time was up; a time too short for one step would have no end
YEAR = 365 * 24 * 60  # minutes; a local job has no end that somebody else sets
OURS = {"output", "error", "open-mode", "signal", "array", "nodes", "ntasks", "job-name", "wait", "no-requeue"}


@dataclass(frozen=True)
class SlurmConfig:
    """What each job asks of Slurm. A job is one run in one process; where nothing is said, the cluster chooses.

    Args:
        partition: where the job queues.
        account: what its time is charged to.
        time: minutes. A run that needs more saves when they are nearly over, queues again and goes on.
        cpus: of a job; PyTorch uses as many threads unless run.threads says otherwise.
        gpus: of a job.
        memory: of a job, GB.
        extra: more options of sbatch by their names there, `--slurm.extra.qos long` say; true for one without a value.
    """

    partition: str | None = None
    account: str | None = None
    time: int = 60
    cpus: int = 1
    gpus: int = 0
    memory: int | None = None
    extra: dict[str, bool | int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("time", 5), ("cpus", 1), ("gpus", 0), ("memory", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"slurm.{name} {value} must be at least {least}")
        for name in self.extra:
            if not re.fullmatch(r"[a-z][a-z-]*", name):
                raise ValueError(f"slurm.extra.{name} is no option of sbatch: write it as there, cpus-per-gpu say")
            if name in OURS:
                raise ValueError(f"slurm.extra.{name} is what the launcher sets itself: leave it out")
        texts = {"partition": self.partition, "account": self.account}
        for name, value in (texts | {f"extra.{name}": value for name, value in self.extra.items()}).items():
            if value is not None and not (str(value) and str(value).isprintable()):
                raise ValueError(f"slurm.{name} {value!r} must be one line of text")


class Work:
    """A function of one job as submitit calls it: to be stopped, queued again, gone on with (see this file's head)."""

    def __init__(self, work: Callable[[Any], None], job: Any) -> None:
        self.work, self.job = work, job

    def __call__(self) -> int:
        """Do the work; its exit code (messages.py). After a preemption it does not return: submitit exits."""
        import submitit

        preempted = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
        queue_again = signal.getsignal(preempted)
        in_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
        # One stop may come several times: to the whole group of processes, and handed on by who started this one.
        Signals.ALONE = False
        Signals.STOPS = (signal.SIGINT, preempted) if in_slurm else (signal.SIGINT, signal.SIGTERM, preempted)
        Signals.SAVES = tuple({signal.SIGTERM, signal.SIGUSR1} - set(Signals.STOPS))
        sys.argv = ["compare.py"]  # who speaks in the log

        def within(argv: list[str] | None) -> None:
            signal.signal(preempted, lambda number, frame: sys.exit(128 + number))  # outside of the steps, at once
            if in_slurm:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.work(self.job)

        try:
            run(within)
        except SystemExit as ended:
            if ended.code == 128 + preempted:
                queue_again(preempted, None)
            return ended.code

    def checkpoint(self) -> Any:
        """What submitit queues instead of a preempted job: the same, since a run goes on from its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Launcher:
    """Starts jobs through submitit.

    Args:
        name: local or slurm.
        slurm: what each job asks of Slurm.
        out: the folder of the comparison.

    Raises:
        BadInput: if submitit is not installed, there is no Slurm here, or the folder's name misleads them.
    """

    def __init__(self, name: str, slurm: SlurmConfig, out: Path) -> None:
        try:
            import submitit
        except ImportError as error:
            how = f"{sys.executable} -m pip install --editable '{Path(__file__).parents[1]}[cluster]'"
            raise BadInput(f"--launcher {name} needs submitit, which is not installed: {how}") from error
        for program in ("sbatch", "srun", "scancel") if name == "slurm" else ():
            if not shutil.which(program):
                raise BadInput(
                    f"--launcher slurm: there is no {program} on this machine: start compare.py where the cluster's "
                    "jobs are submitted, or use --launcher local"
                )
        if "%" in str(out.absolute()):
            raise BadInput(f"--out {out}: Slurm and submitit read % in a path as a pattern: name a folder without it")
        self.name, self.slurm, self.out, self.submitit, self.executor = name, slurm, out, submitit, None

    def open(self) -> None:
        """Make a folder for what submitit keeps: a new one each time, so that nothing old in it is ever unpickled."""
        folder = tempfile.mkdtemp(prefix=time.strftime("jobs-%Y%m%d-%H%M%S-"), dir=self.out)
        # The job's Python finds these modules wherever it starts, and writes one log without submitit's own story.
        path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
        settings = [f"PYTHONPATH={path}", f"SUBMITIT_LOG_LEVEL={os.environ.get('SUBMITIT_LOG_LEVEL', 'WARNING')}"]
        if self.name == "local":  # submitit would hide the GPUs
            shown = os.environ.get("CUDA_VISIBLE_DEVICES")
            settings = ["-u", "CUDA_VISIBLE_DEVICES", *settings, *([f"CUDA_VISIBLE_DEVICES={shown}"] if shown else [])]
        python = shlex.join(["env", *settings, sys.executable])
        if self.name == "local":
            self.executor = self.submitit.LocalExecutor(folder, max_num_timeout=TURNS, python=python)
            self.executor.update_parameters(timeout_min=YEAR, stderr_to_stdout=True)
            return
        asked = self.slurm
        self.executor = self.submitit.SlurmExecutor(folder, max_num_timeout=TURNS, python=python)
        options = {
            "partition": asked.partition,
            "account": asked.account,
            "time": asked.time,
            "cpus_per_task": asked.cpus,
            "gpus_per_node": asked.gpus or None,
            "mem": f"{asked.memory}GB" if asked.memory else None,
            "additional_parameters": asked.extra or None,
        }
        self.executor.update_parameters(
            **{name: value for name, value in options.items() if value is not None},
            srun_args=[f"--cpus-per-task={asked.cpus}"],  # srun no longer takes it over from sbatch
            stderr_to_stdout=True,
        )

    def start(self, work: Callable[[Any], None], job: Any) -> "Submitted":
        """Submit one job.

        Raises:
            BadInput: if Slurm does not take it.
        """
        if self.name == "slurm":
            self.executor.update_parameters(job_name=f"{job.folder.parent.name}-{job.name}")
        # Ctrl-C reaches all of a terminal's processes, and what is started deaf stays deaf: compare.py hands it on.
        # It also must not come between the submission and what is known of it.
        hearing = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # it is said below
                return Submitted(self.executor.submit(Work(work, job)), self.name)
        except RuntimeError as error:  # submitit's for whatever sbatch says
            line = " ".join(str(error).split())
            raise BadInput(f"--launcher slurm: Slurm does not take the job of {job.name}: {line}") from error
        finally:
            signal.signal(signal.SIGINT, hearing)


class Submitted:
    """A job that submitit has taken."""

    PAUSES = {"local": 0.5, "slurm": 5.0}  # noqa: RUF012

    def __init__(self, job: Any, launcher: str) -> None:
        self.job, self.launcher, self.log = job, launcher, job.paths.stdout
        self.pause = self.PAUSES[launcher]  # seconds between two looks at it: a cluster's disk serves many

    def ended(self) -> str | None:
        """None while it waits or runs, "" once it went well, or else how it ended."""
        if not self.job.done():
            return None
        try:
            code = self.job.result()
        except Exception:  # killed or cancelled before it could say anything; or it broke, which its log has
            return f"(job {self.job.job_id}) did not come to its end, {self.job.state}"
        return f"(job {self.job.job_id}) ended with code {code}" if code else ""

    def stop(self) -> None:
        """Have the run save and end; a job that waits is never begun."""
        if self.job.done():
            return
        if self.launcher == "local":  # submitit's own cancel would kill it a second later
            os.kill(int(self.job.job_id), signal.SIGTERM)
            return
        interrupt = ["scancel", "--signal=INT", self.job.job_id]
        subprocess.run(interrupt, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        self.job.cancel(check=False)
        print(f"job {self.job.job_id} is cancelled; Slurm ends it within its KillWait, half a minute or so")

    def join(self) -> None:
        """Wait for the end of a local job that was stopped; Slurm sees to its own."""
        while self.launcher == "local" and not self.job.done():
            time.sleep(0.1)
