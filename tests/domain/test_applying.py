"""When is the user's spec written, by force or not, and when is it left alone?"""

from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from amdahl_loop.domain.applying import (
    Conflict,
    Decision,
    DeclaredSpec,
    KeepOverlay,
    Nothing,
    Position,
    RecordRelease,
    RecordRevert,
    WriteSpec,
    chain_of,
    decide,
    hold,
    locate,
)
from amdahl_loop.domain.knob_values import KnobName, Knobs, KnobValue
from amdahl_loop.domain.ledger import Application, ApplicationKind, effective_knobs
from amdahl_loop.domain.reasons import Reason
from amdahl_loop.domain.stewards import (
    OUR_MANAGER,
    Claim,
    Steward,
    hand_over_rules,
    read_marks,
    read_overruled,
    steward_of,
)
from amdahl_loop.domain.tuning import Mode
from builders import FINGERPRINT, UID

WORKERS, CADENCE = KnobName.DATALOADER_WORKERS, KnobName.CHECKPOINT_EVERY_STEPS
KUBECTL, ARGO, FLUX, STRANGER = "kubectl-client-side-apply", "argocd-controller", "kustomize-controller", "manager"


def make_knobs(workers: int = 0, **others: int) -> Knobs:
    """Knob values; what is before, after and beside them differs in the workers."""
    return Knobs(dataloader_workers=workers, **others)


def make_application(
    before: Knobs, after: Knobs, kind: ApplicationKind = ApplicationKind.APPLIED, experiment: str = "e0"
) -> Application:
    """One application; `before` is what the spec said."""
    return Application(
        job="pydocs",
        job_uid=UID,
        fingerprint=FINGERPRINT,
        at_s=1.0,
        kind=kind,
        experiment=experiment,
        declared=before,
        knobs=after,
    )


APPLIED = make_application(make_knobs(0), make_knobs(2))
REVERTED = make_application(make_knobs(0), make_knobs(2), ApplicationKind.REVERTED)


def make_spec(workers: int = 0, *managers: str, seen: int | None = None, **fields: Any) -> DeclaredSpec:
    """The object, with managers that own the workers' field."""
    return DeclaredSpec(
        name="pydocs",
        namespace="team",
        knobs=fields.pop("knobs", make_knobs(workers)),
        claims=tuple(Claim(manager=manager, knob=WORKERS) for manager in managers),
        seen={} if seen is None else {WORKERS: seen},
        **fields,
    )


def say(decision: Decision) -> tuple[str, Reason | None]:
    """The decision in one word, with its reason."""
    match decision:
        case WriteSpec():
            return ("force" if decision.force else "write"), None
        case RecordRevert():
            return "revert", None
        case RecordRelease():
            return "release", None
        case KeepOverlay() | Conflict() | Nothing():
            return type(decision).__name__, decision.reason


