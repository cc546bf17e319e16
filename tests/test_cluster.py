"""A comparison as jobs of submitit: the figures are those of processes here, and what stops a job does not lose it.

.venv/bin/python -m pytest tests/test_cluster.py
"""

import os
import re
import shutil
import signal
import stat
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import compare
import train
from harness import cluster, jobs
from harness.checkpoints import steps_saved
from harness.cluster import Launcher, Work
from harness.messages import BadInput
from harness.runs import read_metrics, read_result
from harness.signals import Signals

TWO = ("--schemes", "none", "rope", "--seeds", "0")
CLOCK = {"seconds", "tokens_per_second"}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch) -> None:
    """tests/test_compare.py looks at them, and each costs a second."""
    monkeypatch.setattr(compare.report, "draw_curves", lambda summary, jobs, path: path.touch())


@pytest.fixture
def signals_as_they_were(monkeypatch) -> None:
    """A job is made for a process of its own: here the next test must not feel what it does to signals."""
    for name in ("STOPS", "SAVES", "ALONE"):
        monkeypatch.setattr(Signals, name, getattr(Signals, name))
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    monkeypatch.setattr(sys, "argv", sys.argv)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def job_of(small: list[str], out: Path, *more: str) -> jobs.Job:
    """The first job of a comparison, with nothing started."""
    seen = []

    class FarEnough(Exception):
        pass

    def stop(job):
        seen.append(job)
        raise FarEnough

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "work", stop)
        with pytest.raises(FarEnough):
            compare.main([*small, "--schemes", "rope", "--jobs", "1", "--out", str(out), *more])
    return seen[0]


def at_step(monkeypatch, step: int, action) -> None:
    """Do something while a run is in its step, the first being 1."""
    rate = train.learning_rate
    monkeypatch.setattr(
        train, "learning_rate", lambda at, config: (action() if at + 1 == step else None, rate(at, config))[1]
    )


# ---- signals ---------------------------------------------------------------------------------------------------------


class Queued(Exception):
    """Where submitit would leave the process."""


def test_a_preempted_job_saves_first_is_queued_then_and_ends_with_the_same_weights(
    small, tmp_path, monkeypatch, signals_as_they_were
):
    whole = job_of(small, tmp_path / "whole", "--run.steps", "8")
    compare.work(whole)
    job = job_of(small, tmp_path / "out", "--run.steps", "8")
    saved = []

    def queue_again(number, frame):
        saved.extend(steps_saved(job.folder))
        raise Queued

    signal.signal(signal.SIGUSR2, queue_again)  # submitit's own, there before the job begins
    work = Work(compare.work, job)
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGUSR2))
        with pytest.raises(Queued):
            work()
    assert saved[0] == 5
    assert read_result(job.folder)["status"] == "interrupted"
    again = work.checkpoint()
    assert again.function(*again.args, **again.kwargs) == 0
    assert read_result(job.folder)["weights_sha256"] == read_result(whole.folder)["weights_sha256"]
    assert jobs.read_lengths(job) == compare.read_lengths(whole)
    steps = [event["step"] for event in read_metrics(job.folder) if event["split"] == "train"]
    assert steps == list(range(1, 9))


