"""What would a run look like on machines that are not here? Mesh, memory, arithmetic and the best speed to hope for.

`python -m amdahl_trainer.plan --world 64 --device H100 -- --config x.yaml` needs no device and starts nothing. The
speed is a bound, not a promise: the share of a device's peak that large products reach, less what a pipeline idles and
what is computed twice. Exposed communication and waiting for input come off that, and only a run shows how much.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from amdahl_trainer import config as configs
from amdahl_trainer import fit as fits
from amdahl_trainer import flops, memory, parallel, pp
from amdahl_trainer.config import Config
from amdahl_trainer.errors import TrainerError
from amdahl_trainer.memory import Needs
from amdahl_trainer.mesh import Degrees
from amdahl_trainer.peers import Place

#: Share of the data sheet's peak that an 8192-cubed bfloat16 product of random numbers reached on one H200.
REACHABLE = 0.78

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
    idle: float  # share of time that a pipeline's ends leave a stage without work
    again: float  # arithmetic done a second time, over that which counts
    peak: float | None

    @property
    def mfu(self) -> float:
        """The most that model FLOP utilisation (palm) can be."""
        return REACHABLE * (1 - self.idle) / (1 + self.again)

    @property
    def step_s(self) -> float | None:
        """The least that a step can take, seconds; None where the device's peak is unknown."""
        if self.peak is None:
            return None
        return self.step_tokens * self.cost.palm / (self.degrees.world * self.peak * self.mfu)


def make(config: Config, world: int, local_world: int, device: str) -> Plan:
    """Plan a run. Raises ConfigError for one that could not be."""
    degrees = parallel.fit(config, Place(0, world, 0, local_world))
    micro_batch = fits.check_batch(config.batch, degrees.dp)
    micro_batches = config.batch.global_sequences // degrees.dp // micro_batch
    cost = flops.per_token(config.model, config.data.seq_len, float(config.data.seq_len))
    return Plan(
        degrees=degrees,
        micro_batch=micro_batch,
        micro_batches=micro_batches,
        parameters=memory.count_parameters(config.model),
        needs=tuple(memory.estimate(config, degrees, stage) for stage in range(degrees.pp)),
        cost=cost,
        step_tokens=config.batch.global_sequences * config.data.seq_len,
        idle=_idle(config, degrees, micro_batches),
        again=_again(config, cost),
        peak=flops.peak_flops(device, config.precision.compute, config.metrics.peak_tflops),
    )


def _idle(config: Config, degrees: Degrees, micro_batches: int) -> float:
    """The ramps at either end of a pipeline: pp - 1 turns of a stage among all (arXiv 2104.04473)."""
    turns = micro_batches * pp.count_stages(config.parallel) // degrees.pp
    return (degrees.pp - 1) / (turns + degrees.pp - 1)


def _again(config: Config, cost: flops.PerToken) -> float:
    """Forward passes of blocks, and of the head where the loss comes in pieces, over all forwards and backwards."""
    head = 2 * config.model.d_model * config.model.vocab_size
    blocks = cost.palm / 3 - head if config.memory.activation_checkpoint == "block" else 0.0
    return (blocks + (head if config.memory.loss_chunks > 1 else 0.0)) / cost.palm


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


def _speed(plan: Plan, config: Config) -> tuple[str, str]:
    """The lines of utilisation and speed."""
    if plan.step_s is None:
        why = f"unknown: no peak is known of the device that --device names, in {config.precision.compute}; "
        why += "metrics.peak_tflops states one"
        return f"MFU     {why}", "speed   unknown for the same reason; a run measures it"
    losses = f"{plan.idle:.1%} idle in the pipeline, {plan.again:.1%} computed again"
    rate = plan.step_tokens / plan.step_s / plan.degrees.world
    more = "; waits for other ranks come on top" if plan.degrees.world > 1 else ""
    return (
        f"MFU     at most {plan.mfu:.1%} (palm): {REACHABLE:.0%} reachable, {losses}",
        f"speed   at most {rate:,.0f} tokens/s a device: a step takes {plan.step_s:.2f} s or longer{more}",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a plan, and return the exit code."""
    parser = argparse.ArgumentParser(prog="amdahl_trainer.plan", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--world", type=int, default=1, help="ranks in all")
    parser.add_argument("--local-world", type=int, default=8, help="ranks on each machine")
    parser.add_argument("--device", default="H100", help="part of the device's name, as in `H100` or `A100`")
    parser.add_argument("--config", default=None, help="a configuration")
    options, rest = parser.parse_known_args(arguments)
    try:
        config = configs.load(options.config, os.environ, [word for word in rest if word != "--"])
        plan = make(config, options.world, min(options.local_world, options.world), options.device)
    except TrainerError as error:
        print(f"amdahl_trainer.plan: {error}", file=sys.stderr)
        return int(error.code)
    print(describe(plan, config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
