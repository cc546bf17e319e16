"""Campaigns that try to break a run, and count what was lost: docs/reliability.md says what came out.

    python tests/long/faults.py      all of them, the long form (`make faults`, half an hour)
    python tests/long/faults.py kills damage --tries 20 --seed 1 --out faults.json

    kills     SIGKILL at every call that changes a file in turn, and at random moments; each run goes on and is compared
    damage    flipped bits, cut, missing and exchanged files: whatever is read must be what was written
    writes    calls that fail: no space, no permission, read-only, broken; and a disk that is really full
    signals   SIGTERM and SIGINT in every phase of a run
    writers   two processes that begin on one folder at once
    soak      a run of many steps: memory, open files and the folder stay as they are
    offline   every script with the network cut off, and every attempt to reach it counted

A try is a process of its own: see strikes.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import harness.stops  # first: the rest takes seconds to import, and Ctrl-C ends even that without a traceback

import builtins
import contextlib
import errno
import itertools
import json
import mmap
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

import torch
from scipy.stats import linregress
from strikes import (
    EVAL_EVERY,
    PHASES,
    REPOSITORY,
    SCHEMES,
    STEPS,
    WORDS,
    WORK,
    Count,
    Ended,
    Strike,
    Try,
    attempt,
    command,
    fail,
    kill_myself,
    note_phases,
    once_and_in_order,
    outcome,
    phase,
    strike_file_call,
    training,
    watch_files,
    whole,
)

import compare
import evaluate
import generate
import train
from harness import messages
from harness.checkpoints import Damaged, read_checkpoint, steps_saved
from harness.files import write_whole
from harness.messages import BadInput
from harness.options import Parser
from harness.provenance import versions
from harness.runs import load_finished_run

# ---- the campaigns ---------------------------------------------------------------------------------------------------


def kills(count: Count, tries: int, draw: random.Random, short: bool) -> None:
    """SIGKILL: at the calls that change a file, one after the other, at random moments, and to real processes."""
    phases, ways, schemes = Counter(), Counter(), Counter()
    count.more = {"runs": 0, "after a first checkpoint": 0, "ways": ways, "schemes": schemes, "phases": phases}
    golden = (5**0.5 - 1) / 2
    moments = itertools.cycle(("before", "amid", "after"))
    real = 0 if short else 12
    for run, scheme in enumerate(itertools.cycle(SCHEMES[:2] if short else SCHEMES)):
        folder, what, struck = WORK[0] / f"kill-{run}", [], []
        for n in range(draw.choice((1, 2, 2, 3))):
            argv, expected = command(folder, scheme), whole(scheme)
            if ways["a real process"] < real and n == 0 and run % 4 == 3:
                way, was_killed = "a real process", kill_a_process(argv, folder, draw)
                ended = Ended(-signal.SIGKILL if was_killed else 0, "", "", "a real process")
            elif draw.random() < 0.5:
                # multiples of the golden section fall evenly wherever one stops
                at, moment = int((count.tries + n) * golden % 1 * expected.calls), next(moments)
                way = "at a file call"
                ended = attempt(argv, note_phases, partial(strike_file_call, kill_myself, at, moment))
                what.append(f"call {at} {moment}")
            else:
                way = "at a random moment"
                ended = Try(training(argv), (note_phases,)).start().send(signal.SIGKILL, draw, expected.phases).end()
            if ended.code != -signal.SIGKILL:
                count.check(ended.code == 0, f"kills, {scheme}, {what}", ended)
                break
            struck.append((way, ended.phase, bool(steps_saved(folder))))  # a real process's phase is not known
            what.append(f"in {ended.phase}")
        count.goes_on(folder, scheme, f"kills, {scheme}, {what}")
        count.tries += len(struck)
        count.more["runs"] += 1
        count.more["after a first checkpoint"] += sum(saved for _, _, saved in struck)
        schemes[scheme] += len(struck)
        ways.update(way for way, _, _ in struck)
        phases.update(phase for _, phase, _ in struck)
        if count.tries >= tries:
            return


def kill_a_process(argv: list[str], folder: Path, draw: random.Random) -> bool:
    """Kill `python train.py` at a random moment after it has made its cache or some log lines, and tell if it was."""
    log = draw.choice([0, *range(1, STEPS)])  # lines of metrics.jsonl to wait for
    with subprocess.Popen(
        [sys.executable, "train.py", *argv], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            file = folder / "metrics.jsonl"
            if (file.exists() and file.read_bytes().count(b"\n") >= log) if log else Path(f"{folder}-cache").exists():
                break
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
    return process.returncode == -signal.SIGKILL


def damage(count: Count, tries: int, draw: random.Random, short: bool) -> None:
    """Damage to every file of every checkpoint, and to a finished run's weights."""
    kinds = Counter()
    stopped = WORK[0] / "stopped"
    ended = attempt(command(stopped, "rope"), partial(note_phases, kill_myself, "training", STEPS - 2))
    assert ended.code == -signal.SIGKILL
    steps = steps_saved(stopped)
    copy = WORK[0] / "damaged"
    shutil.copytree(stopped, copy)

    def refused(folder: Path, kind: str, where: str) -> None:
        count.tries += 1
        kinds[kind] += 1
        try:
            read_checkpoint(folder)
        except Damaged as error:
            count.check(str(folder) in str(error), f"damage, {kind} {where}: does not say where")
        except Exception as error:
            count.check(False, f"damage, {kind} {where}: {error!r}")
        else:
            count.check(False, f"damage, {kind} {where}: accepted")

    files = sorted(path.relative_to(copy) for path in copy.glob("checkpoints/step-*/*"))
    count.more = {"kinds": kinds, "files": len(files), "bytes": sum((copy / name).stat().st_size for name in files)}
    for name in files:
        path, content = copy / name, (copy / name).read_bytes()
        places = range(len(content)) if not short else draw.sample(range(len(content)), min(tries, len(content)))
        with open(path, "r+b", buffering=0) as file:
            for place in places:  # one bit of every byte
                bit = 1 << draw.randrange(8)
                file.seek(place)
                file.write(bytes([content[place] ^ bit]))
                refused(path.parent, "flipped bit", f"{name} byte {place} bit {bit}")
                file.seek(place)
                file.write(content[place : place + 1])
        cuts = {0, 1, len(content) - 1, *(draw.randrange(len(content)) for _ in range(6 if short else 47))}
        for size in itertools.islice(
            itertools.chain(cuts, map(draw.randrange, itertools.repeat(len(content)))), 9 if short else 50
        ):
            path.write_bytes(content[:size])
            refused(path.parent, "cut", f"{name} to {size}")
        path.write_bytes(content + b"\0")
        refused(path.parent, "longer by a byte", str(name))
        path.unlink()
        refused(path.parent, "missing", str(name))
        path.write_bytes(content)
        for other in steps:  # whole files, but of other checkpoints
            exchanged = copy / "checkpoints" / f"step-{other}" / name.name
            if exchanged.read_bytes() != content:
                path.write_bytes(exchanged.read_bytes())
                refused(path.parent, "of another checkpoint", f"{name} from step {other}")
        path.write_bytes(content)
        read_checkpoint(path.parent)  # whole again, or all of the above said nothing

    resumes = 3 if short else 24
    for _ in range(resumes):  # the last checkpoint is damaged somehow: the one before is used, and said
        folder = WORK[0] / "resumed"
        shutil.copytree(stopped, folder)
        path = folder / draw.choice([name for name in files if name.parent.name == f"step-{steps[0]}"])
        content = path.read_bytes()
        place = draw.randrange(len(content))
        kind = draw.choice(("flipped bit", "cut", "missing"))
        if kind == "missing":
            path.unlink()
        else:
            path.write_bytes(
                content[:place] + (bytes([content[place] ^ 4]) + content[place + 1 :] if kind == "flipped bit" else b"")
            )
        ended = attempt(command(folder, "rope"), partial(note_phases, kill_myself, "first step"))
        said = ended.err.count(f"{path} is ") == 1 and f"going on after step {steps[1]}" in ended.out
        count.tries += 1
        kinds["resumed"] += 1
        count.check(said, f"damage, {kind} in {path.name}: not said", ended)
        count.goes_on(folder, "rope", f"damage, {kind} in {path.name} at {place}")

    for _ in range(4 if short else 60):  # files beside the checkpoints: refused by name, or the same in the end
        folder = WORK[0] / "beside"
        shutil.copytree(stopped, folder)
        path = folder / draw.choice(("metrics.jsonl", "metrics.jsonl", "config.yaml", "result.json"))
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        ended = attempt(command(folder, "rope"))
        count.tries += 1
        kinds["beside the checkpoints"] += 1
        if path.name == "config.yaml" and ended.code == 2:
            count.check(one_line(ended, str(folder)), "damage, config.yaml: not one line", ended)
        elif count.check(ended.code == 0, f"damage, {path.name}: does not go on", ended):
            count.check(outcome(folder)[0] == whole("rope").outcome[0], f"damage, {path.name}: other weights")
            if not once_and_in_order(folder, STEPS, EVAL_EVERY) or outcome(folder) != whole("rope").outcome:
                count.check(
                    "metrics.jsonl is damaged" in ended.err, f"damage, {path.name}: metrics lost, not said", ended
                )
        shutil.rmtree(folder)

    folder = Path(shutil.copytree(whole("rope").folder, WORK[0] / "finished"))
    path, content = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()
    for place in draw.sample(range(len(content)), 20 if short else 500):
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :])
        count.tries += 1
        kinds["of a finished run"] += 1
        try:
            load_finished_run(folder)
        except BadInput as error:
            count.check("model.safetensors is damaged" in str(error), "damage, of a finished run: not named")
        else:
            count.check(False, f"damage, of a finished run: byte {place} accepted")


