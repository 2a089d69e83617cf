"""Where do the definitions of the Prometheus operator come from? From its own Go module, by version and checksum."""

import json
import os
import subprocess
from pathlib import Path

MODULE, VERSION = "github.com/prometheus-operator/prometheus-operator", "v0.85.0"
CHECKSUM = "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="
WANTED = ("podmonitors", "prometheusrules", "servicemonitors")


def fetch_definitions() -> list[Path]:
    """Files with the definitions of PodMonitor, PrometheusRule and ServiceMonitor; fetched once into Go's module cache."""
    environment = os.environ | {"GOWORK": "off", "GOFLAGS": "-mod=mod"}
    command = ["go", "mod", "download", "-json", f"{MODULE}@{VERSION}"]
    said = subprocess.run(command, env=environment, cwd="/", check=True, capture_output=True, text=True).stdout
    module = json.loads(said)
    assert module["Sum"] == CHECKSUM, f"{MODULE} {VERSION} is not what was pinned"
    folder = Path(module["Dir"], "example", "prometheus-operator-crd")
    return [folder / f"monitoring.coreos.com_{plural}.yaml" for plural in WANTED]
