"""How many jobs can one operator look after? Run `python benchmarks/scale/run.py --jobs 1000 3000 10000`.

For each size a fresh API server gets so many TrainingJobs and five closed Experiments for each; then the operator's own
process works on them. A fifth of the jobs run on nodes played by kwok, and their pods serve the counters of a program
that only computes; three fifths are finished, a fifth is suspended. Job controller and scheduler are played by the
benchmark, which writes what they would write: here the operator is measured, not they.

new       all jobs are new: seconds until every one has its objects and a status for its spec
restart   the operator starts anew, and nothing was changed meanwhile: seconds until it knows how every job stands, by
          a pass or, where it was left with nothing to do, by the lists of the start, and no pass is due
known     the same, and every spec was changed while it was away: seconds until each status says so
peak      the most memory that the process held after that start
idle      writes a second when nothing happens
tick      CPU time of the process for each pass, while idle jobs are woken one after another
event     from a changed spec to the status that speaks of it, ten jobs a second at random, as an outside watch sees it
cpu       of operator, API server, etcd, kwok and the benchmark itself, while new and known jobs settle

Everything is printed, and written to `--figures` as JSON, as soon as it is known. A phase that takes longer than
`--limit-s` ends its size, with what was found until then; the next size follows. After `--total-s` the benchmark ends,
whatever phase it has come to. `python benchmarks/scale/run.py --jobs 3000 10000 --idle-s 60 --total-s 1200` fits into
twenty minutes; `--jobs 200 1000 3000` tells how figures grow.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "judge"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import counters
import machine
from census import JOBS, Census
from fleet import (
    FIRST,
    NAME,
    Member,
    Object,
    Role,
    copy_experiments,
    enrol,
    finished_status,
    make_experiment,
    make_job,
    make_pod,
    running_status,
    store_key,
)
from server import MERGE, Server, ServerError, for_all
from store import Store
from subject import Reading, Span, Subject

from amdahl_loop.adapters.kube.closing import write_mark
from amdahl_loop.domain.api.timestamps import to_timestamp
from amdahl_loop.domain.children import JOB_LABEL
from cluster_operator import define, operator
from testbed.cluster import Cluster, plan_for_session, started
from testbed.simulated import simulated_nodes

PODS_PER_NODE = 100
CALM_S = 20.0
TOUCHES, TOUCHES_PER_S = 300, 10
WOKEN = 2000
LEAST_S = 60.0
"""With less time than this no size is begun."""


Result = TypeVar("Result")
Figures = dict[str, Any]
"""What one size has shown so far, by name, with units in the names."""


def main() -> int:
    """Measure each size, print the table and write the figures as they grow."""
    options = _parse()
    machine = describe_machine()
    print(machine, flush=True)
    rows: list[Figures] = []
    end_s = time.monotonic() + options.total_s
    for jobs in options.jobs:
        if end_s - time.monotonic() < LEAST_S:
            print(f"{jobs} jobs: no time is left", flush=True)
            break
        rows.append({})

        def save(row: Figures) -> None:
            rows[-1] = row
            options.figures.parent.mkdir(parents=True, exist_ok=True)
            options.figures.write_text(json.dumps({"machine": machine, "sizes": rows}, indent=1))

        measure(jobs, options, save, end_s)
        print(render(rows), flush=True)
    return 0 if len(rows) == len(options.jobs) and all(row["ended"] == "" for row in rows) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1000, 3000, 10000], help="sizes, one after another")
    parser.add_argument("--experiments", type=int, default=5, help="closed experiments for each job")
    parser.add_argument("--idle-s", type=float, default=120.0, help="how long nothing is done to see that nothing is")
    parser.add_argument("--limit-s", type=float, default=600.0, help="longest that one phase may take")
    parser.add_argument("--total-s", type=float, default=7200.0, help="longest that all of it may take")
    parser.add_argument("--keep", type=Path, default=Path("build/scale"), help="folder for logs")
    parser.add_argument("--figures", type=Path, default=Path("build/scale/figures.json"), help="where JSON goes")
    return parser.parse_args()


def measure(jobs: int, options: argparse.Namespace, save: Callable[[Figures], None], end_s: float) -> None:
    """One size, on a control plane of its own; a phase that takes too long, or a server that fails, ends it."""
    logs: Path = options.keep
    logs.mkdir(parents=True, exist_ok=True)
    members = enrol(jobs)
    nodes = 1 + sum(member.role is Role.RUNNING for member in members) // PODS_PER_NODE
    figures: Figures = {"jobs": jobs, "experiments": jobs * options.experiments, "ended": "not yet"}
    print(f"{jobs} jobs", flush=True)
    with started(plan_for_session(api_only=True)) as cluster:
        define(cluster)
        log = logs / f"kwok-{jobs}.log"
        with simulated_nodes(cluster, nodes, 8, log, pod_address=counters.ADDRESS) as names:
            scene = Scene(cluster, members, names, options, figures, save, end_s)
            try:
                asyncio.run(scene.play())
                figures["ended"] = ""
            except (TimeoutError, ServerError, OSError, RuntimeError) as error:
                figures["ended"] = f"{type(error).__name__}: {error}"[:500]
                print(f"  ended early: {figures['ended']}", flush=True)
            save(figures)


class Scene:
    """One fleet on one API server."""

    def __init__(
        self,
        cluster: Cluster,
        members: list[Member],
        nodes: list[str],
        options: argparse.Namespace,
        figures: Figures,
        save: Callable[[Figures], None],
        end_s: float,
    ) -> None:
        self.cluster, self.members, self.nodes = cluster, members, nodes
        self.options, self.figures, self.save = options, figures, save
        self.end_s = end_s
        self.census = Census()
        self.draw = random.Random(0)

    def tell(self, **found: Any) -> None:
        """Note what has been found."""
        self.figures |= found
        self.save(self.figures)

    async def play(self) -> None:
        """All phases, in order."""
        async with Server(self.cluster.admin.kubeconfig) as self.server, contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(await counters.serve())
            version = await self.within(self.load(self.options.experiments))
            following = asyncio.create_task(self.census.follow(self.server, version))
            with self.subject() as subject:
                self.tell(new=await self.within(self.settle(subject, "new")))
                self.tell(pods=await self.within(self.give_pods()))
                self.tell(idle=describe(await self.within(self.rest(subject))))
                self.tell(woken=describe(await self.within(self.wake(subject))))
                self.tell(latencies_s=[round(latency_s, 3) for latency_s in await self.within(self.touch())])
                self.tell(worked_peak_mib=round(subject.peak_mib, 1))
            with self.subject() as subject:
                self.tell(restart=await self.within(self.come_back(subject)))
            await self.within(self.change_all())
            with self.subject() as subject:
                self.tell(known=await self.within(self.settle(subject, "known")))
            following.cancel()

    @property
    def limit_s(self) -> float:
        """Seconds that a phase may take which begins now."""
        return max(1.0, min(self.options.limit_s, self.end_s - time.monotonic()))

    async def within(self, phase: Coroutine[Any, Any, Result]) -> Result:
        """A phase, for as long as it may take. TimeoutError after that."""
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(self.limit_s):
                return await phase
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"the time for {phase.__name__} is up") from error
        finally:
            mib = machine.read_memory_mib("kube-apiserver", self.folder)
            self.tell(
                server_peak_mib=round(mib),
                phases_s=[*self.figures.get("phases_s", ()), round(time.monotonic() - began_s, 1)],
            )

    @contextlib.contextmanager
    def subject(self) -> Iterator[Subject]:
        """The operator's process. Its jobs only compute, so that it finds nothing to try."""
        port = free_port()
        log = self.options.keep / f"operator-{len(self.members)}.log"
        with operator(self.cluster.admin.kubeconfig, log, METRICS_PORT=str(port)) as process:
            yield Subject(process, port)

    def read_servers(self) -> dict[str, float]:
        """CPU of the servers so far."""
        return machine.read_servers(self.folder)

    @property
    def folder(self) -> Path:
        """The files of the control plane."""
        return self.cluster.admin.kubeconfig.parent

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
        say(f"{len(jobs)} jobs created", begun_s)
        if experiments:
            await self.copy_experiments(jobs, experiments)
            say(f"{experiments * len(jobs)} experiments laid in", begun_s)
        listed = await self.server.send("GET", f"{JOBS}?limit=1")
        return str(listed["metadata"]["resourceVersion"])

    async def create_job(self, member: Member) -> Object:
        """A TrainingJob as its owner applies it."""
        path = f"/apis/amdahl-loop.io/v1alpha1/namespaces/{member.namespace}/trainingjobs"
        return await self.server.send("POST", path, make_job(member))

    async def copy_experiments(self, jobs: list[Object], count: int) -> None:
        """So many closed experiments of each job: the server writes one, its store all others."""
        body, status = make_experiment()
        path = f"/apis/amdahl-loop.io/v1alpha1/namespaces/{FIRST}/experiments"
        await self.server.send("POST", path, body)
        closed = await self.server.send("PATCH", f"{path}/{NAME}/status", status, MERGE)
        await self.server.send("PATCH", f"{path}/{NAME}", write_mark(closed), MERGE)
        async with Store(self.folder) as store:
            stored = await store.read(store_key(FIRST, NAME))
            await store.put_all(pair for job in jobs for pair in copy_experiments(stored, job, count))
        while not await self.has_caught_up(f"{path}/{NAME}"):
            await asyncio.sleep(1.0)
        await self.server.send("DELETE", f"{path}/{NAME}")

    async def has_caught_up(self, path: str) -> bool:
        """Whether the server's own copy holds all that its store does: until then it answers hardly any list."""
        try:
            listed = await self.server.send("GET", "/apis/amdahl-loop.io/v1alpha1/experiments?limit=1")
            version = listed["metadata"]["resourceVersion"]
            await self.server.send("GET", f"{path}?resourceVersion={version}")  # answered by the copy, as new as that
        except ServerError as error:
            say(str(error)[:200], time.monotonic())
            return False
        return True

    async def settle(self, subject: Subject, name: str) -> Figures:
        """Seconds since the operator's start until every status speaks of its job's spec; and what that took.

        Where the time is up first, it is noted how many statuses do.
        """
        begun_s, loop_s, before = time.monotonic(), asyncio.get_running_loop().time(), self.read_servers()
        what = "every job has a status for its spec"

        def is_done() -> bool:
            subject.check()
            return not self.census.untold

        try:
            done_s = await self.census.wait(is_done, self.limit_s - 1.0, what)
        except TimeoutError:
            partial = self.account(math.nan, subject, await subject.read(), before)
            told = len(self.members) - self.census.untold
            self.tell(**{name: partial | {"told": told, "after_s": round(time.monotonic() - begun_s, 1)}})
            say(f"not settled, {told} of {len(self.members)} are: {partial}", begun_s)
            raise
        found = self.account(done_s - loop_s, subject, await subject.read(), before)
        say(f"settled: {found}", begun_s)
        return found

    async def come_back(self, subject: Subject) -> Figures:
        """Seconds since the operator's start until it knows how every job stands; and what that took."""
        begun_s, before = time.monotonic(), self.read_servers()
        while (reading := await subject.read()).described < len(self.members) or reading.oldest_s > 1.0:
            await asyncio.sleep(0.2)
        found = self.account(time.monotonic() - begun_s, subject, reading, before)
        say(f"come back: {found}", begun_s)
        return found

    def account(self, seconds: float, subject: Subject, reading: Reading, before: dict[str, float]) -> Figures:
        """What a start of the operator took, up to a reading."""
        return {
            "seconds": round(seconds, 2),
            "peak_mib": round(subject.peak_mib, 1),
            "passes": reading.ticks,
            "requests": dict(reading.requests),
            "cpu_s": {machine.OPERATOR: round(reading.cpu_s, 2)} | machine.between(before, self.read_servers()),
        }

    async def give_pods(self) -> int:
        """Play the Job controller: one fifth gets pods, three fifths are over; returns how many pods there are."""
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
        return sum(role is Role.RUNNING for role in roles.values())

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
        what = "running jobs have been measured"
        await self.census.wait(lambda: running <= self.census.observed, self.limit_s, what)
        say("every running job has been measured", begun_s)
        while (await self.look_on(subject, CALM_S)).writes_per_s:
            say("something is still written", begun_s)
        span = await self.look_on(subject, self.options.idle_s)
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
            await self.census.wait(lambda: self.census.told.get(key, 0) >= generation, self.limit_s, what)
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
        await self.census.wait(lambda: self.census.untold == len(self.members), self.limit_s, "every change is seen")
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