OVERLAY, CONFLICT = "KeepOverlay", "Conflict"


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.SPEC])
@pytest.mark.parametrize(
    ("owners", "refusers", "held_by", "word"),
    [
        pytest.param([], [], None, "write", id="nobody owns it"),
        pytest.param([OUR_MANAGER], [], None, "write", id="ours already"),
        pytest.param([KUBECTL], [], None, "write", id="kubectl: tried without force first"),
        pytest.param([KUBECTL], [KUBECTL], None, "force", id="kubectl, refused"),
        pytest.param(["kubectl"], ["kubectl", "kubectl-edit"], None, "force", id="two people, refused"),
        pytest.param([], [ARGO], Reason.MANAGED_BY_ARGO_CD, "", id="a tool that came between"),
        pytest.param([KUBECTL], [KUBECTL, STRANGER], Reason.MANAGED_BY_OTHER, "", id="a person and a program, refused"),
        pytest.param([ARGO], [], Reason.MANAGED_BY_ARGO_CD, "", id="Argo CD"),
        pytest.param([FLUX], [], Reason.MANAGED_BY_FLUX, "", id="Flux"),
        pytest.param(["helm"], [], Reason.MANAGED_BY_HELM, "", id="Helm"),
        pytest.param(["helm-controller"], [], Reason.MANAGED_BY_HELM, "", id="Flux's Helm"),
        pytest.param(["kapp-server-side"], [], Reason.MANAGED_BY_KAPP, "", id="kapp"),
        pytest.param([STRANGER], [], Reason.MANAGED_BY_OTHER, "", id="a program nobody knows"),
        pytest.param([KUBECTL, FLUX], [], Reason.MANAGED_BY_FLUX, "", id="kubectl and Flux together"),
        pytest.param([OUR_MANAGER, ARGO], [], Reason.MANAGED_BY_ARGO_CD, "", id="we and Argo CD together"),
    ],
)
def test_who_owns_the_field_decides_whether_it_is_written(
    mode: Mode, owners: list[str], refusers: list[str], held_by: Reason | None, word: str
) -> None:
    """Force takes a field from people only; a tool keeps it, as an overlay in Auto, as a conflict in Spec."""
    refused = [Claim(manager=manager, knob=WORKERS) for manager in refusers]
    held = OVERLAY if mode is Mode.AUTO else CONFLICT
    expected = (word, None) if held_by is None else (held, held_by)
    assert say(decide(mode, make_spec(0, *owners), [APPLIED], refused)) == expected


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("owner", [None, OUR_MANAGER, KUBECTL, ARGO])
@pytest.mark.parametrize(
    ("declared", "seen", "applications", "auto"),
    [
        pytest.param(0, None, [], ("Nothing", Reason.NOTHING_APPLIED), id="nothing applied"),
        pytest.param(0, None, [APPLIED], ("write", None), id="not written yet"),
        pytest.param(0, 0, [APPLIED], ("write", None), id="the old value was seen last"),
        pytest.param(2, None, [APPLIED], ("Nothing", Reason.IN_SPEC), id="written"),
        pytest.param(2, 2, [APPLIED], ("Nothing", Reason.IN_SPEC), id="written and seen"),
        pytest.param(0, 2, [APPLIED], ("revert", None), id="put back"),
        pytest.param(7, 2, [APPLIED], ("Nothing", Reason.NEW_BASELINE), id="a third value"),
        pytest.param(0, 0, [APPLIED, REVERTED], (OVERLAY, Reason.REVERTED), id="a revert is on record"),
        pytest.param(2, 0, [APPLIED, REVERTED], ("Nothing", Reason.IN_SPEC), id="the owner took it after all"),
        pytest.param(7, 0, [APPLIED, REVERTED], ("Nothing", Reason.NEW_BASELINE), id="a third value after a revert"),
    ],
)
def test_what_the_spec_says_decides_first(
    mode: Mode, owner: str | None, declared: int, seen: int | None, applications: list[Application], auto: Any
) -> None:
    """Values that are in the spec, were put back, or are the owner's own are the same in every mode, whoever owns them."""
    spec = make_spec(declared, *([owner] if owner else []), seen=seen)
    found = say(decide(mode, spec, applications))
    if auto not in [("write", None), (OVERLAY, Reason.REVERTED)]:
        assert found == auto
    elif mode not in (Mode.AUTO, Mode.SPEC):
        assert found == (OVERLAY if mode is Mode.OVERLAY else "Nothing", Reason.MODE_KEEPS_SPEC)
    elif auto == ("write", None) and owner == ARGO:
        assert found == (OVERLAY if mode is Mode.AUTO else CONFLICT, Reason.MANAGED_BY_ARGO_CD)
    else:
        assert found == ((CONFLICT, auto[1]) if mode is Mode.SPEC and auto[0] == OVERLAY else auto)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(
    ("declared", "applications", "reason"),
    [
        pytest.param(0, [APPLIED], Reason.OUTSIDE_LIMITS, id="not written yet"),
        pytest.param(0, [APPLIED, REVERTED], Reason.OUTSIDE_LIMITS, id="put back"),
        pytest.param(2, [APPLIED], Reason.IN_SPEC, id="the owner's spec holds it"),
    ],
)
def test_a_limit_keeps_values_out_of_the_spec_in_every_mode(
    mode: Mode, declared: int, applications: list[Application], reason: Reason
) -> None:
    """What a limit forbids is not written, and the limit is named; what is declared is its owner's."""
    decision = decide(mode, make_spec(declared), applications, ban="dataloaderWorkers 2 is outside [0, 1]")
    assert say(decision) == ("Nothing", reason)
    assert ("outside [0, 1]" in decision.sentence) is (reason is Reason.OUTSIDE_LIMITS)


