"""The governor keeps the screen's part of the processor small."""

from __future__ import annotations

from tui.pace import Governor


class Clocks:
    """A machine on which a flush costs what the test says."""

    cpu = now = 0.0

    def run(self, governor: Governor, cost: float, flushes: int = 60) -> float:
        for _ in range(flushes):
            wait = governor.beat()
            self.cpu += cost
            self.now += max(wait, cost)
        return governor.interval


def test_the_interval_follows_the_cost() -> None:
    clocks = Clocks()
    governor = Governor(share=0.1, cpu=lambda: clocks.cpu, clock=lambda: clocks.now)
    assert clocks.run(governor, 0.001) == 0.033, "cheap flushes come as often as they may"
    assert abs(clocks.run(governor, 0.010) - 0.1) < 0.01, "10 ms at a tenth of the processor is ten a second"
    assert clocks.run(governor, 1.0) == 0.4, "however dear, the reader sees something"
    assert clocks.run(governor, 0.001) == 0.033, "and it comes back"


def test_a_pause_is_forgotten() -> None:
    clocks = Clocks()
    governor = Governor(cpu=lambda: clocks.cpu, clock=lambda: clocks.now)
    clocks.run(governor, 0.1)
    assert governor.interval > 0.3
    clocks.now += 60
    assert governor.beat() == 0.033


def test_the_first_flush_is_due_at_once() -> None:
    clocks = Clocks()
    governor = Governor(cpu=lambda: clocks.cpu, clock=lambda: clocks.now)
    assert governor.due()
    governor.beat()
    assert not governor.due()
    clocks.now += 0.04
    assert governor.due()
