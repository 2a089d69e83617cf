"""Which way do requests take to the API server? The one that kubectl would take."""

import pytest

from amdahl_loop.adapters.kube.transport import find_proxy

PROXY = "http://proxy.example.com:3128"


@pytest.mark.parametrize(
    ("server", "variables", "proxy"),
    [
        ("https://10.0.0.1:6443", {}, None),
        ("https://10.0.0.1:6443", {"HTTPS_PROXY": PROXY}, PROXY),
        ("https://10.0.0.1:6443", {"HTTP_PROXY": PROXY}, None),
        ("https://10.0.0.1:6443", {"HTTPS_PROXY": PROXY, "NO_PROXY": "10.0.0.1"}, None),
        ("https://api.example.com", {"HTTPS_PROXY": PROXY, "NO_PROXY": ".example.com"}, None),
        ("https://api.example.org", {"HTTPS_PROXY": PROXY, "NO_PROXY": ".example.com"}, PROXY),
    ],
)
def test_the_proxy_is_the_environments(
    server: str, variables: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTPS_PROXY, but for servers that NO_PROXY names."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_proxy(server) == proxy