def test_a_revert_is_recorded_and_its_value_runs_on_as_an_overlay() -> None:
    """The fact holds the owner's words and the values in force, so that every later pass finds it settled."""
    decision = decide(Mode.AUTO, make_spec(0, "kubectl-edit", seen=2), [APPLIED])
    assert isinstance(decision, RecordRevert)
    assert decision.sentence == "kubectl-edit put spec.knobs.dataloaderWorkers back to what it was before e0."
    fact = decision.as_application(at_s=9.0)
    assert (fact.kind, fact.at_s, fact.experiment) == (ApplicationKind.REVERTED, 9.0, "e0")
    assert effective_knobs(make_knobs(0), [APPLIED, fact]) == make_knobs(2)
    assert say(decide(Mode.AUTO, make_spec(0, KUBECTL), [APPLIED, fact])) == (OVERLAY, Reason.REVERTED)


def test_an_old_file_that_undoes_two_wins_is_one_revert() -> None:
    """A client-side apply of the first manifest puts back what was declared before any win: not a new baseline."""
    first = make_application(make_knobs(0, checkpoint_every_steps=50), make_knobs(2, checkpoint_every_steps=50))
    second = make_application(first.knobs, make_knobs(2, checkpoint_every_steps=400), experiment="e1")
    spec = make_spec(knobs=first.declared, seen=2)
    assert locate(spec, [first, second]) is Position.PUT_BACK
    decision = decide(Mode.AUTO, spec, [first, second])
    assert isinstance(decision, RecordRevert)
    fact = decision.as_application(at_s=9.0)
    assert effective_knobs(first.declared, [first, second, fact]) == second.knobs
    assert say(decide(Mode.AUTO, spec, [first, second, fact])) == (OVERLAY, Reason.REVERTED)


def test_what_an_owner_said_before_a_new_baseline_is_no_revert() -> None:
    """0, then the owner's own 4, then 0 again: nobody undid anything of ours."""
    first = make_application(make_knobs(0), make_knobs(2))
    second = make_application(make_knobs(4), make_knobs(8), experiment="e1")
    assert locate(make_spec(0, seen=8), [first, second]) is Position.ELSEWHERE


def test_a_win_after_a_revert_stays_an_overlay_until_the_owner_declares_anew() -> None:
    """One revert ends writing on this baseline; on a new baseline the spec may be written again."""
    later = make_application(make_knobs(0), make_knobs(4), experiment="e1")
    assert say(decide(Mode.AUTO, make_spec(0), [APPLIED, REVERTED, later])) == (OVERLAY, Reason.REVERTED)
    anew = make_application(make_knobs(7), make_knobs(8), experiment="e2")
    assert say(decide(Mode.AUTO, make_spec(7), [APPLIED, REVERTED, anew])) == ("write", None)


@pytest.mark.parametrize(("mode", "word"), [(Mode.AUTO, OVERLAY), (Mode.SPEC, CONFLICT)])
def test_two_reverts_end_the_fight_for_good(mode: Mode, word: str) -> None:
    """On every later baseline, whoever owns the field."""
    again = make_application(make_knobs(7), make_knobs(8), ApplicationKind.REVERTED, "e1")
    anew = make_application(make_knobs(9), make_knobs(3), experiment="e2")
    decision = decide(mode, make_spec(9), [APPLIED, REVERTED, again, anew])
    assert say(decision) == (word, Reason.DRIFT_FIGHT)
    assert isinstance(decision, KeepOverlay | Conflict)
    assert "put back 2 times" in decision.sentence


