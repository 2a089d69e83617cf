"""What does an experiment's evidence say, and which block is needed next?

One pure function from a plan and its finished blocks to the next need or to the verdict: proof, discovery, refute
checks, soak, null. It starts anew each time and stores nothing, so a replay and a cold restart judge alike. Missing,
garbled or lying data never becomes `Won`. docs/judge.md tells how a verdict is reached, and how often it is wrong.
"""

from amdahl_loop.domain import cadence, vetoes
from amdahl_loop.domain.assessment import Assessment, Candidate, Case, Closed, NeedBlocks, close, open_case
from amdahl_loop.domain.blocks import Stage
from amdahl_loop.domain.challenge import carry_claim, challenge
from amdahl_loop.domain.discovery import discover
from amdahl_loop.domain.experiments import Experiment
from amdahl_loop.domain.proof import NeedProof, Unproven, prove_same_work
from amdahl_loop.domain.telemetry import Arm
from amdahl_loop.domain.verdicts import VerdictWord, VetoName

__all__ = ["Assessment", "Candidate", "Closed", "NeedBlocks", "assess", "upholds"]

MAX_BASELINE_FAULTS = 3
"""A baseline that fails this often cannot be compared with anything."""


def assess(experiment: Experiment) -> Assessment:
    """The next need of an experiment, or its verdict; the same experiment always gets the same answer."""
    if experiment.verdict is not None:
        return Closed(experiment.verdict)
    case = open_case(experiment)
    proof = prove_same_work(case.plan, case.plan.stage_blocks(Stage.PROOF), case.finished(Stage.PROOF))
    if isinstance(proof, Unproven):
        return close(case, proof.word, proof.reason, proof.sentence, vetoes=proof.vetoes)
    if isinstance(proof, NeedProof):
        return NeedBlocks(proof.specs, Stage.PROOF, proof.sentence)
    ended = _guard_every_block(case)
    if ended:
        return ended
    claim = carry_claim(case, proof.vetoes) if case.plan.skip_discovery else discover(case, proof.vetoes)
    return claim if isinstance(claim, Assessment) else challenge(case, claim)


def upholds(win: Experiment) -> bool:
    """Whether a win is what its recorded blocks show to this judge; those that tested it on afterwards are left out.

    Nobody's word is put in force, whoever wrote it into the ledger, in the name of whichever version: the plan holds
    every constant that a judge may use, so what another version judged is judged again by this one. A win that only
    the other version finds stays on record, and is not applied.
    """
    before = tuple(block for block in win.blocks if block.spec.stage is not Stage.HOLDOUT)
    judged = assess(win.model_copy(update={"verdict": None, "blocks": before}))
    return isinstance(judged, Closed) and judged.verdict.word is VerdictWord.WON


def _guard_every_block(case: Case) -> Closed | None:
    """Before any statistics: unequal work, lying meters, a variant that fails, a baseline that keeps failing."""
    for block in case.scored:
        ignored = cadence.find_ignored(case.plan, block.windows, [Arm(letter) for letter in block.spec.order])
        if ignored:
            return close(case, VerdictWord.NO_GAIN, "knob_ignored", f"no gain: {ignored}")
        found = vetoes.check_block(block)
        if block.fault is not None and block.culprit is Arm.VARIANT:
            found = vetoes.loud(VetoName.HARM, f"{block.problem} in block {block.spec.name}, so it loses")
        if found:
            reason = f"variant_{block.fault}" if found.name is VetoName.HARM else found.name.value
            return close(case, VerdictWord.VETOED, reason, f"vetoed by {found.name}: {found.sentence}", vetoes=(found,))
    faults = [block for block in case.scored if block.fault is not None]
    if len(faults) >= MAX_BASELINE_FAULTS:
        sentence = f"the baseline failed in {len(faults)} blocks, last: {faults[-1].problem}; mend the job first"
        return close(case, VerdictWord.ERROR, "BaselineUnstable", sentence)
    return None