def one_line(ended: Ended, *words: str) -> bool:
    """Whether stderr is one line with all these words."""
    lines = [line for line in ended.err.splitlines() if line.strip()]
    return len(lines) == 1 and all(word in lines[0] for word in words)


def writes(count: Count, tries: int, draw: random.Random, short: bool) -> None:
    """Every call that changes a file fails in turn, with each of four errors."""
    codes, phases = Counter(), Counter()
    count.more = {"codes": codes, "phases": phases}
    wanted = ("saving", "logging", "writing the weights", "writing the result")
    places: list[tuple[int, str, str]] = []
    trace = WORK[0] / "trace"

    def tell(which: int, when: str) -> None:
        if when != "after":
            with builtins.open(trace, "a") as file:
                file.write(f"{which} {when} {phase()}\n")

    attempt(command(WORK[0] / "traced", "rope"), note_phases, lambda: watch_files(tell))
    for line in trace.read_text().splitlines():
        which, when, name = line.split(" ", 2)
        if name in wanted:
            places.append((int(which), when, name))
    saving = [place for place in places if place[2] == "saving"]
    rest = [place for place in places if place[2] != "saving"]
    kinds = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO)
    every = [(*place, code) for place in saving for code in kinds]
    every += [(*place, draw.choice(kinds)) for place in rest]
    chosen = draw.sample(every, min(tries, len(every)))
    for n, (at, when, name, code) in enumerate(chosen):
        folder = WORK[0] / f"write-{n}"
        ended = attempt(command(folder, "rope"), note_phases, partial(strike_file_call, partial(fail, code), at, when))
        what = f"writes, call {at} {when} in {name}, {errno.errorcode[code]}"
        if ended.code != 0:  # 0: a removal that failed, which the next save makes good
            count.check(ended.code == 3 and one_line(ended, os.strerror(code)), what, ended)
            said = re.search(r"last whole checkpoint is of step (\d+)|there is no checkpoint yet", ended.err)
            if count.check(said, f"{what}: does not say what there is", ended) and said[1]:
                try:
                    read_checkpoint(folder / "checkpoints" / f"step-{said[1]}")
                except Damaged as error:
                    count.check(False, f"{what}: {error}")
        count.goes_on(folder, "rope", what)
        count.tries += 1
        codes[errno.errorcode[code]] += 1
        phases[name] += 1
    if not short:
        count.more["full disk"] = full_disk(count, draw)