def test_a_roll_back_is_written_like_any_other_value() -> None:
    """The spec holds the faded value, which was ours; the old one is applied over it."""
    back = make_application(make_knobs(2), make_knobs(0), ApplicationKind.ROLLED_BACK)
    spec = make_spec(2, OUR_MANAGER, seen=2)
    assert decide(Mode.AUTO, spec, [APPLIED, back]) == WriteSpec(experiment="e0", values={WORKERS: 0}, force=False)


def test_fields_that_are_ours_already_are_applied_again() -> None:
    """Server-side apply drops what an owner no longer mentions: a second win must not take the first from the spec."""
    before, after = make_knobs(2, checkpoint_every_steps=50), make_knobs(2, checkpoint_every_steps=400)
    spec = make_spec(knobs=before, seen=2).model_copy(
        update={"claims": (Claim(manager=OUR_MANAGER, knob=WORKERS), Claim(manager=KUBECTL, knob=CADENCE))}
    )
    decision = decide(Mode.AUTO, spec, [APPLIED, make_application(before, after, experiment="e1")])
    assert decision == WriteSpec(experiment="e1", values={WORKERS: 2, CADENCE: 400}, force=False)


@pytest.mark.parametrize(
    ("manager", "steward"),
    [
        (OUR_MANAGER, Steward.OURS),
        ("amdahl-loop-fork", Steward.OTHER),
        ("kubectl", Steward.INTERACTIVE),
        ("kubectl-patch", Steward.INTERACTIVE),
        ("kubectlish", Steward.OTHER),
        ("argocd-application-controller", Steward.ARGO_CD),
        ("ArgoCD-controller", Steward.ARGO_CD),
        ("flux-client-side-apply", Steward.FLUX),
        ("Helm", Steward.HELM),
        ("helm-controller", Steward.FLUX_HELM),
        ("before-first-apply", Steward.OTHER),
        ("", Steward.OTHER),
    ],
)
def test_managers_are_told_apart_by_name(manager: str, steward: Steward) -> None:
    """A name that nobody knows belongs to a program, never to a person."""
    assert steward_of(manager) is steward


@pytest.mark.parametrize(
    ("marks", "reason"),
    [
        ({"argocd.argoproj.io/tracking-id": "x"}, Reason.MANAGED_BY_ARGO_CD),
        ({"kustomize.toolkit.fluxcd.io/name": "x"}, Reason.MANAGED_BY_FLUX),
        ({"app.kubernetes.io/managed-by": "Helm"}, Reason.MANAGED_BY_HELM),
        ({"app.kubernetes.io/managed-by": "hand"}, None),
        ({}, None),
    ],
)
def test_a_tool_may_write_under_kubectl_s_name(marks: dict[str, str], reason: Reason | None) -> None:
    """A field of kubectl's on an object that a tool tracks is the tool's; one that nobody owns is free all the same."""
    tracked = read_marks(marks)
    by_kubectl = say(decide(Mode.AUTO, make_spec(0, KUBECTL, tracked_by=tracked), [APPLIED]))
    assert by_kubectl == (("write", None) if reason is None else (OVERLAY, reason))
    assert say(decide(Mode.AUTO, make_spec(0, tracked_by=tracked), [APPLIED])) == ("write", None)


BOTH: Mapping[KnobName, KnobValue] = {WORKERS: 0, CADENCE: 50}
TARGET = {"group": "amdahl-loop.io", "kind": "TrainingJob", "name": "pydocs"}
POINTERS = ["/spec/knobs/dataloaderWorkers", "/spec/knobs/checkpointEverySteps"]
PATHS = [".spec.knobs.dataloaderWorkers", ".spec.knobs.checkpointEverySteps"]
LEFT_OUT = {"spec": {"knobs": {"dataloaderWorkers": 0, "checkpointEverySteps": 50}}}
OVERRULE = {"metadata": {"annotations": {"amdahl-loop.io/overrule": "a,b: c"}}}
MATCHER = {"kindNamespaceNameMatcher": {"kind": "TrainingJob", "namespace": "team", "name": "pydocs"}}


