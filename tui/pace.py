"""How often the screen follows a running answer: as often as it can without slowing the answer down."""

from __future__ import annotations

import time
from collections.abc import Callable


class Governor:
    """Chooses the time between two looks at what has come, by what the last one cost.

    Drawing and decoding share one interpreter, so what the screen takes the model loses. Call `beat` at each flush: the
    processor time that the screen's thread has used since the last one, painting included, over the time that has
    passed is kept near `share`.

    Args:
        share: the part of one core that the screen may take while an answer runs.
        quickest, slowest: bounds of the interval in seconds.
        cpu, clock: the thread's processor time and the time of day, both in seconds.
    """

    def __init__(
        self,
        share: float = 0.05,
        quickest: float = 0.033,
        slowest: float = 0.4,
        *,
        cpu: Callable[[], float] = time.thread_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.interval = quickest
        self._share, self._quickest, self._slowest = share, quickest, slowest
        self._cpu, self._clock = cpu, clock
        self._last: tuple[float, float] | None = None

    def due(self) -> bool:
        """Whether the interval has passed since the last flush."""
        return self._last is None or self._clock() - self._last[1] >= self.interval

    def beat(self) -> float:
        """Note a flush that begins now; returns the seconds to wait until the next."""
        cpu, now = self._cpu(), self._clock()
        if self._last is not None:
            wall = now - self._last[1]
            used = (cpu - self._last[0]) / max(wall, 1e-6)
            if wall > 2 * self._slowest and used < self._share:  # a pause: it says nothing about this answer
                self.interval = self._quickest
            else:
                # At this interval the cost would be the share; half the way there, so that one flush tells little.
                wanted = self.interval * used / self._share
                self.interval += (wanted - self.interval) / 2
                self.interval = min(max(self.interval, self._quickest), self._slowest)
        self._last = (cpu, now)
        return self.interval