def full_disk(count: Count, draw: random.Random) -> dict[str, int] | str:
    """A file system of its own, with too little room at some point of the run, then with enough."""
    mount = WORK[0] / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount], capture_output=True).returncode:
        return "skipped: mounting needs root"
    found = Counter()
    try:
        for kilobytes in sorted(draw.sample(range(60, 500), 20)):
            subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", mount], check=True)
            folder = mount / "run"
            argv = command(folder, "rope", "--data.cache", str(WORK[0] / "room-cache"))
            ended = attempt(argv)
            count.tries += 1
            found["tries"] += 1
            if ended.code:
                found["stopped"] += 1
                found["stopped after a checkpoint"] += bool(steps_saved(folder))
                count.check(ended.code == 3 and one_line(ended, "No space left"), f"writes, {kilobytes} KB", ended)
                for step in steps_saved(folder):
                    try:
                        read_checkpoint(folder / "checkpoints" / f"step-{step}")
                    except Damaged as error:
                        count.check(False, f"writes, {kilobytes} KB: {error}")
            subprocess.run(["mount", "-o", "remount,size=8m", mount], check=True)
            count.goes_on(folder, "rope", f"writes, a disk of {kilobytes} KB")
        found |= wandb_on_a_full_disk(count, mount)
    finally:
        subprocess.run(["umount", mount], check=True)
    return dict(found)


