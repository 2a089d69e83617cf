"""How does a command get into a cluster, and what is a user told where it cannot?

Every trouble of a cluster ends a command with code 4 and one sentence that names what was refused and the fix.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

from amdahl_loop.adapters.kube.client import ApiUnavailable, KubeClient
from amdahl_loop.adapters.kube.recall import LedgerUnreadableError
from amdahl_loop.adapters.kube.transport import AccessError
from amdahl_loop.cli.arguments import default_ledger
from amdahl_loop.cli.exits import Exit, Stop
from amdahl_loop.cli.session import World


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster, and the namespace that a command is about; None: all of them."""

    client: KubeClient
    namespace: str | None

    @property
    def place(self) -> str:
        """Where, in words; also what `-o json` names as the ledger."""
        return "all namespaces" if self.namespace is None else f"namespace {self.namespace}"

    @property
    def one_namespace(self) -> str:
        """The namespace of a command that is about one."""
        assert self.namespace is not None, "only fleet and ledger take all namespaces"
        return self.namespace


Work = Callable[[Cluster, argparse.Namespace, World], Awaitable[int]]


def over_cluster(work: Work) -> Callable[[argparse.Namespace, World], int]:
    """A command of the command line from what it does in a cluster."""

    async def run(arguments: argparse.Namespace, world: World) -> int:
        async with open_cluster(arguments, world) as cluster:
            return await work(cluster, arguments, world)

    return lambda arguments, world: asyncio.run(run(arguments, world))


@asynccontextmanager
async def open_cluster(arguments: argparse.Namespace, world: World) -> AsyncIterator[Cluster]:
    """Connect to the cluster that the options name."""
    default = default_ledger(world.environment)
    if getattr(arguments, "ledger", default) != default:
        raise Stop(Exit.USAGE, f"--ledger {arguments.ledger} and a cluster are two places; name one of them")
    if arguments.kubeconfig is not None and not arguments.kubeconfig.is_file():
        raise Stop(
            Exit.ENVIRONMENT, f"there is no kubeconfig at {arguments.kubeconfig}; name another with --kubeconfig"
        )
    try:
        client, namespace = await world.connect(arguments.kubeconfig, arguments.context, world.environment)
    except AccessError as error:
        raise Stop(Exit.ENVIRONMENT, str(error)) from error
    is_everywhere = getattr(arguments, "all_namespaces", False)
    async with client:
        try:
            yield Cluster(client=client, namespace=None if is_everywhere else arguments.namespace or namespace)
        except ApiUnavailable as error:
            raise Stop(Exit.ENVIRONMENT, tell_trouble(error)) from error
        except LedgerUnreadableError as error:
            raise Stop(Exit.LEDGER, str(error)) from error


def tell_trouble(error: ApiUnavailable) -> str:
    """What stands in the way, and what to do about it."""
    refused = error.refused
    if refused is None:
        return f"the cluster does not answer: {error}; look at --kubeconfig and --context, or try again"
    if refused.status == HTTPStatus.NOT_FOUND:
        return f"{error}: the cluster does not know this program's kinds; install the chart first (docs/install.md)"
    if refused.status == HTTPStatus.UNAUTHORIZED:
        return f"{error}: the cluster does not know who asks; renew the credentials in the kubeconfig"
    if refused.status == HTTPStatus.FORBIDDEN:
        return f"{refused.message}; docs/cli.md lists the rights that each command needs"
    return f"{error}; try again"