@pytest.mark.parametrize(
    ("steward", "rules"),
    [
        (
            Steward.ARGO_CD,
            {
                "spec": {
                    "ignoreDifferences": [TARGET | {"jqPathExpressions": PATHS}],
                    "syncPolicy": {"syncOptions": ["RespectIgnoreDifferences=true", "ServerSideApply=true"]},
                }
            },
        ),
        (Steward.FLUX, {"spec": {"ignore": [{"paths": POINTERS, "target": TARGET}]}}),
        (Steward.FLUX_HELM, {"spec": {"driftDetection": {"ignore": [{"paths": POINTERS, "target": TARGET}]}}}),
        (
            Steward.KAPP,
            {
                "apiVersion": "kapp.k14s.io/v1alpha1",
                "kind": "Config",
                "rebaseRules": [
                    {
                        "path": ["spec", "knobs", knob],
                        "type": "copy",
                        "sources": ["existing", "new"],
                        "resourceMatchers": [MATCHER],
                    }
                    for knob in BOTH
                ],
            },
        ),
    ],
)
def test_a_tool_that_can_be_told_has_two_ways(steward: Steward, rules: object) -> None:
    """Leave the knobs out; or tell the tool to ignore exactly these fields of this job, and the loop that it was told."""
    found = hand_over_rules(steward, "team", "pydocs", BOTH, ["a", "b: c"])
    assert [yaml.safe_load(rule.snippet) for rule in found] == [LEFT_OUT, rules, OVERRULE]
    assert all(rule.where and "\n" not in rule.snippet for rule in found)
    annotations = yaml.safe_load(found[-1].snippet)["metadata"]["annotations"]
    assert read_overruled(annotations) == {"a", "b: c"}


@pytest.mark.parametrize(("steward", "documents"), [(Steward.HELM, [LEFT_OUT]), (Steward.OTHER, [])])
def test_a_tool_that_cannot_be_told_has_one_way_or_none(steward: Steward, documents: list[object]) -> None:
    """Helm ignores nothing; of a program that nobody knows, nothing is promised."""
    found = hand_over_rules(steward, "team", "pydocs", BOTH, ["helm"])
    assert [yaml.safe_load(rule.snippet) for rule in found] == documents


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.SPEC])
@pytest.mark.parametrize(
    ("owners", "overruled", "word"),
    [
        pytest.param([FLUX], "kustomize-controller", "force", id="the tool that was named"),
        pytest.param([FLUX], " argocd-controller , kustomize-controller ", "force", id="one of two"),
        pytest.param([FLUX], "kustomize", "held", id="no beginnings of names"),
        pytest.param([FLUX, "helm"], "kustomize-controller", "held", id="another tool has a claim too"),
        pytest.param([STRANGER], STRANGER, "force", id="a program that nobody knows"),
        pytest.param([FLUX], "", "held", id="nobody is named"),
    ],
)
def test_an_owner_lets_a_tool_be_overruled(mode: Mode, owners: list[str], overruled: str, word: str) -> None:
    """A tool that ignores a field goes on owning it: only the owner can say that it was told to."""
    names = read_overruled({"amdahl-loop.io/overrule": overruled} if overruled else {})
    refused = [Claim(manager=manager, knob=WORKERS) for manager in owners]
    found, _ = say(decide(mode, make_spec(0, *owners, overruled=names), [APPLIED], refused))
    assert found == (word if word == "force" else OVERLAY if mode is Mode.AUTO else CONFLICT)


def test_an_overruled_tool_that_puts_its_value_back_is_not_written_again() -> None:
    """It was not told to ignore the field after all: one revert ends it, as with anybody."""
    spec = make_spec(0, FLUX, overruled=frozenset({FLUX}), seen=2)
    assert say(decide(Mode.AUTO, spec, [APPLIED])) == ("revert", None)
    assert say(decide(Mode.AUTO, spec, [APPLIED, REVERTED])) == (OVERLAY, Reason.REVERTED)


