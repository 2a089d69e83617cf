"""Which tests need a cluster? Those that ask for one, and the chart's, which need Helm; `make test` leaves them to `make e2e`."""

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer

from testbed.scheduling import FolderScheduling

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")  # a busy machine decides no test: examples may take as long as they take


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FolderScheduling | None:
    """Workers that take a file at a time keep to their folders."""
    return FolderScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


CLUSTERS = {"api_server", "control_plane", "cluster"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test that uses a cluster, however it got there."""
    for item in items:
        if CLUSTERS & set(getattr(item, "fixturenames", ())) or item.path.parent.name == "chart":
            item.add_marker("cluster")