def wandb_on_a_full_disk(count: Count, mount: Path) -> dict[str, int]:
    """The folder of W&B alone is full, from the start or soon: the run ends as if there were none."""
    for n, kilobytes in enumerate((4, 40, 120)):
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", mount], check=True)
        folder = WORK[0] / f"wandb-full-{n}"
        argv = command(folder, "rope", "--run.wandb", "offline", "--data.cache", str(WORK[0] / "room-cache"))
        hook = (
            "import pathlib, os; from harness import folder; f = folder.RunFolder.prepare\n"
            'def prepare(self, *a):\n f(self, *a); os.symlink(os.environ["SMALL"], self.path / "wandb")\n'
            "folder.RunFolder.prepare = prepare; import train; from harness.messages import run_main\n"
            "run_main(train.main)"
        )
        done = subprocess.run(
            [sys.executable, "-c", hook, *argv],
            cwd=REPOSITORY,
            env=os.environ | {"SMALL": str(mount)},
            capture_output=True,
            text=True,
        )
        count.tries += 1
        ended = Ended(done.returncode, done.stdout, done.stderr, "")
        if count.check(done.returncode == 0, f"writes, W&B on {kilobytes} KB", ended):
            count.check(outcome(folder) == whole("rope").outcome, f"writes, W&B on {kilobytes} KB: another outcome")
            count.check("Traceback" not in done.stderr, f"writes, W&B on {kilobytes} KB: a traceback", ended)
        for path in mount.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return {"with W&B on it": 3}


