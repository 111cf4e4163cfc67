"""A run's records: console.log, metrics.jsonl, TensorBoard events. Decides nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from optnet.errors import CheckpointError, printable, reason
from optnet.networks.unrolled import coefficients
from optnet.options import number, option
from optnet.training import events
from optnet.training.folder import as_json, is_own, write_whole
from optnet.training.schema import conform


@dataclass
class Record:
    """What is recorded of an epoch: its number, and a scalar for each of TensorBoard's tags."""

    epoch: int = number(1, 1)
    scalars: dict[str, float] = option(factory=dict)

    def line(self) -> str:
        """Its line in metrics.jsonl, where the tag ``train/loss`` is called ``train_loss``."""
        return as_json({"epoch": self.epoch, **{tag.replace("/", "_"): value for tag, value in self.scalars.items()}})

    @staticmethod
    def read(text: str) -> list[Record]:
        """The records that ``Logbook.history`` wrote down.

        Raises:
            CheckpointError: a line is none.
        """
        records = []
        for index, line in enumerate(text.splitlines()):
            where = f"records[{index}]"
            try:
                stored = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CheckpointError(f"its {where} is no JSON ({reason(error)})") from None
            conform(stored, Record, where)
            records.append(Record(**stored))
        return records


class Silence:
    """The logbook of a process that does not write."""

    def say(self, line: str) -> None: ...

    def epoch(self, epoch: int, scalars: dict[str, float], model: nn.Module) -> None: ...

    def close(self) -> None: ...


class Logbook:
    """One run's records in its folder.

    Args:
        show: what shows a line on the screen.
        records: of the run's epochs so far, at the checkpoint that it resumes from. metrics.jsonl is written again
            from them, and so are their points that are no longer in the event files.
        marks: the sizes of the event files (``marks()``) at that checkpoint. What was written after it is cut off, so
            that every step has one point in TensorBoard.

    Attributes:
        events: TensorBoard's writer. Its points are at epochs or at steps, as each tag likes.
    """

    def __init__(
        self,
        folder: Path,
        show: Callable[[str], None],
        records: Sequence[Record] = (),
        marks: Mapping[str, int] | None = None,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a while

        self.folder, self.show, self.records = folder, show, list(records)
        self._history = [json.dumps(vars(record)) for record in records]
        self.metrics_file = folder / "metrics.jsonl"
        lost: list[str] = [] if marks is None else self._restore(marks)
        log = folder / "console.log"
        if not is_own(log):
            log.unlink(missing_ok=True)
        self.console = open(log, "a", encoding="utf-8")  # noqa: SIM115
        self._excepthook, threading.excepthook = threading.excepthook, self._in_thread
        self.events = SummaryWriter(str(folder))
        if lost:
            self._draw_again(lost)

    def _restore(self, marks: Mapping[str, int]) -> list[str]:
        """Brings the records to where they were at a checkpoint. Returns the event files that were damaged."""
        write_whole(self.metrics_file, "".join(record.line() for record in self.records))
        for file in self.folder.glob(events.PATTERN):
            if file.name not in marks or not is_own(file):
                file.unlink()
        files = {name: self.folder / name for name in marks}
        return [name for name, file in files.items() if not is_own(file) or not events.cut(file, marks[name])]

    def _draw_again(self, lost: Sequence[str]) -> None:
        """Writes the points of the records that the event files lack."""
        there = events.points(self.folder)
        missing = [(tag, value, record.epoch) for record in self.records for tag, value in record.scalars.items()]
        missing = [point for point in missing if (point[0], point[2]) not in there]
        for point in missing:
            self.events.add_scalar(*point)
        self.say(
            f"{', '.join(lost)}: missing or damaged; {len(missing)} points of TensorBoard are written again from the "
            "records, what else was in there is lost"
        )

    def _in_thread(self, failure: threading.ExceptHookArgs) -> None:
        """A full disk stops TensorBoard's thread. The writer's next call raises the error, so no traceback is shown."""
        if not isinstance(failure.exc_value, OSError):
            self._excepthook(failure)

    def say(self, line: str) -> None:
        """Shows a line, and writes it to console.log."""
        line = printable(line)
        self.show(line)
        self.console.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        self.console.flush()

    def epoch(self, epoch: int, scalars: dict[str, float], model: nn.Module) -> None:
        """At step ``epoch``: a point of TensorBoard for each scalar and coefficient, and a line of metrics.jsonl."""
        self.records.append(Record(epoch, {tag: float(value) for tag, value in scalars.items()}))
        self._history.append(json.dumps(vars(self.records[-1])))
        with open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(self.records[-1].line())
        for tag, value in scalars.items():
            self.events.add_scalar(tag, value, epoch)
        for entry in coefficients(model):
            self.events.add_scalar(f"coefficients/{entry.stage}/{entry.step}/{entry.term}", entry.value, epoch)

    def marks(self) -> dict[str, int]:
        """The sizes of the event files now, in bytes."""
        self.events.flush()
        return {file.name: file.stat().st_size for file in self.folder.glob(events.PATTERN)}

    def history(self) -> str:
        """The records so far, a line of JSON each. What an epoch's checkpoint costs does not grow with their number."""
        return "\n".join(self._history)

    def close(self) -> None:
        """Closes the files. What no longer fits on a full disk is lost."""
        for file in (self.events, self.console):
            with suppress(OSError):
                file.close()
        threading.excepthook = self._excepthook