def describe(span: Span) -> Figures:
    """What lay between two readings, in figures."""
    return {
        "seconds": round(span.seconds, 1),
        "passes": span.ticks,
        "cpu_ms_per_pass": round(span.cpu_ms_per_tick, 2),
        "cpu_share": round(span.cpu_s / span.seconds, 4),
        "writes_per_s": round(span.writes_per_s, 3),
        "requests": span.requests,
    }


def render(rows: list[Figures]) -> str:
    """The table; what was not reached is left open."""
    times = ("new s", "restart s", "known s", "peak MiB", "idle writes/s", "tick ms", "event p50 s", "p99 s")
    heads = ("jobs", "experiments", "pods", *times)
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        latencies_s = row.get("latencies_s") or [float("nan")]
        cells = [
            f"{row['jobs']:,}",
            f"{row['experiments']:,}",
            f"{row.get('pods', 0):,}",
            *(f"{row.get(name, {}).get('seconds', float('nan')):.1f}" for name in ("new", "restart", "known")),
            f"{max((row.get(name, {}).get('peak_mib', 0) for name in ('new', 'known')), default=0):.0f}",
            f"{row.get('idle', {}).get('writes_per_s', float('nan')):.2f}",
            f"{row.get('woken', {}).get('cpu_ms_per_pass', float('nan')):.2f}",
            f"{statistics.median(latencies_s):.2f}",
            f"{latencies_s[int(0.99 * (len(latencies_s) - 1))]:.2f}",
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
