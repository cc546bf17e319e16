"""The runs of a comparison as jobs of submitit, one a run: on this machine (--launcher local), or on a Slurm cluster.

compare.py stays, shows their progress, and writes the report when all have ended. If it is lost without a signal, with
its terminal or machine, the jobs stay queued; tmux prevents that. The comparison's folder must be on a disk that the
cluster's machines share; its folder jobs-... holds submitit's files and the logs.
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
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from harness.messages import BadInput, run_main
from harness.ranges import AT_LEAST_1, STRICT
from harness.signals import Signals

LAUNCHERS = ("local", "slurm")
PAUSES = {"local": 0.5, "slurm": 5.0}  # seconds between two looks at a job: many users share a cluster's disk
REQUEUES = 100  # at most; a time limit too short for one step would requeue the job for ever
YEAR = 365 * 24 * 60  # minutes: nobody else sets a local job's time limit
OURS = {"output", "error", "open-mode", "signal", "array", "nodes", "ntasks", "job-name", "wait", "no-requeue"}


@dataclass(frozen=True, config=STRICT)
class SlurmConfig:
    """What each job asks of Slurm. A job is one run in one process; what is not given, the cluster decides.

    Args:
        partition: where the job queues.
        account: what its time is charged to.
        time: minutes. A run that needs longer saves before they are over, is requeued and continues.
        cpus: per job; PyTorch uses as many threads unless run.threads says otherwise.
        gpus: per job.
        memory: per job, GB.
        extra: other options of sbatch by their names, such as `--slurm.extra.qos long`; true for one without a value.
    """

    partition: str | None = None
    account: str | None = None
    time: Annotated[int, Field(ge=5)] = 60
    cpus: Annotated[int, AT_LEAST_1] = 1
    gpus: Annotated[int, Field(ge=0)] = 0
    memory: Annotated[int | None, AT_LEAST_1] = None
    extra: dict[str, bool | int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.extra:
            if not re.fullmatch(r"[a-z][a-z-]*", name):
                raise ValueError(f"slurm.extra.{name} is not an option of sbatch: spell it as there, e.g. cpus-per-gpu")
            if name in OURS:
                raise ValueError(f"slurm.extra.{name} is set by compare.py itself: leave it out")
        extra = {f"extra.{name}": value for name, value in self.extra.items()}
        for name, value in {"partition": self.partition, "account": self.account, **extra}.items():
            if value is not None and not (str(value) and str(value).isprintable()):
                raise ValueError(f"slurm.{name} {value!r} must be one line of text")


class Work:
    """The work of one job as submitit calls it: it can be stopped, requeued and continued.

    On its own, a run stops at SIGINT and SIGTERM, and saves and continues at SIGUSR1 (signals.py). submitit's signal is
    SIGUSR2 (or SIGUSR1, if SUBMITIT_PREEMPT_SIGNAL says so), sent 90 seconds before the time limit and, if the cluster
    is set up that way, before preemption. In a job

    SIGUSR2   finishes the step, saves and ends the run; only then submitit's own handler requeues the job.
    SIGTERM   saves and continues: Slurm sends it to a job that is preempted or cancelled, SIGKILL follows, and a job
              that ends by itself would not be requeued. A local job stops.
    SIGUSR1   saves and continues, as always (if it is submitit's signal, the job is requeued instead).
    SIGINT    finishes the step, saves and ends the run. compare.py sends it when Ctrl-C or SIGTERM makes it cancel its
              jobs, so that nothing keeps running unasked; the same command continues the runs.
    """

    def __init__(self, work: Callable[[Any], None], job: Any) -> None:
        self.work, self.job = work, job

    def __call__(self) -> int:
        """Do the work and return its exit code (messages.py). After a preemption submitit exits instead."""
        import submitit

        preempted = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
        requeue = signal.getsignal(preempted)
        in_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
        # The same stop may arrive several times: sent to the whole process group, and passed on by the parent.
        Signals.ALONE = False
        Signals.STOPS = (signal.SIGINT, preempted) if in_slurm else (signal.SIGINT, signal.SIGTERM, preempted)
        Signals.SAVES = tuple({signal.SIGTERM, signal.SIGUSR1} - set(Signals.STOPS))
        sys.argv = ["compare.py"]  # the name that messages in the log begin with

        def main(argv: list[str] | None) -> None:
            signal.signal(preempted, lambda number, frame: sys.exit(128 + number))  # between runs: at once
            if in_slurm:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.work(self.job)

        try:
            run_main(main)
        except SystemExit as ended:
            if ended.code == 128 + preempted:
                requeue(preempted, None)
            return ended.code

    def checkpoint(self) -> Any:
        """What submitit queues after a preemption: the same work, because a run continues from its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Launcher:
    """Starts jobs, with what `slurm` asks for, through submitit's executor of this name: local or slurm.

    Raises:
        BadInput: if submitit or Slurm is missing, or the name of the comparison's folder would be read as a pattern.
    """

    def __init__(self, name: str, slurm: SlurmConfig, out: Path) -> None:
        try:
            import submitit
        except ImportError as error:
            how = f"{sys.executable} -m pip install --editable '{Path(__file__).parents[1]}[cluster]'"
            raise BadInput(f"--launcher {name} needs submitit, which is not installed: {how}") from error
        for program in ("sbatch", "srun", "scancel") if name == "slurm" else ():
            if not shutil.which(program):
                fix = "run compare.py on a machine that can submit jobs to the cluster, or use --launcher local"
                raise BadInput(f"--launcher slurm: there is no {program} on this machine: {fix}")
        if "%" in str(out.absolute()):
            raise BadInput(f"--out {out}: Slurm and submitit read % in a path as a pattern: name a folder without it")
        self.name, self.slurm, self.out, self.submitit, self.executor = name, slurm, out, submitit, None

    def open(self) -> None:
        """Create a folder for submitit's files: a new one each time, so that nothing old in it is ever unpickled."""
        folder = tempfile.mkdtemp(prefix=time.strftime("jobs-%Y%m%d-%H%M%S-"), dir=self.out)
        # The job's Python must find these modules wherever it starts, and submitit must not write to the log itself.
        path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
        settings = [f"PYTHONPATH={path}", f"SUBMITIT_LOG_LEVEL={os.environ.get('SUBMITIT_LOG_LEVEL', 'WARNING')}"]
        asked, kind = self.slurm, self.submitit.SlurmExecutor
        options = {"partition": asked.partition, "account": asked.account, "time": asked.time}
        options |= {"cpus_per_task": asked.cpus, "gpus_per_node": asked.gpus or None}
        options |= {"mem": asked.memory and f"{asked.memory}GB", "additional_parameters": asked.extra or None}
        options["srun_args"] = [f"--cpus-per-task={asked.cpus}"]  # srun no longer inherits it from sbatch
        if self.name == "local":  # submitit would hide the GPUs
            shown = os.environ.get("CUDA_VISIBLE_DEVICES")
            settings.insert(0, f"CUDA_VISIBLE_DEVICES={shown}" if shown else "-uCUDA_VISIBLE_DEVICES")
            kind, options = self.submitit.LocalExecutor, {"timeout_min": YEAR}
        self.executor = kind(folder, max_num_timeout=REQUEUES, python=shlex.join(["env", *settings, sys.executable]))
        given = {name: value for name, value in options.items() if value is not None}
        self.executor.update_parameters(**given, stderr_to_stdout=True)

    def start(self, work: Callable[[Any], None], job: Any) -> "SubmittedJob":
        """Submit one job; BadInput if Slurm refuses it."""
        if self.name == "slurm":
            self.executor.update_parameters(job_name=f"{job.folder.parent.name}-{job.run.name}")
        # A terminal sends Ctrl-C to all its processes. Children started while it is ignored ignore it too: compare.py
        # passes it on. Nor may it interrupt between a submission and the record of it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # reported below
                return SubmittedJob(self.executor.submit(Work(work, job)), self.name)
        except RuntimeError as error:  # how submitit reports any error of sbatch
            line = " ".join(str(error).split())
            raise BadInput(f"--launcher slurm: Slurm refuses the job of {job.run.name}: {line}") from error
        finally:
            signal.signal(signal.SIGINT, handler)


class SubmittedJob:
    """A job that submitit has accepted; `jobs.ProcessJob` has the same methods."""

    def __init__(self, job: Any, launcher: str) -> None:
        self.job, self.launcher, self.log, self.pause = job, launcher, job.paths.stdout, PAUSES[launcher]

    def poll(self) -> str | None:
        """None while it waits or runs, "" if it has succeeded, otherwise how it ended."""
        if not self.job.done():
            return None
        try:
            code = self.job.result()
        except Exception:  # killed or cancelled before it could report; or it broke, and its log says how
            return f"(job {self.job.job_id}) did not finish, {self.job.state}"
        return f"(job {self.job.job_id}) ended with code {code}" if code else ""

    def terminate(self) -> None:
        """Ask the run to save and end; a job that is still queued is cancelled."""
        if self.launcher == "local" and not self.job.done():  # submitit's own cancel would kill it after one second
            os.kill(int(self.job.job_id), signal.SIGTERM)
        elif not self.job.done():
            subprocess.run(["scancel", "--signal=INT", self.job.job_id], capture_output=True, check=False)
            self.job.cancel(check=False)
            print(f"job {self.job.job_id} is cancelled; Slurm ends it within its KillWait, usually half a minute")

    def join(self) -> None:
        """Wait until a local job that was asked to stop has ended; Slurm ends its own."""
        while self.launcher == "local" and not self.job.done():
            time.sleep(0.1)
