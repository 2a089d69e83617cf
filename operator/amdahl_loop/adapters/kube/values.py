"""Which values does the ConfigMap of a running job hold, and how do the values in force get there?

Beside them it keeps what must outlive a pass: the revision that should run, and when and how often its values changed.
"""

from amdahl_loop.adapters.kube.client import KubeClient, Refused
from amdahl_loop.adapters.kube.kinds import Kind, Object
from amdahl_loop.adapters.kube.present import whole
from amdahl_loop.adapters.kube.render import KNOBS_KEY
from amdahl_loop.adapters.kube.render_running import (
    CHANGED_ANNOTATION,
    REVISION_ANNOTATION,
    UNPROBED_ANNOTATION,
    VALUES_ANNOTATION,
    knob_data,
    live_file,
    read_sequence,
    render_knobs,
)
from amdahl_loop.domain.resources import TrainingJob
from amdahl_loop.ports import Clock


class KeptValues:
    """The ConfigMap of one job; `is_live`: it holds the file that a running program reads them from."""

    def __init__(self, client: KubeClient, job: TrainingJob, is_live: bool, clock: Clock) -> None:
        self._client = client
        self._job = job
        self._is_live = is_live
        self._clock = clock

    def are_held(self, values: Object) -> bool:
        """Whether it holds the values in force, and the live file where there should be one."""
        data = dict(values.get("data") or {})
        file = data.pop(KNOBS_KEY, None)
        if data != knob_data(self._job.spec.knobs) or (file is None) == self._is_live:
            return False
        return file is None or file == live_file(self._job.spec.knobs, read_sequence(file))

    async def make(self, revision: int) -> Object | Refused:
        """The ConfigMap as it was made now, for a job that is to run in this revision."""
        annotations = {REVISION_ANNOTATION: str(revision), CHANGED_ANNOTATION: "0", VALUES_ANNOTATION: "1"}
        body = render_knobs(self._job, self._is_live, 1, annotations)
        return await self._client.create(Kind.CONFIG_MAP, self._job.metadata.namespace, body)

    async def update(self, values: Object) -> Object | Refused:
        """Put the values in force into it; older pods have others from that moment on."""
        data, annotations = values.get("data") or {}, dict(values["metadata"].get("annotations") or {})
        if {key: data[key] for key in data if key != KNOBS_KEY} != knob_data(self._job.spec.knobs):
            annotations[CHANGED_ANNOTATION] = str(int(self._clock()))
            annotations[VALUES_ANNOTATION] = str(whole(annotations.get(VALUES_ANNOTATION), 0) + 1)
        body = render_knobs(self._job, self._is_live, read_sequence(data.get(KNOBS_KEY)) + 1, annotations)
        name, body["metadata"]["resourceVersion"] = values["metadata"]["name"], values["metadata"]["resourceVersion"]
        return await self._client.replace(Kind.CONFIG_MAP, self._job.metadata.namespace, name, body)

    async def advance(self, values: Object, revision: int, unprobed: str | None) -> Object | Refused:
        """Ask for another revision; `unprobed` is the digest of a template that cannot run with the probe."""
        marks = {REVISION_ANNOTATION: str(revision)} | ({} if unprobed is None else {UNPROBED_ANNOTATION: unprobed})
        name, version = values["metadata"]["name"], values["metadata"]["resourceVersion"]
        body = {"metadata": {"resourceVersion": version, "annotations": marks}}
        return await self._client.patch(Kind.CONFIG_MAP, self._job.metadata.namespace, name, body)