def signals(count: Count, tries: int, draw: random.Random, short: bool) -> None:
    """SIGTERM and SIGINT at the beginning of every phase, in calls that change a file, and at random moments."""
    phases, n = Counter(), itertools.count()
    count.more = {"phases": phases}
    codes = {signal.SIGTERM: 143, signal.SIGINT: 130}

    def judge(ended: Ended, number: int, folder: Path, scheme: str, what: str) -> None:
        good = ended.code == codes[number] or (ended.code == 0 and what.endswith("moment"))
        count.check(good and "Traceback" not in ended.err, what, ended)
        count.goes_on(folder, scheme, what)
        count.tries += 1
        phases[ended.phase] += 1

    for name in PHASES[1:]:
        for number in codes if not short else [draw.choice(list(codes))]:
            for _ in range(1 if short else max(1, tries // (4 * len(PHASES)))):
                folder, scheme = WORK[0] / f"signal-{next(n)}", draw.choice(SCHEMES[:2] if short else SCHEMES)
                last = {"training": STEPS - 2, "logging": STEPS, "evaluating": 2, "saving": 5}.get(name, 0)
                moment = draw.randint(0, last)
                strike = partial(note_phases, partial(raise_signal, number), name, moment)
                ended = attempt(command(folder, scheme), strike)
                ended.phase = name
                judge(ended, number, folder, scheme, f"signals, {number.name} in {name}, time {moment}")
    for at in draw.sample(range(whole("rope").calls), min(3 if short else tries // 4, whole("rope").calls)):
        number, folder = draw.choice(list(codes)), WORK[0] / f"signal-{next(n)}"
        when = draw.choice(("before", "amid", "after"))
        strike = partial(strike_file_call, partial(raise_signal, number), at, when)
        ended = attempt(command(folder, "rope"), note_phases, strike)
        judge(ended, number, folder, "rope", f"signals, {number.name} at call {at} {when}, or another moment")
    for _ in range(0 if short else tries // 4):
        number, folder, scheme = draw.choice(list(codes)), WORK[0] / f"signal-{next(n)}", draw.choice(SCHEMES)
        running = Try(training(command(folder, scheme)), (note_phases,)).start()
        ended = running.send(number, draw, whole(scheme).phases).end()
        ended.phase = where = running.struck_in
        judge(ended, number, folder, scheme, f"signals, {number.name} in {where}, at a random moment")


def raise_signal(number: int) -> None:
    os.kill(os.getpid(), number)


def writers(count: Count, tries: int, draw: random.Random, short: bool) -> None:
    """Two processes begin on one folder at the same time: exactly one may, and the other says why not."""
    won = Counter()
    count.more = {"won": won}
    for n in range(tries):
        folder, way = WORK[0] / f"writers-{n}", ("new", "resume", "overwrite")[n % 3]
        if way != "new":
            attempt(command(folder, "rope"), partial(note_phases, kill_myself, "training", 16))
        flags = {
            "new": ["--run.resume", "false"],
            "resume": [],
            "overwrite": ["--run.resume", "false", "--run.overwrite", "true"],
        }
        argv = command(folder, "rope", *flags[way])
        reading, writing = os.pipe()

        def wait_for_both(reading: int = reading, writing: int = writing) -> None:
            os.close(writing)
            os.read(reading, 1)  # until the other end is closed, for both at once
            at_every_step(lambda: time.sleep(0.02))  # so that neither is done before the other has begun

        both = [Try(training(argv), (wait_for_both,)).start() for _ in range(2)]
        os.close(reading)
        time.sleep(draw.uniform(0.05, 0.2))
        os.close(writing)
        ended = [one.end() for one in both]
        winners = [n for n, one in enumerate(ended) if one.code == 0]
        if count.check(len(winners) == 1, f"writers, {way}: {[one.code for one in ended]}", ended[0]):
            won["first" if winners == [0] else "second"] += 1
            loser = ended[1 - winners[0]]
            said = (
                loser.code == 2
                and one_line(loser, str(folder))
                and re.search("another process|already holds", loser.err)
            )
            count.check(said, f"writers, {way}: the loser", loser)
            count.goes_on(folder, "rope", f"writers, {way}")
        count.tries += 1


def at_every_step(do: Strike) -> None:
    real = train.learning_rate
    train.learning_rate = lambda *args: (do(), real(*args))[1]


def soak(count: Count, tries: int, draw: random.Random, short: bool) -> None:
    """One run of very many steps: resident memory, open files and the folder, looked at all along."""
    for mode in ("disabled",) if short else ("disabled", "offline"):
        folder = WORK[0] / f"soak-{mode}"
        flags = ["--run.steps", str(tries), "--run.save_every", "50", "--run.eval_every", "100", "--run.wandb", mode]
        running = Try(training(command(folder, "rope", *flags))).start()
        looks: list[Look] = []
        while not running.has_ended():
            time.sleep(0.05 if short else 0.5)
            if (look := look_at(running.pid, folder)) and look.step < tries:
                looks.append(look)
        ended = running.end()
        count.tries += tries
        count.check(ended.code == 0, f"soak, {mode}", ended)
        count.check(once_and_in_order(folder, tries, 100), f"soak, {mode}: metrics are not complete")
        warm = [look for look in looks if look.step > tries / 5]
        found, wrong = not_flat(warm, MOST_IN_SHORT if short else MOST_A_STEP[mode])
        for each in wrong:
            count.check(False, f"soak, {mode}: {each}")
        lines = len((folder / "metrics.jsonl").read_text().splitlines())
        count.more[mode] = {
            "steps": tries,
            **found,
            "bytes of metrics.jsonl a line": round((folder / "metrics.jsonl").stat().st_size / lines),
            "bytes of wandb a step": round(
                sum(p.stat().st_size for p in folder.rglob("wandb/**/*") if p.is_file()) / tries
            ),
        }


# Bytes a step. Nothing that Python makes anew has less than 16, so a leak of one thing a step is more than 8. W&B
# brings threads and buffers of its own. In the few hundred steps of the short form the allocator still takes what it
# goes on with: there a page a step is too much.
MOST_A_STEP, MOST_IN_SHORT = {"disabled": 8, "offline": 64}, mmap.PAGESIZE


@dataclass
class Look:
    """What a run has at some step."""

    step: int
    memory: int  # bytes that are resident, of the run's own process
    wandbs: int  # of W&B's
    files: int  # that are open
    entries: int  # of the run folder
    size: int  # bytes in it, but for metrics.jsonl and wandb, which grow with every step


def look_at(pid: int, folder: Path) -> Look | None:
    """A look from outside, none if the run has not begun yet, or has just renamed a file."""

    def resident(of: int | str) -> int:
        return int(Path(f"/proc/{of}/statm").read_text().split()[1]) * mmap.PAGESIZE

    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1000))
            step = json.loads(file.read().splitlines()[-2])["step"]
        parents = {
            path.parent.name: path.read_text().rpartition(")")[2].split()[1]
            for path in Path("/proc").glob("[0-9]*/stat")
        }
        children = [child for child, parent in parents.items() if parent == str(pid)]
        files = len(os.listdir(f"/proc/{pid}/fd"))
        inside = [path for path in folder.rglob("*") if "wandb" not in path.parts]
        size = sum(path.stat().st_size for path in inside if path.is_file() and path.name != "metrics.jsonl")
        return Look(step, resident(pid), sum(map(resident, children)), files, len(inside), size)
    except (OSError, IndexError, ValueError):
        return None


def not_flat(looks: list[Look], most: float) -> tuple[dict[str, Any], list[str]]:
    """What many looks come to, and what of it is not as flat as promised: memory by at most so many bytes a step."""
    quarter = len(looks) // 4
    step, memory, wandbs, files = (
        [getattr(look, name) for look in looks] for name in ("step", "memory", "wandbs", "files")
    )
    own, theirs = linregress(step, memory), linregress(step, wandbs)
    entries = max(look.entries for look in looks)
    found = {
        "looks": len(looks),
        "KB of memory at least and at most": [min(memory) >> 10, max(memory) >> 10],
        "bytes a step": round(own.slope, 2),
        "standard error": round(own.stderr, 2),
        "KB of W&B's process at least and at most": [min(wandbs) >> 10, max(wandbs) >> 10],
        "bytes a step of W&B's process": round(theirs.slope, 2),
        "open files in the first and the last quarter": [
            round(mean(part), 2) for part in (files[:quarter], files[-quarter:])
        ],
        "open files at most": max(files),
        "entries of the folder at most": entries,
        "MB beside metrics.jsonl and wandb, at most": round(max(look.size for look in looks) / 2**20, 3),
    }
    wrong = []
    if own.slope > most:
        wrong.append(f"memory grew by {own.slope:.1f} bytes a step")
    if mean(files[-quarter:]) - mean(files[:quarter]) >= 1:
        wrong.append(f"open files grew from {mean(files[:quarter]):.2f} to {mean(files[-quarter:]):.2f}")
    # three checkpoints, one that is written and one that is removed, of 4 files each, and what lies beside them
    if entries > 5 * 5 + 8:
        wrong.append(f"{entries} entries in the folder")
    return found, wrong


# ---- the network -----------------------------------------------------------------------------------------------------


def scripts(folder: Path, wandb: str) -> Iterator[tuple[str, list[str]]]:
    """Every script at its defaults but for its size, and where it works."""
    small = [
        *(
            "--data.cache",
            str(folder / "cache"),
            "--model.d_model",
            "16",
            "--model.n_layer",
            "1",
            "--model.n_head",
            "2",
        ),
        *("--model.seq_len", "16", "--run.steps", "4", "--run.batch_size", "4", "--run.eval_windows", "4"),
        *("--data.max_bytes", "100000", "--run.threads", "1", "--run.wandb", wandb),
    ]
    yield "train", [*small, "--run.out", str(folder / "run")]
    yield "compare", [*small, "--schemes", "rope", "--jobs", "1", "--multiples", "1", "--out", str(folder / "compare")]
    yield "evaluate", [str(folder / "run"), "--lengths", "16", "--protocols", "fixed"]
    yield "generate", [str(folder / "run"), "--prompt", "In the", "--tokens", "4"]


LOCAL = re.compile(r"127\.|::1$|localhost$|0\.0\.0\.0$|::$")


def refuse_network(told: Path) -> None:
    """From now on whatever Python asks of the network, this machine apart, is noted and refused."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("socket.getaddrinfo", "socket.gethostbyname"):
            host = str(args[0])
        elif event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(args[1], tuple):
            host = str(args[1][0])
        else:
            return
        if not LOCAL.match(host):
            with builtins.open(told, "a") as file:
                file.write(f"{event} {host}\n")
            raise PermissionError(errno.EACCES, "no network here")

    sys.addaudithook(hook)


def reach_out(_: list[str] | None) -> None:
    """What the scripts must not do: to see that it would be noticed."""
    import socket

    for ask in (lambda: socket.create_connection(("192.0.2.1", 80), 1), lambda: socket.getaddrinfo("example.org", 80)):
        try:
            ask()
        except OSError:
            continue


def offline(count: Count, tries: int, draw: random.Random, short: bool) -> None:
    """Every script with sockets refused, and as real processes in a namespace without network, W&B offline."""
    told = WORK[0] / "told"
    guard = partial(refuse_network, told)
    Try(reach_out, (guard,)).start().end()
    seen = told.read_text().splitlines()
    count.check(len(seen) == 2, f"offline: the guard saw {seen}")
    told.unlink()
    mains = {"train": train.main, "compare": compare.main, "evaluate": evaluate.main, "generate": generate.main}
    (WORK[0] / "offline").mkdir()
    for name, argv in scripts(WORK[0] / "offline", "disabled"):
        ended = Try(mains[name], (guard,), argv).start().end()
        count.tries += 1
        asked = told.read_text().splitlines() if told.exists() else []
        count.check(ended.code == 0, f"offline, {name} with sockets refused", ended)
        count.check(not asked, f"offline, {name} asked for {asked}")
    count.more = {"sockets refused": count.tries}
    if not short:
        count.more["in a namespace without network"] = in_a_namespace(count)


def in_a_namespace(count: Count) -> int | str:
    """The scripts as real processes without any network, all that they and their children ask of it traced."""
    folder = WORK[0] / "namespace"
    folder.mkdir()
    trace = folder / "trace"
    outside = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    watch = ["strace", "-f", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]
    if subprocess.run([*outside, *watch, "true"], capture_output=True).returncode:
        return "skipped: there is no unshare, or no strace, that may"

    def asked(words: list[str]) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        done = subprocess.run([*outside, *watch, *words], cwd=REPOSITORY, capture_output=True, text=True)
        calls = re.findall(r"(?:sin_addr=inet_addr|inet_pton\(AF_INET6, )\(?\"([^\"]+)\"", trace.read_text())
        return done, [address for address in calls if not LOCAL.match(address)]

    _, seen = asked([sys.executable, "-c", "import socket; socket.socket().connect_ex(('192.0.2.1', 80))"])
    count.check(seen == ["192.0.2.1"], f"offline: the trace saw {seen}")
    done_scripts = 0
    for name, argv in scripts(folder, "offline"):
        done, addresses = asked([sys.executable, f"{name}.py", *argv])
        count.tries += 1
        done_scripts += 1
        ended = Ended(done.returncode, done.stdout, done.stderr, "")
        count.check(done.returncode == 0, f"offline, {name}.py in a namespace", ended)
        count.check(not addresses, f"offline, {name}.py asked for {sorted(set(addresses))}")
        count.check("W&B could not" not in done.stderr, f"offline, {name}.py in a namespace: W&B", ended)
    count.check(list(folder.glob("run/wandb/offline-run-*/*.wandb")), "offline: W&B left nothing")
    return done_scripts


# ---- all of them -----------------------------------------------------------------------------------------------------

PROMISES = {
    "kills": "A run that is killed (`kill -9`), at any moment and however often, resumes and ends the same bit for bit",
    "damage": "Damage to a file of a checkpoint is detected and named, and the one before it is used; the damaged "
    "weights of a finished run are not loaded",
    "writes": "Whichever write fails, the last checkpoint stays complete and is named in one line, exit code 3",
    "signals": "SIGTERM and SIGINT end a run with 143 and 130 in every phase, and it resumes bit for bit",
    "writers": "Of two processes that start in one folder at once, one trains and the other is refused in one line",
    "soak": "Memory, open files and the folder do not grow, however long a run is",
    "offline": "No script uses the network at its defaults",
}


def table(figures: dict[str, Any]) -> str:
    """What docs/reliability.md says of the campaigns: promise, how it is tested, tries, losses."""
    rows = ["| promise | how it is tested | tries | losses |", "| --- | --- | ---: | ---: |"]
    for name, promise in PROMISES.items():
        one = figures.get(name)  # none: it has not been run yet
        form = "short form so far: " if one and one["form"] == "short" else ""
        how = form + tested(name, one) if one else "not run yet"
        rows.append(f"| {promise} | {how} | {one['tries'] if one else 0:,} | {one['losses'] if one else 'unknown'} |")
    return "\n".join(rows)


def tested(name: str, one: dict[str, Any]) -> str:
    """How a campaign tested its promise, in words and figures."""

    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items(), key=lambda item: -item[1]))

    if name == "kills":
        return (
            f"{one['runs']} runs of {len(one['schemes'])} schemes, killed {listed(one['ways'])}; "
            f"{one['after a first checkpoint']} after a first checkpoint; by phase {listed(one['phases'])}"
        )
    if name == "damage":
        return f"{one['files']} files of {one['bytes']:,} bytes: {listed(one['kinds'])}"
    if name == "writes":
        disk = one.get("full disk", "skipped")
        disk = listed(disk) if isinstance(disk, dict) else disk
        return f"failing calls: {listed(one['codes'])}; {listed(one['phases'])}; a real full disk: {disk}"
    if name == "signals":
        return f"by phase: {listed(one['phases'])}"
    if name == "writers":
        return f"both started at the same moment, on a new, a resumed and a replaced run; won by {listed(one['won'])}"
    if name == "soak":
        return "; ".join(soaked(mode, one[mode]) for mode in ("disabled", "offline") if mode in one)
    cut = one.get("in a namespace without network", "skipped")
    return (
        f"{one['sockets refused']} scripts with sockets refused; as processes in a namespace without network, with W&B "
        f"offline and every call of theirs and of their children traced: {cut}"
    )


def soaked(mode: str, run: dict[str, Any]) -> str:
    """What one run of the soak came to, in words and figures."""
    files = " and then ".join(map(str, run["open files in the first and the last quarter"]))
    low, high = run["KB of memory at least and at most"]
    wandb = ""
    if mode != "disabled":
        least, most = run["KB of W&B's process at least and at most"]
        slope = run["bytes a step of W&B's process"]
        wandb = f"; W&B's own process between {least:,} and {most:,} KB, {slope:+.1f} bytes a step"
    return (
        f"{run['steps']:,} steps, W&B {mode}: memory between {low:,} and {high:,} KB, {run['bytes a step']:+.2f} ± "
        f"{run['standard error']:.2f} bytes a step (slope and its standard error over {run['looks']} looks after the "
        f"first fifth; one page is 4 KB){wandb}; open files {files}, "
        f"at most {run['entries of the folder at most']} entries and "
        f"{run['MB beside metrics.jsonl and wandb, at most']} MB beside metrics.jsonl "
        f"({run['bytes of metrics.jsonl a line']} bytes a line) and wandb ({run['bytes of wandb a step']} bytes a step)"
    )


BEGIN, END = "<!-- made by tests/long/faults.py -->", "<!-- end -->"


def publish(figures: dict[str, Any]) -> None:
    """Put the figures where readers see them: results/faults.json and the table of docs/reliability.md."""
    file, page = REPOSITORY / "results" / "faults.json", REPOSITORY / "docs" / "reliability.md"
    there = (json.loads(file.read_text()) if file.exists() else {}) | figures
    write_whole(file, json.dumps(there, indent=2) + "\n")
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    write_whole(page, before + BEGIN + "\n" + table(there) + "\n" + END + rest.split(END, 1)[1])


CAMPAIGNS = {  # with their tries in the long form, and in the short one of `make test`
    "kills": (kills, 100, 12),
    "damage": (damage, 0, 25),
    "writes": (writes, 200, 8),
    "signals": (signals, 100, 1),
    "writers": (writers, 20, 2),
    "soak": (soak, 20_000, 400),
    "offline": (offline, 0, 0),
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the campaigns named on the command line, all of them if none is, and count."""
    parser = Parser(prog="faults.py", description=__doc__)
    parser.add_argument("campaigns", type=str, nargs="*", default=[], help=", ".join(CAMPAIGNS))
    parser.add_argument("--tries", type=int, default=None, help="of each campaign; of soak, steps")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--short", type=bool, default=False, help="the form of seconds")
    parser.add_argument("--publish", type=bool, default=False, help="whether the page and results/faults.json follow")
    parser.add_argument(
        "--out", type=str, default=None, help="a JSON file, in which these campaigns replace their old figures"
    )
    asked = parser.parse_args(argv)
    for name in asked.campaigns:
        if name not in CAMPAIGNS:
            raise BadInput(f"{name} is none of {', '.join(CAMPAIGNS)}{messages.nearest(name, CAMPAIGNS)}")
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would not be there in a forked process
    figures: dict[str, Any] = {}
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a disk's fsync would take most of the time
    with tempfile.TemporaryDirectory(prefix="faults-", dir=memory) as folder:
        WORK[:] = [Path(folder)]
        pick = random.Random(0)
        (WORK[0] / "corpus.txt").write_text(" ".join(pick.choice(WORDS) for _ in range(3000)) + "\n")
        with contextlib.redirect_stdout(None):  # once here, so that all that is imported late is there in every try
            training(command(WORK[0] / "first", "rope"))(None)
        for name in asked.campaigns or CAMPAIGNS:
            campaign, long, short = CAMPAIGNS[name]
            began, cpu, stop = time.monotonic(), sum(os.times()[:4]), None
            tries = asked.tries or (short if asked.short else long)
            count = Count()
            try:
                campaign(count, tries, random.Random(f"{asked.seed} {name}"), asked.short)
            except (KeyboardInterrupt, SystemExit) as error:  # what is counted by then is kept
                count.more["stopped"], stop = "before it was through", error
            figures[name] = {
                **count.as_json(),
                "form": "short" if asked.short else "long",
                "seed": asked.seed,
                "seconds": round(time.monotonic() - began),
                "CPU seconds": round(sum(os.times()[:4]) - cpu),
            }
            print(f"{name}: {json.dumps(figures[name])}", flush=True)
            if asked.out:
                there = json.loads(Path(asked.out).read_text()) if Path(asked.out).exists() else {}
                write_whole(
                    Path(asked.out), json.dumps({**there, name: figures[name], "versions": versions()}, indent=2) + "\n"
                )
            if stop:
                raise stop
    if asked.publish:
        publish({**figures, "versions": versions()})
    if lost := sum(one["losses"] for one in figures.values()):
        raise messages.RunFailed(f"{lost} losses")
    return figures


if __name__ == "__main__":
    messages.run_main(main)