def test_slurms_sigterm_saves_and_the_run_goes_on_until_it_is_killed(
    small, tmp_path, monkeypatch, signals_as_they_were
):
    job, saved = job_of(small, tmp_path, "--run.steps", "8", "--run.eval_every", "8"), []
    at_step(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    measure = compare.measure_loss_by_length
    terminate = lambda *args: (  # noqa: E731
        saved.extend(steps_saved(job.folder)),
        os.kill(os.getpid(), signal.SIGTERM),
        measure(*args),
    )[-1]
    monkeypatch.setattr(compare, "measure_loss_by_length", terminate)  # outside of the steps too
    assert Work(compare.work, job)() == 0
    assert saved == [8, 5]
    assert read_result(job.folder)["status"] == "finished"


def test_a_cancelled_job_saves_and_ends_however_often_it_is_told(small, tmp_path, monkeypatch, signals_as_they_were):
    job = job_of(small, tmp_path, "--run.steps", "8")
    signals = (signal.SIGINT, signal.SIGINT, signal.SIGTERM)
    at_step(monkeypatch, 5, lambda: [os.kill(os.getpid(), each) for each in signals])
    assert Work(compare.work, job)() == 130
    assert steps_saved(job.folder)[0] == 5


def test_submitits_signal_of_old_wins_over_saving(small, tmp_path, monkeypatch, signals_as_they_were):
    import submitit

    monkeypatch.setattr(submitit.JobEnvironment, "USR_SIG", "USR1")
    job, called = job_of(small, tmp_path), []
    signal.signal(signal.SIGUSR1, lambda number, frame: called.append(number))
    at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert Work(compare.work, job)() == 128 + signal.SIGUSR1
    assert called == [signal.SIGUSR1]
    assert steps_saved(job.folder)[0] == 2


def test_a_run_that_is_replaced_is_replaced_once_however_often_its_job_starts(small, tmp_path):
    job = job_of(small, tmp_path)
    compare.work(job)
    old = read_result(job.folder)["weights_sha256"]
    other = replace(job, run=replace(job.run, learning_rate=0.01, overwrite=True))
    corpus = compare.data.load(job.data, 0, job.run.batch_size, job.model.seq_len)
    other = compare.begin_job(other, corpus)
    assert not read_result(job.folder)
    compare.work(other)
    new, when = read_result(job.folder)["weights_sha256"], (job.folder / "model.safetensors").stat().st_mtime_ns
    assert new != old
    compare.work(other)  # once more: nothing is trained again
    assert (job.folder / "model.safetensors").stat().st_mtime_ns == when


# ---- Slurm -----------------------------------------------------------------------------------------------------------

# Stand-ins for Slurm's commands: this machine as a cluster that preempts each job once, when its run has a step.
SLURM = {
    "sbatch": """
        cp "$1" $CLUSTER/script.sh
        (   export SLURM_JOB_ID=7 SLURM_NTASKS=1
            while rm -f $CLUSTER/requeue; bash $CLUSTER/script.sh; [ -e $CLUSTER/requeue ]; do :; done
            touch $CLUSTER/over ) > $CLUSTER/slurm.out 2>&1 &
        echo Submitted batch job 7""",
    "srun": """
        while [ "${1#--}" != "$1" ]; do [ "$1" = --output ] && { out=$2; shift; }; shift; done
        "$@" >> $(echo $out | sed s/%j/7/\\;s/%t/0/) 2>&1 &
        if [ ! -e $CLUSTER/preempted ]; then
            until [ -s $METRICS ]; do kill -0 $! || exit 1; sleep 0.1; done
            touch $CLUSTER/preempted; kill -USR2 $!
        fi
        wait $!""",
    "scontrol": "[ \"$*\" = 'requeue 7' ] && touch $CLUSTER/requeue",
    "scancel": 'echo "$@" >> $CLUSTER/cancelled',
    "sacct": 'echo "JobID|State|NodeList"; echo "7|RUNNING|here"',
    "squeue": "cat $CLUSTER/queue 2>/dev/null",
}


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, script in SLURM.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER", str(folder))
    return folder


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
def test_a_preempted_slurm_job_queues_again_and_gives_the_figures_and_weights_of_a_run_here(
    small, tmp_path, slurm, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setenv("METRICS", str(out / "rope-seed0" / "metrics.jsonl"))
    monkeypatch.setattr(cluster.SubmittedJob, "pause", 0.5)
    steps = ["--run.steps", "500", "--run.eval_every", "500", "--multiples", "1"]
    asked = ["--slurm.partition", "gpu", "--slurm.time", "30", "--slurm.extra.mem", "4GB", "--slurm.extra.qos", "long"]
    argv = [*small, *steps, "--schemes", "rope", "--launcher", "slurm", *asked, "--out", str(out)]
    summary = compare.main(argv)
    assert summary["runs"][0]["steps"] == 500
    (log,) = out.glob("jobs-*/7_0_log.out")
    assert "this job is timed-out" in log.read_text() or "this job is preempted" in log.read_text()
    assert "going on after step" in log.read_text()
    assert "interrupted at step" in log.read_text()
    script = (slurm / "script.sh").read_text()
    for line in ("partition=gpu", "time=30", "mem=4GB", "qos=long", "cpus-per-task=1", "job-name=out-rope-seed0"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --signal=USR2@90\n" in script
    assert "gpus" not in script

    monkeypatch.setattr(Launcher, "start", lambda *_: pytest.fail("submitted again"))
    assert compare.main(argv)["runs"] == summary["runs"]
    here = tmp_path / "here"
    theirs = compare.main([*small, *steps, "--schemes", "rope", "--jobs", "1", "--out", str(here)])
    ours, theirs = ({k: v for k, v in one["runs"][0].items() if k not in CLOCK} for one in (summary, theirs))
    assert ours == theirs
    weights = [folder / "rope-seed0" / "model.safetensors" for folder in (out, here)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert {each.name for each in here.iterdir()} == {e.name for e in out.iterdir() if not e.name.startswith("jobs-")}


def test_ctrl_c_cancels_slurm_jobs(small, tmp_path, slurm, monkeypatch):
    (slurm / "sbatch").write_text("#!/bin/bash\necho Submitted batch job 7\n")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "show_progress", interrupted)
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    with pytest.raises(KeyboardInterrupt):
        compare.main([*small, "--schemes", "rope", "--launcher", "slurm", "--out", str(tmp_path / "out")])
    assert (slurm / "cancelled").read_text() == "--signal=INT 7\n7\n"
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_what_slurm_says_against_a_job_is_one_line(small, tmp_path, slurm, at_the_shell):
    (slurm / "sbatch").write_text(
        "#!/bin/bash\necho sbatch: error: invalid partition specified: gpuu >&2\necho more >&2\nexit 1\n"
    )
    argv = [*small, "--schemes", "rope", "--launcher", "slurm", "--slurm.partition", "gpuu"]
    ended = at_the_shell(compare.main, [*argv, "--out", str(tmp_path / "out")])
    assert ended.code == 2
    (line,) = [line for line in ended.err.splitlines() if line.strip()]
    for word in ("--launcher slurm", "rope-seed0", "invalid partition specified: gpuu"):
        assert word in line


@pytest.mark.parametrize(
    ("sbatch", "says", "cancelled"),
    [
        (r"echo Submitted job, $'\e[31m' thanks", r"Slurm refuses the job of none-seed0: .*Could not make sense", 0),
        ("echo Submitted batch job 7", "of rope-seed0 the number 7, which another one here has: see with squeue", 2),
        ("exec sleep 60", "sbatch has not answered for 1 seconds about none-seed0: see with squeue", 0),
        ('rm "$0"; echo Submitted batch job 7', "No such file or directory: sbatch", 2),
    ],
    ids=["says nothing of use", "gives an id twice", "hangs", "is gone"],
)
def test_an_sbatch_that_cannot_be_trusted_is_one_line_and_what_it_has_queued_is_cancelled(
    small, tmp_path, slurm, at_the_shell, monkeypatch, sbatch, says, cancelled
):
    (slurm / "sbatch").write_text(f"#!/bin/bash\n{sbatch}\n")
    monkeypatch.setattr(cluster, "ANSWERS", 1)
    ended = at_the_shell(compare.main, [*small, *TWO, "--launcher", "slurm", "--out", str(tmp_path / "out")])
    (line,) = ended.err.splitlines()
    assert re.search(says, line)
    assert ended.code == (3 if "No such" in says else 2)
    told = (slurm / "cancelled").read_text().splitlines() if cancelled else []
    assert told == ["--signal=INT 7", "7"][:cancelled]
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize(
    ("squeue", "says"),
    [
        ("echo 5; echo 12", r"still queued or running: .*scancel 12$"),
        ("echo slurm is away >&2; exit 1", r"squeue cannot say whether .*\(slurm is away\)"),
        ("exec sleep 60", "squeue cannot say whether .* timed out"),
        ("echo 5; echo 121", None),
    ],
)
def test_jobs_that_outlived_their_comparison_are_named_and_a_second_one_is_refused(
    tmp_path, slurm, monkeypatch, squeue, says
):
    (slurm / "squeue").write_text(f"#!/bin/bash\n{squeue}\n")
    monkeypatch.setattr(cluster, "ANSWERS", 1)
    launcher = Launcher(cluster.SlurmConfig(), tmp_path)
    launcher.open()  # nothing is there, and nobody is asked
    (folder,) = tmp_path.glob("jobs-*")
    for name in ("12_submitted.pkl", "13_submitted.pkl", "--all_submitted.pkl", "12_0_result.pkl"):
        (folder / name).touch()
    if says is None:
        launcher.open()
        return
    with pytest.raises(BadInput, match=says):
        launcher.open()
    assert len(list(tmp_path.glob("jobs-*"))) == 1


def test_a_scancel_that_does_not_answer_is_named_and_not_waited_for(slurm, monkeypatch, capsys):
    (slurm / "scancel").write_text("#!/bin/bash\nexec sleep 60\n")
    monkeypatch.setattr(cluster, "ANSWERS", 0.2)
    job = SimpleNamespace(job_id="7", done=lambda: False, paths=SimpleNamespace(stdout=None))
    cluster.SubmittedJob(job).terminate()
    assert "job 7 could not be cancelled" in capsys.readouterr().out


def test_slurm_is_asked_for_every_run_at_once_with_the_threads_of_its_cpus(small, tmp_path, slurm, monkeypatch):
    seen = {}

    def far_enough(jobs):
        raise Queued

    monkeypatch.setattr(compare, "run_jobs", lambda jobs, at_once, *rest: seen.update(jobs=jobs, at_once=at_once))
    monkeypatch.setattr(compare.report, "summarise", far_enough)
    free = [*small]
    free[free.index("--run.threads") : free.index("--run.threads") + 2] = []
    argv = [*free, *TWO, "--launcher", "slurm", "--slurm.cpus", "3", "--run.device", "cuda", "--out"]
    with pytest.raises(Queued):
        compare.main([*argv, str(tmp_path / "out")])  # and nobody asks whether this machine has a GPU
    assert seen["at_once"] == 2
    assert {job.run.threads for job in seen["jobs"]} == {3}


def test_no_slurm_and_no_submitit_are_one_line_each(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="no sbatch on this machine"):
        compare.main(["--launcher", "slurm", "--out", str(tmp_path / "out")])
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(BadInput, match=r"needs submitit, .* -m pip install --editable .*\[cluster\]"):
        compare.main(["--launcher", "slurm", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_folder_whose_name_slurm_would_read_as_a_pattern_is_refused(tmp_path, slurm):
    with pytest.raises(BadInput, match=r"a%j: .* name a folder without it"):
        compare.main(["--launcher", "slurm", "--out", str(tmp_path / "a%j")])
