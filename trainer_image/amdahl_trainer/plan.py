"""What would a run look like on machines that are not here? Mesh, memory, arithmetic, messages and speed.

`python -m amdahl_trainer.plan --world 64 --device H100 -- --config x.yaml` needs no device and starts nothing. `speed`
says what its two speeds count: one that no run can pass, and one to expect, whose assumptions the page names and the
command line changes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from amdahl_trainer import config as configs
from amdahl_trainer import fit as fits
from amdahl_trainer import flops, memory, parallel, speed
from amdahl_trainer.config import Config
from amdahl_trainer.errors import TrainerError
from amdahl_trainer.memory import Needs
from amdahl_trainer.mesh import Degrees
from amdahl_trainer.peers import Place
from amdahl_trainer.speed import Assumed, Speed

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Plan:
    """A run, before it is one."""

    degrees: Degrees
    micro_batch: int
    micro_batches: int
    parameters: int
    needs: tuple[Needs, ...]  # of each stage's ranks
    cost: flops.PerToken
    step_tokens: int
    peak: float | None
    assumed: Assumed
    speed: Speed | None  # where the device's peak is known

    def rate(self, step_s: float) -> float:
        """Tokens a second of each device, of steps that take this long."""
        return self.step_tokens / step_s / self.degrees.world

    def mfu(self, step_s: float) -> dict[str, float]:
        """Model FLOP utilisation by convention; `packed` only where the length of documents is known."""
        shares = flops.utilisation(self.cost, self.rate(step_s), self.peak)
        return shares if self.assumed.document else {name: shares[name] for name in ("palm", "causal")}


def make(config: Config, world: int, local_world: int, device: str, assumed: Assumed | None = None) -> Plan:
    """Plan a run. Raises ConfigError for one that could not be."""
    degrees = parallel.fit(config, Place(0, world, 0, local_world))
    micro_batch = fits.check_batch(config.batch, degrees.dp)
    peak = flops.peak_flops(device, config.precision.compute, config.metrics.peak_tflops)
    assumed = assumed or Assumed()
    return Plan(
        degrees=degrees,
        micro_batch=micro_batch,
        micro_batches=config.batch.global_sequences // degrees.dp // micro_batch,
        parameters=memory.count_parameters(config.model),
        needs=tuple(memory.estimate(config, degrees, stage) for stage in range(degrees.pp)),
        cost=flops.per_token(config.model, config.data.seq_len, assumed.document),
        step_tokens=config.batch.global_sequences * config.data.seq_len,
        peak=peak,
        assumed=assumed,
        speed=None if peak is None else speed.find(config, degrees, local_world, peak, assumed),
    )


def describe(plan: Plan, config: Config) -> str:
    """The plan as a page of text."""
    degrees, cost = plan.degrees, plan.cost
    rows = f"micro-batches x rows x tokens = {plan.micro_batches} x {plan.micro_batch} x {config.data.seq_len:,}"
    arithmetic = f"{cost.palm / 1e9:.3f} GFLOP a token (palm), {cost.causal / 1e9:.3f} (causal)"
    names = [name for name in asdict(plan.needs[0]) if name != "host"]
    names += ["total", "host"] if config.memory.cpu_offload else ["total"]
    unit, size = ("GiB", GIB) if plan.needs[0].total >= GIB else ("MiB", MIB)
    needs = [f"  {name:<12}" + "".join(f"{getattr(stage, name) / size:9.2f}" for stage in plan.needs) for name in names]
    return "\n".join(
        (
            f"mesh    {degrees.world} rank{'s' * (degrees.world > 1)} = {degrees}",
            f"step    {plan.step_tokens:,} tokens; a rank of dp takes {rows}",
            f"model   {plan.parameters:,} parameters; {arithmetic}",
            f"memory  {unit} of a rank, {_share(plan)}",
            *needs,
            *_speed(plan, config),
        )
    )


def _share(plan: Plan) -> str:
    held = [stage.parameters or stage.host // 4 for stage in plan.needs]  # of four equal parts one
    shares = " ".join(f"{each / memory.FULL / plan.parameters:.1%}" for each in held)
    return f"which holds {shares} of the parameters" + (", by stage" if len(held) > 1 else "")


def _speed(plan: Plan, config: Config) -> tuple[str, ...]:
    """The lines of utilisation, speed, messages, and what is assumed of them."""
    if plan.speed is None:
        why = f"unknown: no peak is known of the device that --device names, in {config.precision.compute}; "
        why += "metrics.peak_tflops states one"
        return f"MFU     {why}", "speed   unknown for the same reason; a run measures it"
    found = plan.speed
    expected, most = (
        f"{plan.rate(each):,.0f} tokens/s a device, {each:.2f} s a step" for each in (found.expected_s, found.least_s)
    )
    shares, limits = (
        ", ".join(f"{share:.1%} ({name})" for name, share in plan.mfu(each).items())
        for each in (found.expected_s, found.least_s)
    )
    return (
        f"MFU     expected {shares}; at most {limits}",
        f"speed   expected {expected}; at most {most}",
        f"losses  {found.idle:.1%} idle in the pipeline, {found.again:.1%} computed again",
        *(
            f"sends   {each.sent_bytes / GIB:.2f} GiB a rank and step for {each.name}: {each.seconds:.2f} s, "
            f"of which {each.exposed_s:.2f} s exposed"
            for each in found.messages
        ),
        *_assumptions(plan, config),
    )


def _assumptions(plan: Plan, config: Config) -> tuple[str, ...]:
    assumed, told = plan.assumed, plan.assumed.document
    if not config.data.doc_mask:
        documents = "a row is one document"
    elif told:
        documents = f"documents of {told:,.0f} tokens"
    else:
        documents = "a document fills its row; shorter ones take less (tell --document)"
    links = f"; a device sends {assumed.within / 1e9:g} GB/s within a machine, {assumed.between / 1e9:g} GB/s between"
    return (
        f"assumed layers reach {assumed.reached:.0%} of the peak, {speed.REACHABLE:.0%} at most"
        + (links if plan.degrees.world > 1 else ""),
        f"assumed {documents}",
        "assumed nothing for input, slower ranks, the optimizer and saves; palm counts pairs that kernels leave out",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a plan, and return the exit code."""
    parser = argparse.ArgumentParser(prog="amdahl_trainer.plan", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--world", type=int, default=1, help="ranks in all")
    parser.add_argument("--local-world", type=int, default=8, help="ranks on each machine")
    parser.add_argument("--device", default="H100", help="part of the device's name, as in `H100` or `A100`")
    parser.add_argument("--config", default=None, help="a configuration")
    default = Assumed()
    parser.add_argument("--document", type=float, default=0.0, help="tokens of the document of the average token")
    parser.add_argument("--reached", type=float, default=default.reached, help="share of the peak that layers reach")
    parser.add_argument("--within", type=float, default=default.within / 1e9, help="GB/s of a device on its machine")
    parser.add_argument("--between", type=float, default=default.between / 1e9, help="GB/s of it between machines")
    options, rest = parser.parse_known_args(arguments)
    try:
        config = configs.load(options.config, os.environ, [word for word in rest if word != "--"])
        assumed = Assumed(options.reached, options.within * 1e9, options.between * 1e9, options.document)
        plan = make(config, options.world, min(options.local_world, options.world), options.device, assumed)
    except TrainerError as error:
        print(f"amdahl_trainer.plan: {error}", file=sys.stderr)
        return int(error.code)
    print(describe(plan, config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
