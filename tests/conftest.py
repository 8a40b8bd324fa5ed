"""Fixtures that many tests use: the browser's, and where kernels are tested, on the GPU if there is one, else by
Triton's interpreter, chosen before Triton is there."""

import os

import pytest
import torch
from page_modules import modules  # noqa: F401
from page_tabs import browser, chromium, graph, html, open_page, page, tab  # noqa: F401  (fixtures of the browser tests)

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(trylast=True)  # after the fixtures of the module are gone
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Closes the browser where the next test is in another module and does not use it."""
    if nextitem is None or (nextitem.path != item.path and "browser" not in getattr(nextitem, "fixturenames", ())):
        chromium.close()


@pytest.fixture(scope="session")
def kernel_device() -> str:
    """The device on which both implementations of a kernel run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=["reference", "triton"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once with each implementation of the kernels."""
    if request.param == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("CIRCUITS_KERNELS", request.param)
    return request.param
