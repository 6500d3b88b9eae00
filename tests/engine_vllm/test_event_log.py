"""The file that an engine's processes share, and what stock workers tell in it."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.event_log import STEPS_VARIABLE, EventLog, event_log, watch_stock


class StockSlots:
    """Stands for vLLM's model manager: activates each id once."""

    def __init__(self) -> None:
        self.active: set[int] = set()

    def activate_adapter(self, adapter_id: int) -> bool:
        """Whether it was not active before."""
        is_new = adapter_id not in self.active
        self.active.add(adapter_id)
        return is_new


class StockManager:
    """Stands for vLLM's worker manager, as far as loads and activations go."""

    _adapter_manager: StockSlots

    def create_lora_manager(self) -> str:
        """Makes the slots."""
        self._adapter_manager = StockSlots()
        return "model"

    def _load_adapter(self, request: Any) -> int:
        return int(request.lora_int_id)

    def _apply_adapters(self, requests: list[Any]) -> None:
        for request in requests:
            self.add_adapter(request)

    def add_adapter(self, request: Any) -> None:
        """Loads and activates."""
        self._load_adapter(request)
        self._adapter_manager.activate_adapter(request.lora_int_id)


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@pytest.fixture
def log(log_path: Path) -> Iterator[EventLog]:
    made = EventLog(str(log_path))
    yield made
    made.close()


def events(path: Path) -> list[tuple[str, int, bool]]:
    """(event, adapter, in step) of each line."""
    rows = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert all(row["seconds"] >= 0 and row["t"] > 0 for row in rows)
    return [(row["event"], row["adapter_id"], row["in_step"]) for row in rows]


def test_several_writers_share_one_file(log: EventLog, log_path: Path) -> None:
    """Lines of two logs on one path, as two processes hold it, all stay whole."""
    other = EventLog(str(log_path))
    for adapter_id in range(50):
        log.record("disk_load", adapter_id, 0.5, in_step=False)
        other.record("activate", adapter_id, 0.001, in_step=True)
    other.close()
    assert 100 == len(events(log_path))


def test_a_stock_worker_reports_loads_and_activations(log: EventLog, log_path: Path) -> None:
    """In a step or between steps, each load and each real activation is one event."""
    manager = StockManager()
    watch_stock(manager, log)
    assert "model" == manager.create_lora_manager()
    manager.add_adapter(SimpleNamespace(lora_int_id=1))
    manager._apply_adapters([SimpleNamespace(lora_int_id=2)])
    manager._adapter_manager.activate_adapter(2)
    expected = [
        ("disk_load", 1, False),
        ("activate", 1, False),
        ("disk_load", 2, True),
        ("activate", 2, True),
    ]
    assert expected == events(log_path)


def test_warm_up_dummies_are_not_reported(log: EventLog, log_path: Path) -> None:
    """What was activated without having been read from disk is no event."""
    manager = StockManager()
    watch_stock(manager, log)
    manager.create_lora_manager()
    manager._adapter_manager.activate_adapter(1)
    assert [] == events(log_path)


def test_nothing_is_logged_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable there is no log."""
    monkeypatch.delenv(STEPS_VARIABLE, raising=False)
    assert event_log() is None
