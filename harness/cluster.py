"""The runs of a comparison as jobs of a Slurm cluster, one a run, through submitit: compare.py --launcher slurm.

compare.py stays, shows their progress, and writes the report when all have ended. A signal, that of a closed terminal
too, makes it cancel them. If it is lost without one (kill -9, or with its machine), they stay queued; the next one in
the same folder names them and is refused until they have ended. Their devices and memory are other machines', and are
checked by each job as it starts. The comparison's folder must be on a disk that the cluster's machines share; its
folder jobs-... holds submitit's files and the logs.
"""

import contextlib
import os
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
from typing import Annotated, Any, NoReturn

from pydantic import Field
from pydantic.dataclasses import dataclass

from harness.messages import BadInput, run_main
from harness.ranges import STRICT, AtLeast1
from harness.signals import Signals

ANSWERS = 120  # seconds in which a command of Slurm must have answered
REQUEUES = 100  # at most; a time limit too short for one step would requeue the job for ever
OURS = {"output", "error", "open-mode", "signal", "array", "nodes", "ntasks", "job-name", "wait", "no-requeue"}


@dataclass(frozen=True, config=STRICT)
class SlurmConfig:
    """What each job asks of Slurm. A job is one run in one process; what is not given, the cluster decides.

    Args:
        partition: where the job queues.
        time: minutes. A run that needs longer saves before they are over, is requeued and continues.
        cpus: per job; PyTorch uses as many threads unless run.threads says otherwise.
        gpus: per job.
        extra: other options of sbatch by their names, such as `--slurm.extra.mem 64GB`; true for one without a value.
    """

    partition: str | None = None
    time: Annotated[int, Field(ge=5)] = 60
    cpus: AtLeast1 = 1
    gpus: Annotated[int, Field(ge=0)] = 0
    extra: dict[str, bool | int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taken := OURS.intersection(self.extra):
            raise ValueError(f"slurm.extra.{min(taken)} is set by compare.py itself: leave it out")


class Work:
    """The work of one job as submitit calls it: it can be stopped, requeued and continued.

    On its own, a run stops at SIGINT and SIGTERM, and saves and continues at SIGUSR1 (signals.py). submitit's signal is
    SIGUSR2 (or SIGUSR1, if SUBMITIT_PREEMPT_SIGNAL says so), sent 90 seconds before the time limit and, if the cluster
    is set up that way, before preemption. In a job

    SIGUSR2   finishes the step, saves and ends the run; only then submitit's own handler requeues the job.
    SIGTERM   saves and continues: Slurm sends it to a job that is preempted or cancelled, SIGKILL follows, and a job
              that ends by itself would not be requeued.
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
        # The same stop may arrive several times: sent to the whole process group, and passed on by the parent.
        Signals.ALONE = False
        Signals.STOPS = (signal.SIGINT, preempted)
        Signals.SAVES = tuple({signal.SIGTERM, signal.SIGUSR1} - set(Signals.STOPS))
        sys.argv = ["compare.py"]  # the name that messages in the log begin with

        def main(argv: list[str] | None) -> None:
            signal.signal(preempted, lambda number, frame: sys.exit(128 + number))  # between runs: at once
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
    """Starts jobs, with what `slurm` asks for.

    Raises:
        BadInput: if submitit or Slurm is missing, or the name of the comparison's folder would be read as a pattern.
    """

    def __init__(self, slurm: SlurmConfig, out: Path) -> None:
        try:
            import submitit
        except ImportError as error:
            how = f"{sys.executable} -m pip install --editable '{Path(__file__).parents[1]}[cluster]'"
            raise BadInput(f"--launcher slurm needs submitit, which is not installed: {how}") from error
        for program in ("sbatch", "srun", "scancel", "squeue"):
            if not shutil.which(program):
                fix = "run compare.py on a machine that can submit jobs to the cluster, or leave --launcher out"
                raise BadInput(f"--launcher slurm: there is no {program} on this machine: {fix}")
        if "%" in str(out.absolute()):
            raise BadInput(f"--out {out}: Slurm and submitit read % in a path as a pattern: name a folder without it")
        self.slurm, self.out, self.submitit, self.executor = slurm, out, submitit, None
        self.submitted: set[str] = set()

    def refuse_orphans(self) -> None:
        """Raise BadInput if jobs of an earlier comparison in the folder are still queued or running."""
        earlier = {file.name.partition("_")[0] for file in self.out.glob("jobs-*/*_submitted.pkl")}
        if not earlier:
            return
        ask = ["squeue", "--noheader", "--format=%A", f"--user={os.getuid()}"]
        try:
            answer = subprocess.run(ask, capture_output=True, text=True, errors="replace", check=True, timeout=ANSWERS)
        except (OSError, subprocess.SubprocessError) as error:
            why = " ".join(str(getattr(error, "stderr", None) or error).split())[:200]
            what = f"squeue cannot say whether jobs of an earlier comparison in {self.out} are still queued"
            raise BadInput(f"--launcher slurm: {what} ({why}): wait until it can, or choose another --out") from error
        if left := sorted(earlier.intersection(answer.stdout.split())):
            what = f"jobs of an earlier comparison in {self.out} are still queued or running"
            raise BadInput(f"--launcher slurm: {what}: wait until they have ended, or scancel {' '.join(left)}")

    def open(self) -> None:
        """Create a folder for submitit's files: a new one each time, so that nothing old in it is ever unpickled."""
        self.refuse_orphans()
        folder = tempfile.mkdtemp(prefix=time.strftime("jobs-%Y%m%d-%H%M%S-"), dir=self.out)
        # The job's Python must find these modules wherever it starts, and submitit must not write to the log itself.
        path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
        settings = [f"PYTHONPATH={path}", f"SUBMITIT_LOG_LEVEL={os.environ.get('SUBMITIT_LOG_LEVEL', 'WARNING')}"]
        python = shlex.join(["env", *settings, sys.executable])
        self.executor = self.submitit.SlurmExecutor(folder, max_num_timeout=REQUEUES, python=python)
        asked = self.slurm
        options = {"partition": asked.partition, "time": asked.time, "additional_parameters": asked.extra or None}
        options |= {"cpus_per_task": asked.cpus, "gpus_per_node": asked.gpus or None}
        options["srun_args"] = [f"--cpus-per-task={asked.cpus}"]  # srun no longer inherits it from sbatch
        given = {name: value for name, value in options.items() if value is not None}
        self.executor.update_parameters(**given, stderr_to_stdout=True)

    def start(self, work: Callable[[Any], None], job: Any) -> "SubmittedJob":
        """Submit one job; BadInput if Slurm refuses it."""
        self.executor.update_parameters(job_name=f"{job.folder.parent.name}-{job.run.name}")
        # A terminal sends Ctrl-C to all its processes. Children started while it is ignored ignore it too: compare.py
        # passes it on. Nor may it interrupt between a submission and the record of it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        before, began = signal.signal(signal.SIGALRM, too_late), time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, ANSWERS)
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # reported below
                submitted = self.executor.submit(Work(work, job))
        except (TimeoutError, RuntimeError) as error:  # RuntimeError: as submitit reports any error of sbatch
            line = " ".join(str(error).split())[:1000]
            if time.monotonic() - began >= ANSWERS:
                what = f"sbatch has not answered for {ANSWERS} seconds about {job.run.name}"
                line = f"--launcher slurm: {what}: see with squeue what is queued, and try again later"
                raise BadInput(line) from error
            raise BadInput(f"--launcher slurm: Slurm refuses the job of {job.run.name}: {line}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            signal.signal(signal.SIGINT, handler)
        if submitted.job_id in self.submitted:  # it has the other's files now
            what = f"sbatch gives the job of {job.run.name} the number {submitted.job_id}, which another one here has"
            raise BadInput(f"--launcher slurm: {what}: see with squeue what is queued, and try again later")
        self.submitted.add(submitted.job_id)
        return SubmittedJob(submitted)


def too_late(number: int, frame: Any) -> NoReturn:
    """What ends the wait for a command of Slurm that does not answer."""
    raise TimeoutError


class SubmittedJob:
    """A job that submitit has accepted; `jobs.ProcessJob` has the same methods."""

    pause = 5.0  # seconds between two looks at it: many users share a cluster's disk
    code: int | None = None  # the exit code, once it has reported one

    def __init__(self, job: Any) -> None:
        self.job, self.log = job, job.paths.stdout

    def poll(self) -> str | None:
        """None while it waits or runs, "" if it has succeeded, otherwise how it ended."""
        if not self.job.done():
            return None
        try:
            self.code = self.job.result()
        except Exception:  # killed or cancelled before it could report; or it broke, and its log says how
            return f"(job {self.job.job_id}) did not finish, {self.job.state}"
        return f"(job {self.job.job_id}) ended with code {self.code}" if self.code else ""

    def terminate(self) -> None:
        """Ask the run to save and end; a job that is still queued is cancelled."""
        if self.job.done():
            return
        try:
            for words in (["--signal=INT"], []):
                subprocess.run(["scancel", *words, self.job.job_id], capture_output=True, check=False, timeout=ANSWERS)
        except (OSError, subprocess.TimeoutExpired):
            print(f"job {self.job.job_id} could not be cancelled, scancel does not answer: scancel {self.job.job_id}")
        else:
            print(f"job {self.job.job_id} is cancelled; Slurm ends it within its KillWait, usually half a minute")

    def join(self) -> None:
        """Wait for nothing: Slurm ends its jobs."""
