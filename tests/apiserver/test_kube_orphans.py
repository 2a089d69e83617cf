"""What becomes of the experiments of a job that is gone?"""

import pytest

from amdahl_loop.adapters.kube.client import ApiUnavailable
from amdahl_loop.adapters.kube.experiments import render
from amdahl_loop.adapters.kube.kinds import Kind
from amdahl_loop.adapters.kube.loading import load_index
from amdahl_loop.adapters.kube.orphans import let_go
from amdahl_loop.domain.children import CLOSED_LABEL
from cluster_builders import Scene, play
from judge_builders import make_plan
from kube_builders import failing, install_crds, refuse
from testbed.cluster import Cluster

pytestmark = pytest.mark.slow


def test_an_experiment_is_called_closed_only_with_its_verdict(api_server: Cluster, api_namespace: str) -> None:
    """Somebody writes at the same moment: the pass fails and is repeated; closing twice is no error."""
    install_crds(api_server)

    async def scenario(scene: Scene) -> None:
        plan, client = make_plan(job="gone"), scene.client
        await client.create(Kind.EXPERIMENT, scene.namespace, render(plan, scene.namespace))
        index = await load_index(client, [scene.namespace])

        async def close() -> dict[str, object]:
            await let_go(client, index, scene.namespace, "gone", scene.clock)
            found = await client.get(Kind.EXPERIMENT, scene.namespace, plan.name)
            assert found is not None
            verdict = (found.get("status") or {}).get("verdict") or {}
            return {"word": verdict.get("word"), "closed": found["metadata"]["labels"].get(CLOSED_LABEL)}

        with failing(scene.transport, refuse(409, "PATCH", reason="Conflict")), pytest.raises(ApiUnavailable):
            await close()
        document = await client.get(Kind.EXPERIMENT, scene.namespace, plan.name)
        assert document is not None
        assert document["metadata"]["labels"][CLOSED_LABEL] == "false"
        assert [await close() for _ in range(2)] == [{"word": "Inconclusive", "closed": "true"}] * 2

    play(api_server, api_namespace, scenario)