GONE, CADENCED = Knobs(), Knobs(checkpoint_every_steps=50)
RELEASED = make_application(GONE, make_knobs(2))


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(
    ("knobs", "seen", "applications", "word"),
    [
        pytest.param(GONE, None, [APPLIED], ("release", None), id="left out"),
        pytest.param(GONE, 0, [APPLIED], ("release", None), id="left out, the old value was seen last"),
        pytest.param(GONE, 2, [APPLIED], ("Nothing", Reason.NEW_BASELINE), id="taken out of the written spec"),
        pytest.param(GONE, None, [APPLIED, REVERTED], ("Nothing", Reason.NEW_BASELINE), id="after a revert"),
        pytest.param(CADENCED, None, [APPLIED], ("Nothing", Reason.NEW_BASELINE), id="and another one declared"),
        pytest.param(GONE, None, [APPLIED, RELEASED], ("write", None), id="on record"),
        pytest.param(make_knobs(2), None, [APPLIED, RELEASED], ("Nothing", Reason.IN_SPEC), id="written"),
        pytest.param(make_knobs(0), 2, [APPLIED, RELEASED], ("revert", None), id="written, and put back"),
    ],
)
def test_a_knob_that_is_left_out_is_the_loop_s_to_write(
    mode: Mode, knobs: Knobs, seen: int | None, applications: list[Application], word: Any
) -> None:
    """Where a win waits for its field; in any other case it is no longer the loop's to change."""
    found = say(decide(mode, make_spec(knobs=knobs, seen=seen), applications))
    if mode in (Mode.AUTO, Mode.SPEC) or word[0] not in ("release", "write"):
        assert found == word
    else:
        kept = (OVERLAY if mode is Mode.OVERLAY else "Nothing", Reason.MODE_KEEPS_SPEC)
        assert found == (kept if word[0] == "write" else ("Nothing", Reason.NEW_BASELINE))


def test_a_released_field_keeps_its_value_in_force() -> None:
    """A knob that nobody declares would be the program's own in the meantime."""
    decision = decide(Mode.AUTO, make_spec(knobs=GONE), [APPLIED])
    assert isinstance(decision, RecordRelease)
    fact = decision.as_application(9.0)
    assert (fact.kind, fact.experiment, fact.at_s) == (ApplicationKind.APPLIED, "e0", 9.0)
    assert effective_knobs(GONE, [APPLIED]) == GONE
    assert effective_knobs(GONE, [APPLIED, fact]) == make_knobs(2)


def test_a_revert_of_two_wins_leaves_both_in_the_chain() -> None:
    """Both values run on as overlays: both wins are still the loop's own, to be tested on and to be rolled back."""
    first = make_application(make_knobs(0, checkpoint_every_steps=50), make_knobs(2, checkpoint_every_steps=50))
    second = make_application(first.knobs, make_knobs(2, checkpoint_every_steps=400), experiment="e1")
    back = second.model_copy(update={"kind": ApplicationKind.REVERTED, "declared": first.declared})
    assert chain_of([first, second, back]) == (first, second, back)


@pytest.mark.parametrize(("mode", "word", "said"), [(Mode.AUTO, OVERLAY, "Kept as"), (Mode.SPEC, CONFLICT, "Not in")])
def test_a_write_that_the_server_does_not_take_says_so(mode: Mode, word: str, said: str) -> None:
    """A rule of the cluster's own may forbid the value: the reason is the server's, and nothing is tried by force."""
    write = decide(mode, make_spec(0), [APPLIED])
    assert isinstance(write, WriteSpec)
    decision = hold(mode, write, "at most 1 worker here")
    assert say(decision) == (word, Reason.REFUSED_BY_SERVER)
    assert decision.sentence.startswith(said)
    assert decision.sentence.endswith("refused to write it: at most 1 worker here")
