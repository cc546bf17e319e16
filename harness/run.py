"""Everything about a training run that is not its loop: folder, device, processes, evaluation, logs and signals.

A `Run` is all that train.py holds of the harness; its function `train` shows in which order its methods are called.
"""

import math
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from data import Corpus, DataConfig
from harness import devices, progress
from harness.curves import Curves
from harness.folder import RunFolder, refuse_taken, verify_finished
from harness.messages import BadInput, RunFailed, silence, tell
from harness.processes import ALONE, World, gather_model, gather_tensor, sum_gradients
from harness.provenance import chain_sha256, shared_sha256, versions
from harness.run_options import RunConfig, fit_vocabulary
from harness.runs import weights_sha256
from harness.scoring import Score, score
from harness.signals import Signals
from harness.tasks import TaskCorpus
from harness.tuning import load_start, refuse_other_tokenizer, start_from
from model import ModelConfig, Transformer


class Run:
    """One training run, on one of its processes.

    Args:
        data_config: the corpus that is asked for.
        model_config: the model that is asked for.
        config: the section run; its name and out are filled in.
        world: the processes of the run.

    Attributes:
        result: what result.json says, once the run is finished; None until then.
        model: what trains: the model itself, or the same one compiled or spread over several processes.
        autocast: makes the context that gives a forward pass its precision.
        state: how far the run got. It is saved in every checkpoint.

    Raises:
        BadInput: for what cannot be done; nothing is written then.
    """

    def __init__(
        self, data_config: DataConfig, model_config: ModelConfig, config: RunConfig, world: World = ALONE
    ) -> None:
        self.config, self.world, self.together = config, world, world.together
        self.configs = {"data": data_config, "model": model_config, "run": config}
        self.old = world.together(load_start, config.init_from) if config.init_from else None
        self.result = world.lead(self.find_finished)
        if self.result is None:
            self.device, self.precision, self.autocast = world.together(self.choose_device)

    # ---- before the loop ---------------------------------------------------------------------------------------------

    def find_finished(self) -> dict[str, Any] | None:
        """What result.json says if the run to resume has already finished. Raises BadInput for an unusable folder."""
        out = Path(self.config.out)
        if self.old and out.resolve() == self.old.path.resolve():
            raise BadInput(f"--run.out {out} holds the run that --run.init_from starts from: name another folder")
        for outer in {*out.absolute().parents, *Path(os.path.realpath(out)).parents}:
            if (outer / "config.yaml").is_file() and (outer / "metrics.jsonl").is_file():
                raise BadInput(f"--run.out {out} lies inside another run, {outer}: name a folder outside of it")
        refuse_taken(self.configs)
        return verify_finished(out, self.configs) if self.config.resume else None

    def choose_device(self) -> tuple[torch.device, str, devices.Autocast]:
        """This process's device, its precision there, and what makes the context of a forward pass."""
        config, size = self.config, self.world.size
        if config.batch_size < size:
            wrong = f"--run.batch_size {config.batch_size} is below the {size} processes"
            raise BadInput(f"{wrong}, and each needs a row: raise it, or start fewer")
        if threads := self.world.choose_threads(config.threads):
            torch.set_num_threads(threads)
        device = self.world.choose_device(devices.pick_device(config.device))
        if config.compile:
            devices.refuse_without_compiler("--run.compile", device)
        return device, *devices.pick_precision(config.precision, device)

    def complete_model_config(self, corpus: Corpus | TaskCorpus, jobs: int = 1) -> ModelConfig:
        """The config of the model with the vocabulary of the corpus.

        Raises:
            BadInput: if memory cannot hold so many `jobs` of this kind at a time.
        """
        if self.old:
            refuse_other_tokenizer(self.old, corpus.tokenizer)
        config, asked = self.config, self.configs["model"]
        fitting = max(1, 2048 // asked.seq_len) if self.device.type == "cpu" else config.batch_size
        self.corpus, self.rows = corpus, config.micro_batch_size or min(fitting, config.batch_size)
        fitted = fit_vocabulary(asked, corpus)
        shards = self.world.size if config.shard else 1
        devices.refuse_too_large(fitted, config.batch_size, self.rows, self.device, shards, jobs)
        return fitted

    def place(self, model: Transformer) -> None:
        """Give the model the weights that it starts from, its device, and its part of several processes."""
        if self.old:
            self.together(start_from, self.old, model, self.config.extend_learned)
        self.bare = model.to(self.device)
        self.configs["model"] = model.config  # which knows the vocabulary
        self.facts = {"data_sha256": self.corpus.sha256, "precision": self.precision}
        self.facts["shared_init_sha256"] = shared_sha256(model)
        asked = {f"--{part}.{name}": v for part, each in self.configs.items() for name, v in asdict(each).items()}
        self.world.refuse_unlike({**asked, **self.facts})
        self.model = self.world.spread(model, self.device, self.config.shard, self.config.compile)

    @contextmanager
    def begin(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Take the folder, go on from its last checkpoint, and when the loop has ended write what came out.

        A run that was told to stop has finished its step and saved when KeyboardInterrupt or SystemExit is raised.
        """
        config = self.config
        self.folder = RunFolder(self.configs, self.facts, self.world, self.bare)
        several = {"processes": self.world.size, "rows_by_rank": self.world.shares(config.batch_size)}
        self.ranks = several if self.world.size > 1 else {}
        self.state = {"step": 0, "steps": config.steps, "skipped": 0, "batches_sha256": "", "seconds": 0.0}
        self.state |= {"looked": 0.0, **self.facts}
        if self.old:
            self.state |= {"init_from": str(self.old.path), "init_from_sha256": weights_sha256(self.old.path)}
        self.state |= self.folder.last.state if self.folder.last else {"run_id": uuid.uuid4().hex}
        machine, was = progress.describe_machine(self), self.state.get("machine")
        if was not in (None, machine):
            tell(f"{config.out} ran on {was} so far and goes on on {machine}: sums round otherwise")
        self.state["machine"] = machine
        self.optimizer, self.curves, self.status, self.signals = optimizer, None, "failed", Signals()
        try:
            self.folder.result("running", **self.state, **self.ranks)
            print(progress.describe_plan(self), flush=True)
            everything = {name: asdict(part) for name, part in self.configs.items()}
            mode = config.wandb if self.world.leads else "disabled"
            self.curves = Curves(mode, self.folder.path, config.name, everything, self.state.get("wandb_id"))
            self.state["wandb_id"] = self.curves.run_id
            if self.folder.last:
                self.folder.last.restore(self.bare, optimizer)
                self.folder.last = None  # its memory is needed
            yield
            self.finish()
        except BaseException as error:
            self.fail(error)
        finally:
            if self.curves is not None:
                self.curves.finish(exit_code=int(self.status != "finished"))
            self.folder.close()
            self.signals.let_go()
        if self.world.leads:
            print(progress.describe_outcome(self), flush=True)

    # ---- in the loop -------------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """The remaining steps of 0 .. steps - 1, with a progress bar. A signal to stop takes effect between steps."""
        config, self.left = self.config, range(self.state["step"], self.config.steps)
        self.began = time.perf_counter() - self.state["seconds"]
        self.bar = tqdm(self.left, config.name, initial=self.left.start, total=config.steps, unit="step", disable=None)
        self.signals.between_steps = True
        for step in self.bar:
            self.step_began = time.perf_counter()
            yield step
        self.signals.between_steps = False
        self.signals.leave(self.world.merge_signals(self.signals)[0])

    def micro_batches(self, inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's rows of a batch, (B, T) each, in parts that go through the model at once, on its device."""
        rows = self.rows * max(1, len(inputs) // self.config.batch_size)  # more where a task's episodes are short
        parts = self.world.parts(inputs, targets, rows)
        for i, (x, y) in enumerate(parts, 1):
            with sum_gradients(self.model, now=i == len(parts)):
                yield x.to(self.device), y.to(self.device)

    def sum(self, value: float) -> float:
        """The sum of a number over all processes."""
        return self.world.reduce(value)[0]

    gather = staticmethod(gather_tensor)

    def is_finite(self, step: int, loss: float, norm: float) -> bool:
        """Whether a step's loss and gradient are finite. If they are not, --run.on_nan skip leaves out the update.

        Raises:
            RunFailed: if they are not, with --run.on_nan stop; the weights stay as they are.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            return True
        if self.config.on_nan == "stop":
            seconds = time.perf_counter() - self.began
            self.folder.log(step + 1, "train", loss=loss, grad_norm=norm, seconds=seconds)
            self.world.end(RunFailed(progress.describe_bad_step(self, step, loss, norm)))
        self.state["skipped"] += 1
        tqdm.write(f"  step {step + 1:>5}  skipped: the loss is {loss:g} and the gradient's norm {norm:g}")
        return False

    def after(self, step: int, inputs: Tensor, targets: Tensor, **values: float) -> None:
        """Log a step, 0 .. steps - 1, of a batch, (B, T) each; when it is time, evaluate and save; obey signals.

        The values are what to log, the loss and grad_norm among them.
        """
        config, state, now = self.config, self.state, time.perf_counter()
        state |= {"step": step + 1, "seconds": now - self.began}
        state["batches_sha256"] = chain_sha256(state["batches_sha256"], inputs, targets)
        scored = targets[targets != -100]  # (N,)
        loss, bytes_scored = values["loss"], int(self.corpus.token_bytes[scored].sum())
        self.log(
            "train",
            loss=loss,
            bits_per_byte=Score(loss * len(scored), len(scored), bytes_scored).bits_per_byte,
            **{name: value for name, value in values.items() if name != "loss"},
            tokens_per_second=progress.per_second(inputs.numel(), now - self.step_began),
            seconds=now - self.began,
            **({} if math.isfinite(loss + values["grad_norm"]) else {"skipped": state["skipped"]}),
        )
        self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        if step == self.left.start + 2:  # the first steps are slower
            minutes, seconds = divmod(round((now - self.step_began) * (config.steps - step - 1)), 60)
            tqdm.write(f"  step {step + 1:>5}  about {minutes} min {seconds} s to go")
        last = step + 1 == config.steps
        best = self.evaluate() if last or (step + 1) % config.eval_every == 0 else False
        stop, save = self.world.merge_signals(self.signals)
        if best or last or save or stop or (step + 1) % config.save_every == 0:
            self.signals.save = False
            self.folder.checkpoint(self.bare, self.optimizer, state)
        self.signals.leave(stop)

    def log(self, split: str, **values: float) -> None:
        """Log values of the last step, to metrics.jsonl and to W&B."""
        self.folder.log(self.state["step"], split, **values)
        self.curves.log(self.state["step"], split, **values)

    def evaluate(self) -> bool:
        """Score some windows of the validation split, and return whether this is the lowest loss so far."""
        began = time.perf_counter()
        val = self.score("validation", self.config.eval_windows)
        now = time.perf_counter()
        self.state["looked"] += now - began
        self.state["seconds"] = now - self.began
        self.log("val", loss=val.loss, bits_per_byte=val.bits_per_byte, seconds=self.state["seconds"])
        figures = progress.describe_figures(val.bits_per_byte, val.accuracy)
        tqdm.write(f"  step {self.state['step']:>5}  validation loss {val.loss:.4f}, {figures}")
        if best := val.loss < self.state.get("best", {"loss": math.inf})["loss"]:
            self.state["best"] = {"step": self.state["step"], "loss": val.loss}
        return best

    def score(self, split: str, count: int | None = None) -> Score:
        """The score of a split in windows of the trained length. It draws nothing, so it cannot change training."""
        self.model.eval()
        # a sharded model as any function of tokens: a cache, which long windows would go through, cannot be sharded
        model = (lambda tokens: self.model(tokens)) if self.config.shard else self.model
        batches = self.corpus.windows(split, self.bare.config.seq_len, count)
        windows = (part for batch in batches for part in self.world.parts(*batch, rows=len(batch[0])))
        result = score(model, windows, self.corpus.token_bytes, self.device, self.autocast)
        self.model.train()
        nats, *counts = self.world.reduce(result.nats, result.targets, result.bytes, result.right)
        return Score(nats, *map(int, counts))

    # ---- after the loop ----------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Score the whole validation and test splits, and write the weights and the result."""
        seconds = time.perf_counter() - self.began
        val, test = self.score("validation"), self.score("test")
        if not math.isfinite(val.loss):
            why = f"the validation loss is {val.loss:g} after the last step, {self.state['skipped']} steps were skipped"
            self.world.end(RunFailed(why))
        tokens = self.config.steps * self.config.batch_size * self.bare.config.seq_len
        outcome = {
            **self.state,
            **self.ranks,
            "parameters": sum(p.numel() for p in self.bare.parameters()),
            "position_parameters": sum(p.numel() for p in self.bare.position.parameters()),
            "val_loss": val.loss,
            "bits_per_byte": val.bits_per_byte,
            **({"val_accuracy": val.accuracy} if isinstance(self.corpus, TaskCorpus) else {}),
            "test_loss": test.loss,
            "test_bits_per_byte": test.bits_per_byte,
            "seconds": seconds,
            "tokens_per_second": progress.per_second(tokens, seconds - self.state["looked"]),
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
        self.bare = gather_model(self.bare)
        outcome["weights_sha256"] = self.world.lead(self.folder.save, self.bare, self.corpus.tokenizer)
        self.folder.result("finished", **outcome)
        self.status, self.result = "finished", {"status": "finished", **outcome}

    def fail(self, error: BaseException) -> NoReturn:
        """Say in result.json how the run ended, and raise its error, as RunFailed if the machine is the cause."""
        saved = self.folder.saved
        saved = f"the last whole checkpoint is of step {saved}" if saved else "there is no checkpoint yet"
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self.status = "interrupted"
            how_far = f"interrupted at step {self.state['step']} of {self.config.steps}; {saved}"
            with suppress(OSError), tqdm.external_write_mode(file=sys.stderr):  # OSError: a terminal that was closed
                tell(f"{how_far}: go on with --run.resume true")
        with suppress(OSError):  # a full disk is said once, below
            self.folder.result(self.status, **self.state, why=" ".join(str(error).split()) or self.status)
        if isinstance(error, BrokenPipeError):
            silence()
        if why := progress.describe_failure(self, error, saved):
            raise RunFailed(why) from error
        raise error
