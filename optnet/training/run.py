"""One run, from its job to its summary: the folder, the epochs, the best checkpoint, the end. Prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from optnet.data import Loader
from optnet.data.loading import seed_of
from optnet.errors import CheckpointError, RequestError, reason
from optnet.networks.statistics import synchronise
from optnet.training import checkpoint, distributed, opening, shares, trainers
from optnet.training.checkpoint import Checkpoint
from optnet.training.course import Course
from optnet.training.environment import keeping_random_state, peak_memory, random_state, set_random_state, versions
from optnet.training.folder import write_json, write_whole
from optnet.training.interruption import Interrupted, Stopped, signals
from optnet.training.job import Job
from optnet.training.logbook import Logbook, Silence
from optnet.training.loop import Diverged, Observer, Progress, train_epoch
from optnet.training.monitoring.monitor import Monitor
from optnet.training.opening import Opened
from optnet.training.profiling import Profiling
from optnet.training.scoring import Score, evaluate
from optnet.training.screen import Screen, screen
from optnet.training.selection import judge

AGREE = 8
"""Steps between two all-reduces in which several processes agree whether to stop."""
NEWEST = ", the last: there is no validation split"


@dataclass(frozen=True)
class Finished:
    """What a run that came to its end has found; the scores are accuracies in per cent.

    Attributes:
        validation: of the best checkpoint; this is what a search over settings may use. None without a validation
            split: then the checkpoint is that of the last epoch.
        test: of the same checkpoint.
    """

    folder: Path
    validation: float | None
    test: float


def train(job: Job, say: Callable[[str], None] = lambda line: None) -> Finished:
    """Trains, keeps the best checkpoint by validation accuracy, scores it once on the test split.

    Without a validation split the checkpoint of the last epoch takes its place.

    Args:
        say: shows a line on the screen.

    Raises:
        RequestError: the run's folder cannot be written, another process uses it, or what was saved does not fit.
        Stopped: the loss is not finite, an image cannot be read, the disk is full, or another process ended.
        Interrupted: a signal came; where the run stands is saved.
    """
    with signals() as caught:
        run = Run(job, say)
        try:
            shows = job.options.progress and distributed.is_primary()
            total, epochs = run.course.total, run.course.epochs
            with screen(shows, run.logbook.say, total, run.progress.updates, epochs, distributed.size()) as shown:
                run.epochs(caught, shown)
                return run.finish(caught)
        except Diverged as error:
            raise run.stopped(f"{error}; a lower lr may help") from None
        except (RequestError, OSError) as error:  # an image or the best checkpoint that cannot be read; a full disk
            raise run.stopped(str(error)) from None
        except RuntimeError as error:
            if not distributed.is_lost_peer(error):
                raise
            raise run.stopped("another process ended") from None
        finally:
            run.close()


class Run:
    """A run of a job: the trainer, the length, the progress and the folder, which it makes or opens.

    Several processes do the same, each with its share of every batch; only the first one writes. Within an epoch,
    ``progress`` has the sums of this process alone.

    Attributes:
        identity: what no other run has in its configuration and checkpoints.
        own: this process's sums of the epoch: loss, right answers, images.

    Raises:
        CheckpointError: what was saved does not fit the run. ConfigError: its folder cannot be written, or another
            process uses it. Nothing in the folder has changed then.
    """

    def __init__(self, job: Job, say: Callable[[str], None]) -> None:
        self.job, self.options, self.resumed = job, job.options, job.resumed
        primary = distributed.is_primary()
        set_random_state(job.device, job.random)
        self.model = job.model.to(job.device)
        if distributed.size() > 1 and job.batch_norm == "synchronise":
            self.model = synchronise(self.model)
        distributed.broadcast_model(self.model)
        course = self._course(self.options.batch_size, training=True)
        self.trainer = trainers.build(job.recipe, self.model, course.total)
        full_batch = self.trainer.full_batch
        self.course = self._course(len(job.data.train), training=False) if full_batch else course
        held_out = len(job.data.validation) > 0
        self.validation = job.loader("validation", 4 * self.options.batch_size) if held_out else None
        self.progress = Progress()
        if self.resumed is not None:
            self._go_on(self.resumed)
        self.logbook: Logbook | Silence = Silence()
        self.observers: list[Observer] = []
        self.opened = distributed.together(lambda: self._open(say) if primary else None)
        if self.opened is not None:
            self.logbook = self.opened.logbook
        known = self.opened and (self.opened.folder, self.opened.run)
        self.folder, self.identity = distributed.broadcast_object(known)
        if not primary:
            self._draw()
        self.own = (self.progress.loss_sum, self.progress.correct, self.progress.count)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.unreadable: set[str] = set()

    def _open(self, say: Callable[[str], None]) -> Opened:
        if self.job.folder is None or self.resumed is None:
            return opening.make(self.job.place, self.job.label, say)
        return opening.go_on(self.job.folder, self.resumed, say)

    def _draw(self) -> None:
        """Random numbers of the processes other than the first: of each step its own, so that none has to be saved."""
        torch.manual_seed(seed_of(self.options.seed, distributed.rank(), self.progress.updates))

    def _go_on(self, saved: Checkpoint) -> None:
        """Restores the state of a checkpoint.

        Raises:
            CheckpointError: it does not fit this run.
        """
        try:
            self.progress = Progress(**saved.progress)
            self._check_epoch(saved.epoch)
            self.trainer.load_state_dict(saved.trainer)
            if getattr(self.trainer, "updates", self.progress.updates) != self.progress.updates:
                raise ValueError(f"its trainer has not done the run's {self.progress.updates} steps")
            shares.restore(saved.shares, self.progress, self.trainer)
            set_random_state(self.job.device, saved.rng)
        except CheckpointError:
            raise
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            why = reason(error)
            raise CheckpointError(f"{self.job.folder}: its last checkpoint does not fit its run ({why})") from None

    def _epoch(self) -> dict[str, int]:
        """What determines the batches of the current epoch."""
        epoch = min(self.progress.epoch, self.course.epochs - 1)
        loader = self.course.loader(epoch)
        return {"images": loader.count, "batch_size": loader.batch_size, "steps": self.course.steps[epoch]}

    def _check_epoch(self, saved: dict[str, int]) -> None:
        """Checks that an epoch that was stopped midway would go on with the same batches.

        Raises:
            CheckpointError: they would be other batches.
        """
        for key, now in self._epoch().items() if self.progress.batch else ():
            if now != saved[key]:
                raise CheckpointError(
                    f"{self.job.folder} was stopped within an epoch with {key}={saved[key]}, which would "
                    f"continue with {now}; end that epoch with the epochs and data it had"
                )
        if self.progress.batch > saved["steps"]:
            raise ValueError(f"{self.progress.batch} batches of an epoch of {saved['steps']} steps are done")

    def _course(self, batch_size: int, training: bool) -> Course:
        options = self.options
        return Course(
            self.job.loader("train", batch_size, training=training), options.epochs,
            milestones=options.batch_milestones, growth=options.batch_growth, limit=options.limit_batches,
            max_steps=options.max_steps,
        )  # fmt: skip

    def _watch(self) -> None:
        """Makes what watches the run: what its trainer needs, the monitor and the profiler."""
        job, device = self.job, self.job.device
        self.observers += trainers.observers(job.recipe, self.course)
        if isinstance(self.logbook, Logbook):
            monitor = Monitor(
                job.monitor, self.logbook.events, job.data, device, lambda: peak_memory(device), skip=job.loading.skip,
                lr=job.recipe.lr, settings=job.settings,
            )  # fmt: skip
            self.observers.append(monitor)
            if self.options.profile:
                self.observers.append(Profiling(self.folder, self.options.profile))

    def _announce(self) -> None:
        """Says what is trained, on what, where."""
        job = self.job
        if job.note:
            self.logbook.say(job.note)
        described = f"{job.title}, {self.parameters:,} parameters, on {job.device}"
        together = f" in {distributed.size()} processes" if distributed.size() > 1 else ""
        self.logbook.say(f"{job.data}; {described}{together}; in {self.folder}")
        if self.trainer.full_batch:
            ignored = "batch_size, lr, optim, schedule and data.augment do not count"
            name = job.recipe.options.name
            self.logbook.say(f"trainer={name} takes all training images at once, as they are: {ignored}")

    def epochs(self, caught: list[int], shown: Screen) -> None:
        """Trains to the end, or to a signal in ``caught``.

        Raises:
            Interrupted: a signal came; where the run stands is saved.
        """

        def after_batch(progress: Progress) -> bool:
            shown.advance(progress)
            if not distributed.is_primary():
                self._draw()
            if distributed.size() == 1:
                return bool(caught)
            return progress.updates % AGREE == 0 and bool(distributed.all_reduce_max(max(caught, default=0)))

        self._announce()
        if self.resumed is None or self.job.note:
            self.save(checkpoint.LAST, keep=None)  # there is none yet, or it is damaged
        if distributed.is_primary():  # from now on the run can go on whenever it is killed
            write_json(self.folder / "data.json", self.job.data.record.summary(self.job.data.classes))
            write_whole(self.folder / "config.yaml", f"run: {self.identity}\n{self.job.record}")
            opening.record(self.folder, self.job.origin | {"steps": self.course.total}, self.job.sources)
        with keeping_random_state(self.job.device):
            self._watch()
            for observer in self.observers:
                observer.on_start(self.progress, self.trainer)
        while self.progress.epoch < self.course.epochs and not self._has_stalled():
            epoch, updates, steps = self.progress.epoch, self.progress.updates, self.course.steps[self.progress.epoch]
            loader = self.course.loader(epoch)
            finished = train_epoch(
                self.trainer, loader, steps, self.progress, on_batch=after_batch,
                shown=partial(shown.show, steps=steps), observers=self.observers,
            )  # fmt: skip
            self._pool()
            if self.progress.updates > updates:
                self.save(checkpoint.LAST)  # scoring may take long
            self._heed(caught)
            if finished:
                self._end_epoch()
                self._heed(caught)

    def _heed(self, caught: list[int]) -> None:
        """Raises:
        Interrupted: one of the processes caught a signal; where the run stands has been saved.
        """
        if stop := distributed.all_reduce_max(max(caught, default=0)):
            self.logbook.say(f"interrupted and saved; {self.way_on()}")
            raise Interrupted(stop, said=True)

    def _pool(self) -> None:
        """Sums up the processes' progress. Only the first process keeps the images of the whole run."""
        progress = self.progress
        self.own = (progress.loss_sum, progress.correct, progress.count)
        sums = [progress.loss_sum, progress.correct, progress.count, progress.images]
        pooled = torch.tensor(sums, dtype=torch.float64)
        distributed.all_reduce_sum(pooled)
        progress.loss_sum = float(pooled[0])
        progress.correct, progress.count, images = (int(total) for total in pooled[1:])
        progress.images = images if distributed.is_primary() else 0

    def _has_stalled(self) -> bool:
        """Whether the validation score has not been better for ``patience`` epochs."""
        patience = self.options.patience
        return patience is not None and self.progress.epoch - self.progress.best_epoch >= patience

    def _end_epoch(self) -> None:
        progress = self.progress
        train_loss, train_top1 = progress.loss_sum / progress.count, 100 * progress.correct / progress.count
        rate = progress.count / max(progress.epoch_seconds, 1e-9)
        progress.epoch += 1
        progress.batch = progress.count = progress.correct = 0
        progress.loss_sum = progress.epoch_seconds = 0.0
        self.own = (0.0, 0, 0)
        for observer in self.observers:
            observer.on_epoch(progress, self.trainer)
        distributed.share_buffers(self.trainer.model, self.job.batch_norm)
        score = None if self.validation is None else self._score(self.validation)
        if score is None:
            self._say_left_out(set())
        try:
            verdict = judge(score, progress, self.trainer.model)
        except Diverged:
            if distributed.is_primary():
                checkpoint.take_back(self.folder)
            raise
        scalars = {
            "train/loss": train_loss, "train/top1": train_top1, **verdict.scalars, **self.trainer.scalars(),
            "time/images_per_second": rate, "time/train_seconds": progress.seconds,
        }  # fmt: skip
        self.logbook.epoch(progress.epoch, scalars, self.trainer.model)
        trained = f"train loss {train_loss:.4f} top-1 {train_top1:.2f} %"
        self.logbook.say(f"epoch {progress.epoch}/{self.course.epochs}  {trained}{verdict.said}")
        if verdict.kept:
            self.save(checkpoint.BEST)
        self.save(checkpoint.LAST)

    def _score(self, loader: Loader) -> Score:
        """The score of the trainer's model. Says which images were left out since the last score."""
        score = evaluate(self.trainer.model, loader, len(self.job.data.classes))
        self._say_left_out(loader.unreadable)
        return score

    def _say_left_out(self, unreadable: set[str]) -> None:
        found = distributed.all_gather_union(unreadable | self.course.loader(0).unreadable)
        for line in sorted(found - self.unreadable):
            self.logbook.say(f"left out: {line}")
        self.unreadable |= found

    def save(self, name: str, keep: str | None = checkpoint.BEFORE) -> None:
        """Writes a checkpoint, in the first of all processes. What a last checkpoint replaces is kept as ``keep``."""
        gathered, progress = shares.gather(self.own, self.trainer), self.progress.to_dict()
        if not isinstance(self.logbook, Logbook):
            return
        for key in ("loss_sum", "correct", "count") if gathered else ():
            progress[key] = sum(share[key] for share in gathered)
        content = Checkpoint(
            run=self.identity, model=self.job.described, state_dict=self.trainer.model.state_dict(),
            trainer=self.trainer.state_dict(), progress=progress, shares=gathered, epoch=self._epoch(),
            rng=random_state(self.job.device), records=self.logbook.history(), events=self.logbook.marks(),
            config=self.job.settings, classes=list(self.job.data.classes), data=self.job.data.record.to_dict(),
            preprocessing=asdict(self.job.data.preprocessing), versions=versions(),
        )  # fmt: skip
        checkpoint.save(self.folder / "checkpoints" / name, content, keep if name == checkpoint.LAST else None)

    def stopped(self, why: str) -> Stopped:
        """The error to raise where the run ends. The first process says why, and logs it if the disk has room."""
        line = f"stopped: {why}; {self.way_on()}"
        if not distributed.is_primary():
            return Stopped(f"process {distributed.rank()} {line}", said=False, why=why)
        with suppress(OSError):
            self.logbook.say(line)
        return Stopped(line, said=True, why=why)

    def way_on(self) -> str:
        """How to continue after a stop."""
        last = self.folder / "checkpoints" / checkpoint.LAST
        if not last.exists():
            return "nothing was saved yet"
        return f"the last good checkpoint is {last}; python train.py resume={self.folder} continues from it"

    def finish(self, caught: list[int]) -> Finished:
        """Scores the best checkpoint on the test split, unless a signal in ``caught`` comes first.

        Raises:
            Interrupted: a signal came.
        """
        job, progress = self.job, self.progress
        if distributed.is_primary():
            best = checkpoint.load(self.folder / "checkpoints" / checkpoint.BEST)
            checkpoint.check_run(best, self.identity, self.folder / "checkpoints" / checkpoint.BEST)
            self.trainer.model.load_state_dict(best.state_dict)
        distributed.broadcast_model(self.trainer.model)
        score = self._score(job.loader("test", 4 * self.options.batch_size))
        self._heed(caught)
        best_top1, last = (progress.best, "") if self.validation is not None else (None, NEWEST)
        summary = {
            "run": self.identity, "model": job.title, "parameters": self.parameters, "dataset": job.data.name,
            "metric": "top1", "best": best_top1, "best_epoch": progress.best_epoch, "final": score.top1,
            "correct": score.correct, "count": score.count, "unreadable": len(self.unreadable),
            "epochs": progress.epoch, "steps": progress.updates, "train_seconds": progress.seconds,
            "images_per_second": progress.images / max(progress.seconds, 1e-9),
            "peak_memory_bytes": peak_memory(job.device), "seed": self.options.seed, "lr": job.recipe.lr,
            "overrides": job.origin.get("overrides", []), "versions": versions(),
            "device": str(job.device), "processes": distributed.size(),
        }  # fmt: skip
        if distributed.is_primary():
            write_json(self.folder / "summary.json", summary)
        self.logbook.say(
            f"test top-1 {score.top1:.2f} % ({score.correct} of {score.count}) with the checkpoint of epoch "
            f"{progress.best_epoch}{last}, {progress.seconds:.0f} s of training; {self.folder}"
        )
        for observer in self.observers:
            try:
                observer.on_end(summary, self.trainer)
            except Exception as error:  # matplotlib and TensorBoard raise what they like; the result is on the disk
                self.logbook.say(f"a figure could not be drawn: {reason(error)}")
        return Finished(self.folder, best_top1, score.top1)

    def close(self) -> None:
        with ExitStack() as stack:
            if self.opened is not None:
                stack.callback(self.opened.close)
            for observer in self.observers:
                stack.callback(observer.close)
