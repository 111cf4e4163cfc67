"""The profile of a run's first steps: a trace for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

from pathlib import Path

from torch.profiler import profile, schedule

from optnet.training.folder import replacing
from optnet.training.loop import Observer, Progress, Trainer

WARM = 2
"""Steps before those that are recorded."""


class Profiling(Observer):
    """Records ``steps`` steps, from the third one on, in ``folder``/profile.json."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.file = folder / "profile.json"
        self.profiler: profile | None = profile(
            schedule=schedule(wait=0, warmup=WARM, active=steps, repeat=1),
            on_trace_ready=self._export,
        )
        self.left = WARM + steps
        self.profiler.start()

    def _export(self, done: profile) -> None:
        with replacing(self.file) as partial:
            done.export_chrome_trace(str(partial))

    def on_step(self, progress: Progress, trainer: Trainer) -> None:
        if self.profiler is not None:
            self.profiler.step()
            self.left -= 1
            if not self.left:
                self.close()

    def close(self) -> None:
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler = None
