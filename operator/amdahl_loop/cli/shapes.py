"""What exactly does `-o json` print?

One frozen shape per command: names are stable, keys may be added, none is renamed or removed. Shares and gains are
fractions of one, times are seconds, and `bank` is in device-hours. docs/cli.md shows one real example of each.
"""

from pydantic import BaseModel, ConfigDict, Field

from amdahl_loop.domain.hypotheses import Source
from amdahl_loop.domain.knob_values import KnobValue
from amdahl_loop.domain.verdicts import VerdictWord


class Shape(BaseModel):
    """A printed value: field names are the JSON's own; `from`, `with` and `class` are Python's words, hence aliased."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True, validate_by_name=True)


class ObservationShape(Shape):
    """Where a job's time goes under one set of knob values; `phases` are shares of steady wall time."""

    phases: dict[str, float]
    step_s: float
    samples_per_s: float
    devices: int


class CeilingShape(Shape):
    """The most that one knob could win."""

    removable_share: float
    speedup: float
    sentence: str


class DiagnosisShape(Shape):
    """What holds a job back; `ceilings` by knob."""

    class_: str = Field(serialization_alias="class")
    sentence: str
    ceilings: dict[str, CeilingShape]


class ChangeShape(Shape):
    """One knob from a value to another; null where the script chose."""

    knob: str
    from_: KnobValue | None = Field(serialization_alias="from")
    to: KnobValue


class RefuteShape(Shape):
    """One refute check: what it found, and what it had changed."""

    agree: bool
    effect: float
    changed: list[str]


class VetoShape(Shape):
    """One guard: silent is the good case."""

    name: str
    silent: bool
    sentence: str


class ExperimentShape(Shape):
    """One experiment. `effect` is the share of cost saved, `interval` its 90 % interval; null while there is none."""

    id: str
    knob: str
    from_: KnobValue | None = Field(serialization_alias="from")
    to: KnobValue
    with_: list[ChangeShape] = Field(serialization_alias="with")
    job: str
    source: Source
    verdict: VerdictWord | None
    reason: str
    sentence: str
    effect: float | None
    interval: tuple[float, float] | None
    refutes: list[RefuteShape]
    vetoes: list[VetoShape]
    blocks: int
    device_seconds: float
    namespace: str | None = None

    @property
    def changes(self) -> list[ChangeShape]:
        """Every change, the one that names the experiment first."""
        return [ChangeShape(knob=self.knob, from_=self.from_, to=self.to), *self.with_]


class BankShape(Shape):
    """Device-hours.

    `gross` and `net` are projected over the work ahead, `at_least` is the cautious net (95 %), and `accrued` is what
    hours already run have saved: never added to the rest.
    """

    gross: float
    spent: float
    net: float
    at_least: float
    accrued: float
    basis: str


class FinalShape(Shape):
    """Knob values in force."""

    knobs: dict[str, KnobValue]


class ManifestShape(Shape):
    """What the manifest would have to say, and whether it was written."""

    path: str
    diff: str
    written: bool


class RunShape(Shape):
    """`run`: before, what was tried, after."""

    job: str
    reason: str
    observation: ObservationShape | None
    diagnosis: DiagnosisShape | None
    experiments: list[ExperimentShape]
    after: ObservationShape | None
    final: FinalShape
    bank: BankShape
    manifest: ManifestShape
    ledger: str
    profile: str


class IdeaShape(Shape):
    """`explain`: one hypothesis and what the spend gate says of it."""

    changes: list[ChangeShape]
    source: Source
    rationale: str
    expected_gain: float
    expected_bank: float
    trial_device_hours: float
    sentence: str
    worth_trying: bool


class RejectedShape(Shape):
    """`explain`: a hypothesis that may not be tried."""

    changes: list[ChangeShape]
    reason: str


class IgnoreShape(Shape):
    """`explain`: the rule that makes a tool leave a proven value alone, and where it belongs."""

    where: str
    snippet: str


class ExplainShape(Shape):
    """`explain`: what was seen, what could be won, what would be tried. `policies` and `ignore` are a cluster's."""

    job: str
    observation: ObservationShape
    diagnosis: DiagnosisShape
    next: str
    ideas: list[IdeaShape]
    rejected: list[RejectedShape]
    settled: list[str]
    ledger: str
    policies: list[str] = []
    ignore: list[IgnoreShape] = []


class LedgerShape(Shape):
    """`ledger`: every experiment, oldest first."""

    ledger: str
    experiments: list[ExperimentShape]


class WindowShape(Shape):
    """`show`: one window as it was measured."""

    arm: str
    ran: str
    outcome: str
    why: str
    steps: int
    samples: int
    devices: int
    wall_s: float
    device_s_per_sample: float | None
    phases: dict[str, float]
    seed: int
    offset: int
    offset_applied: bool
    peak_mem_mib: int


class BlockShape(Shape):
    """`show`: one finished block; `effect` is the share of cost saved, null for proofs and missing windows."""

    name: str
    stage: str
    check: int
    order: str
    node: str
    started_at_s: float
    device_seconds: float
    valid: bool
    effect: float | None
    problem: str
    windows: list[WindowShape]


class ShowShape(Shape):
    """`show`: everything that is known of one experiment."""

    experiment: ExperimentShape
    hypothesis: str
    profile: str
    objective: str
    seed: int
    floor: float | None
    planned_blocks: int
    runs: list[BlockShape]
    svg: str | None


class ReplayedShape(Shape):
    """`replay`: one experiment (or a job's observations and applications) derived anew."""

    id: str
    decisions: int
    agree: bool
    difference: str


class ReplayShape(Shape):
    """`replay`: every recorded decision against what the loop decides today."""

    ledger: str
    agree: bool
    decisions: int
    not_derived: list[str]
    first_difference: str
    replayed: list[ReplayedShape]


class TransferShape(Shape):
    """`export` and `import`: how much moved."""

    ledger: str
    file: str
    entries: int


class RestoreShape(Shape):
    """`import` into a cluster: experiments that were created, completed after a cut import, there already, or open."""

    ledger: str
    file: str
    created: int
    completed: int
    present: int
    open: int


class TrialShape(Shape):
    """`fleet`: whether a job's trials go on, and why (not); `experiment` is the open one."""

    running: bool
    reason: str
    sentence: str
    experiment: str | None


class FleetBankShape(Shape):
    """`fleet`: device-hours saved so far, spent on trials, and the difference."""

    gross: float
    spent: float
    net: float


class FleetJobShape(Shape):
    """`fleet`: one job. `wasted` and `removable` are device-hours an hour; what is not known is null.

    `standing` and `tuned` are the reasons of the conditions Ready and Tuned; `current`: they are about this spec.
    """

    rank: int
    namespace: str
    job: str
    standing: str
    class_: str | None = Field(serialization_alias="class")
    sentence: str
    wasted: float | None
    removable: float | None
    ideas: list[IdeaShape]
    trial: TrialShape
    tuned: str
    bank: FleetBankShape | None
    current: bool


class FleetTotalShape(Shape):
    """`fleet`: sums over the jobs that are measured."""

    jobs: int
    measured: int
    wasted: float
    removable: float
    bank: FleetBankShape


class FleetShape(Shape):
    """`fleet`: every job, in the order in which trials are admitted. `namespace` is null for all."""

    namespace: str | None
    jobs: list[FleetJobShape]
    total: FleetTotalShape


class TraceShape(Shape):
    """What `trace` prints: where the trace lies and how much it holds."""

    job: str
    file: str
    events: int
