"""How many jobs can one operator look after? Run `python benchmarks/scale/run.py --jobs 1000 3000 10000`.

For each size a fresh API server gets so many TrainingJobs and five closed Experiments for each; then the operator's own
process works on them. A fifth of the jobs run on nodes played by kwok, and their pods serve the counters of a program
that only computes; three fifths are finished, a fifth is suspended. Job controller and scheduler are played by the
benchmark, which writes what they would write: here the operator is measured, not they.

new       all jobs are new: seconds until every one has its objects and a status for its spec
known     the operator starts anew, and every spec was changed while it was away: seconds until each status says so
peak      the most memory that the process held after that start
idle      writes a second when nothing happens
tick      CPU time of the process for each pass, while idle jobs are woken one after another
event     from a changed spec to the status that speaks of it, ten jobs a second at random, as an outside watch sees it
"""

import argparse
import asyncio
import contextlib
import os
import random
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "judge"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import counters
from census import JOBS, Census
from fleet import Member, Object, Role, enrol, finished_status, make_experiments, make_job, make_pod, running_status
from server import MERGE, Server, for_all
from subject import Span, Subject

from amdahl_loop.domain.api.timestamps import to_timestamp
from amdahl_loop.domain.children import JOB_LABEL
from cluster_operator import define, operator
from testbed.cluster import Cluster, plan_for_session, started
from testbed.simulated import simulated_nodes

PODS_PER_NODE = 100
LIMIT_S = 3600.0
"""A bound on hanging."""
CALM_S = 20.0
TOUCHES, TOUCHES_PER_S = 300, 10
WOKEN = 2000


@dataclass(frozen=True)
class Figures:
    """What one size has shown."""

    jobs: int
    experiments: int
    pods: int
    new_s: float
    known_s: float
    peak_mib: float
    idle: Span
    woken: Span
    latencies_s: list[float]


def main() -> int:
    """Measure each size, print the table as it grows."""
    options = _parse()
    print(describe_machine(), flush=True)
    rows = []
    for jobs in options.jobs:
        rows.append(measure(jobs, options.experiments, options.keep, options.idle_s))
        print(render(rows), flush=True)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1000, 3000, 10000], help="sizes, one after another")
    parser.add_argument("--experiments", type=int, default=5, help="closed experiments for each job")
    parser.add_argument("--idle-s", type=float, default=120.0, help="how long nothing is done to see that nothing is")
    parser.add_argument("--keep", type=Path, default=Path("build/scale"), help="folder for logs")
    return parser.parse_args()


def measure(jobs: int, experiments: int, logs: Path, idle_s: float) -> Figures:
    """One size, on a control plane of its own."""
    logs.mkdir(parents=True, exist_ok=True)
    members = enrol(jobs)
    nodes = 1 + sum(member.role is Role.RUNNING for member in members) // PODS_PER_NODE
    with started(plan_for_session(api_only=True)) as cluster:
        define(cluster)
        with simulated_nodes(cluster, nodes, 8, logs / f"kwok-{jobs}.log", pod_address=counters.ADDRESS) as names:
            return asyncio.run(Scene(cluster, members, names, logs, idle_s).play(experiments))


