"""Settings of the whole suite."""

import sys
from collections.abc import Callable

import pytest

try:
    from hypothesis import settings
except ModuleNotFoundError:  # tests/gpu does without
    settings = None

if settings is not None:
    # other processes share the cores: a slow example is not a wrong one
    settings.register_profile("suite", deadline=None)
    settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come before quick ones, so that no process is left alone with one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: "e2e" not in item.path.parts and item.path not in slow)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets sizes be rounded up on the CPU, everywhere, from when it is called."""

    def begin() -> None:
        from generations import batch

        rounded = batch.sizes_repeat
        for name, module in list(sys.modules.items()):
            if name.startswith("generations.") and vars(module).get("sizes_repeat") is rounded:
                monkeypatch.setattr(module, "sizes_repeat", lambda device: True)

    return begin
