"""Objects as a list or an event of the API server shows them, with no more than is read of them."""

from typing import Any


def show_experiment(
    *, verdict: str = "", version: str = "5", namespace: str = "team", job: str = "train", uid: str = "u1"
) -> dict[str, Any]:
    """An Experiment of the job with this name and UID; open without a verdict."""
    metadata = {
        "namespace": namespace,
        "name": "e0",
        "resourceVersion": version,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    status = {"verdict": {"word": verdict, "sentence": "."}, "closedAt": "2026-01-02T00:00:00Z"} if verdict else {}
    spec = {"job": job, "jobUid": uid, "fingerprint": "f", "family": "a", "blocks": [{}]}
    return {"metadata": metadata, "spec": spec, "status": status}