class Scene:
    """One fleet on one API server."""

    def __init__(self, cluster: Cluster, members: list[Member], nodes: list[str], logs: Path, idle_s: float) -> None:
        self.cluster, self.members, self.nodes, self.logs, self.idle_s = cluster, members, nodes, logs, idle_s
        self.census = Census()
        self.draw = random.Random(0)

    async def play(self, experiments: int) -> Figures:
        """All phases, in order."""
        async with Server(self.cluster.admin.kubeconfig) as self.server, contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(await counters.serve())
            version = await self.load(experiments)
            following = asyncio.create_task(self.census.follow(self.server, version))
            with self.subject() as subject:
                new_s = await self.settle(subject)
                await self.give_pods()
                idle = await self.rest(subject)
                woken = await self.wake(subject)
                latencies = await self.touch()
            await self.change_all()
            with self.subject() as subject:
                known_s = await self.settle(subject)
                await subject.read()
                peak_mib = subject.peak_mib
            following.cancel()
        pods = sum(member.role is Role.RUNNING for member in self.members)
        count = len(self.members)
        return Figures(count, experiments * count, pods, new_s, known_s, peak_mib, idle, woken, latencies)

    @contextlib.contextmanager
    def subject(self) -> Iterator[Subject]:
        """The operator's process. Its jobs only compute, so that it finds nothing to try."""
        port = free_port()
        log = self.logs / f"operator-{len(self.members)}.log"
        with operator(self.cluster.admin.kubeconfig, log, METRICS_PORT=str(port)) as process:
            yield Subject(process, port)

    # --- phases -------------------------------------------------------------------------------------------------------

    async def load(self, experiments: int) -> str:
        """Create namespaces, jobs and experiments; returns a resourceVersion from which jobs can be watched."""
        begun_s = time.monotonic()
        for namespace in sorted({member.namespace for member in self.members}):
            await self.server.send("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
            account = {"metadata": {"name": "default"}}
            await self.server.send("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
        jobs = await for_all(self.members, self.create_job)
        for job in jobs:
            self.census.note(job)
        await for_all(
            (pair for job in jobs for pair in make_experiments(job, experiments)),
            lambda pair: self.create_experiment(*pair),
        )
        say(f"{len(jobs)} jobs and {experiments * len(jobs)} experiments created", begun_s)
        listed = await self.server.send("GET", f"{JOBS}?limit=1")
        return str(listed["metadata"]["resourceVersion"])

    async def create_job(self, member: Member) -> Object:
        """A TrainingJob as its owner applies it."""
        path = f"/apis/amdahl-loop.io/v1alpha1/namespaces/{member.namespace}/trainingjobs"
        return await self.server.send("POST", path, make_job(member))

    async def create_experiment(self, body: Object, status: Object) -> None:
        """A closed experiment."""
        body["metadata"]["labels"]["amdahl-loop.io/closed"] = "true"
        path = f"/apis/amdahl-loop.io/v1alpha1/namespaces/{body['metadata']['namespace']}/experiments"
        await self.server.send("POST", path, body)
        await self.server.send("PATCH", f"{path}/{body['metadata']['name']}/status", status, MERGE)

    async def settle(self, subject: Subject) -> float:
        """Seconds since the operator's start until every status speaks of its job's spec."""
        begun_s, loop_s = time.monotonic(), asyncio.get_running_loop().time()
        done_s = await self.census.wait(lambda: not self.census.untold, LIMIT_S, "every job has a status for its spec")
        reading = await subject.read()
        say(f"settled; peak {subject.peak_mib:.0f} MiB, {reading.cpu_s:.1f} s CPU, {reading.ticks:.0f} passes, "
            f"requests {dict(reading.requests)}", begun_s)  # fmt: skip
        return done_s - loop_s

    async def give_pods(self) -> None:
        """Play the Job controller: one fifth gets pods, three fifths are over."""
        begun_s, now = time.monotonic(), to_timestamp(float(int(time.time())))
        roles = {(member.namespace, member.name): member.role for member in self.members}

        async def act(job: Object) -> None:
            metadata = job["metadata"]
            role = roles[metadata["namespace"], metadata["labels"][JOB_LABEL]]
            path = f"/apis/batch/v1/namespaces/{metadata['namespace']}/jobs/{metadata['name']}/status"
            if role is Role.RUNNING:
                pod = make_pod(job, self.draw.choice(self.nodes))
                await self.server.send("POST", f"/api/v1/namespaces/{metadata['namespace']}/pods", pod)
                await self.server.send("PATCH", path, running_status(now), MERGE)
            else:
                await self.server.send("PATCH", path, finished_status(now), MERGE)

        await for_all([job async for job in self.list_jobs()], act)
        say("Jobs have pods or are over", begun_s)

    async def list_jobs(self) -> AsyncIterator[Object]:
        """The Jobs that the operator has created."""
        token = ""
        while True:
            page = await self.server.send("GET", f"/apis/batch/v1/jobs?limit=500&continue={token}")
            for job in page["items"]:
                yield job
            token = page["metadata"].get("continue", "")
            if not token:
                return

    async def rest(self, subject: Subject) -> Span:
        """Wait until every running job has been measured and nothing is written, then look on."""
        begun_s = time.monotonic()
        running = {(m.namespace, m.name) for m in self.members if m.role is Role.RUNNING}
        await self.census.wait(lambda: running <= self.census.observed, LIMIT_S, "running jobs have been measured")
        say("every running job has been measured", begun_s)
        while (await self.look_on(subject, CALM_S)).writes_per_s:
            pass
        span = await self.look_on(subject, self.idle_s)
        say(f"idle: {span.ticks:.0f} passes, {span.cpu_s:.1f} s CPU, requests {span.requests}", begun_s)
        return span

    @staticmethod
    async def look_on(subject: Subject, seconds: float) -> Span:
        """Do nothing for so long."""
        first = await subject.read()
        await asyncio.sleep(seconds)
        return Span(first, await subject.read())

    async def wake(self, subject: Subject) -> Span:
        """Change nothing that matters in some jobs, and wait until each has been looked at."""
        begun_s = time.monotonic()
        woken = self.draw.sample(self.members, min(WOKEN, len(self.members)))
        first = await subject.read()
        note = {"metadata": {"annotations": {"example.com/woken": "now"}}}
        await for_all(woken, lambda member: self.patch(member, note))
        while (last := await subject.read()).ticks - first.ticks < len(woken) or last.oldest_s > 1.0:
            await asyncio.sleep(0.5)
        span = Span(first, last)
        say(f"{len(woken)} jobs woken: {span.ticks:.0f} passes, {span.cpu_s:.1f} s CPU, {span.requests}", begun_s)
        return span

    async def touch(self) -> list[float]:
        """Change the specs of jobs at random, some a second; seconds until each status speaks of it, sorted."""
        begun_s, waits = time.monotonic(), []
        loop = asyncio.get_running_loop()

        async def change(member: Member, number: int) -> float:
            key = (member.namespace, member.name)
            answer = await self.patch(member, ahead(number))
            at_s, generation = loop.time(), int(answer["metadata"]["generation"])
            what = f"{key} has a status for generation {generation}"
            await self.census.wait(lambda: self.census.told.get(key, 0) >= generation, LIMIT_S, what)
            return max(0.0, self.census.told_at_s[key] - at_s)

        for number, member in enumerate(self.draw.choices(self.members, k=min(TOUCHES, len(self.members)))):
            waits.append(asyncio.create_task(change(member, 1000 + number)))
            await asyncio.sleep(1 / TOUCHES_PER_S)
        latencies = sorted(await asyncio.gather(*waits))
        say(f"{len(latencies)} jobs touched", begun_s)
        return latencies

    async def change_all(self) -> None:
        """Change every spec while no operator is there."""
        begun_s = time.monotonic()
        await for_all(self.members, lambda member: self.patch(member, ahead(500)))
        await self.census.wait(lambda: self.census.untold == len(self.members), LIMIT_S, "every change is seen")
        say("every spec changed", begun_s)

    async def patch(self, member: Member, body: Object) -> Object:
        """Merge something into a TrainingJob, as its owner."""
        path = f"/apis/amdahl-loop.io/v1alpha1/namespaces/{member.namespace}/trainingjobs/{member.name}"
        return await self.server.send("PATCH", path, body, MERGE)


def ahead(hours: int) -> Object:
    """A change of the spec that every status has to speak of, and that restarts nothing."""
    return {"spec": {"tuning": {"expectedDeviceHours": str(hours)}}}


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def say(what: str, begun_s: float) -> None:
    """A line of progress."""
    print(f"  {time.monotonic() - begun_s:7.1f} s  {what}", flush=True)


def render(rows: list[Figures]) -> str:
    """The table."""
    lines = [
        "| jobs | experiments | pods | new s | known s | peak MiB | idle writes/s | tick ms | event p50 s | p99 s |"
    ]
    lines.append("|" + " --- |" * 10)
    for row in rows:
        cells = [
            f"{row.jobs:,}",
            f"{row.experiments:,}",
            f"{row.pods:,}",
            f"{row.new_s:.1f}",
            f"{row.known_s:.1f}",
            f"{row.peak_mib:.0f}",
            f"{row.idle.writes_per_s:.2f}",
            f"{row.woken.cpu_ms_per_tick:.2f}",
            f"{statistics.median(row.latencies_s):.2f}",
            f"{row.latencies_s[int(0.99 * (len(row.latencies_s) - 1))]:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def describe_machine() -> str:
    """CPU, cores that may be used, Python, day."""
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = found[0].partition(": ")[2] if found else "unknown CPU"
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return f"{cores} CPUs of {name}, load {load:.1f}, Python {sys.version.split()[0]}, {day}"


if __name__ == "__main__":
    sys.exit(main())
