"""How ranks end when one of them does not do well: each with its exit code, the others with its name."""

from __future__ import annotations

import re
import signal
import socket
import time
from pathlib import Path

import pytest

from amdahl_trainer.errors import Exit

SCRIPT = str(Path(__file__).with_name("troubled.py"))
HOST = socket.gethostname()

#: A model that every layout can divide.
DIVISIBLE = {"model.n_layers": 2, "model.n_kv_heads": 2, "model.tie_embeddings": False}

#: Layouts by name: how many ranks, and the keys that divide the work among them.
LAYOUTS = {
    "ddp": (2, {}),
    "fsdp2": (2, {"parallel.dp_mode": "fsdp2"}),
    "tp": (2, {"parallel.tp": 2}),
    "pp": (2, {"parallel.pp": 2, "batch.micro_batch": 2}),
}

#: Short enough for a test, long enough for ranks that begin some seconds apart on a busy machine.
LIMIT_S = 20


@pytest.fixture
def troubled(start):
    """Start two ranks, one of which something happens to: `troubled("die", 1)`. A layout's keys may follow."""

    def go(trouble, rank, name=None, **changes):
        told = {"run.max_steps": 100_000, "limits.comm_timeout_s": LIMIT_S, **changes}
        environ = {"TROUBLE": trouble, "TROUBLE_RANK": str(rank)}
        return start(name or f"{trouble}-{rank}", told, nproc=2, environ=environ, script=SCRIPT)

    return go


@pytest.fixture
def built(run):
    """The corpus is built: from here on no rank waits for it."""
    assert run("built", {"run.max_steps": 1}).codes == [0]


@pytest.mark.slow
@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("layout", [*LAYOUTS, "workers"])
def test_a_rank_that_is_killed_is_named_by_the_others(start, layout):
    """In any layout, whichever rank it is, with no launcher in common: code 80, the rank, its machine.

    Loader workers are forked from their rank and hold its connections too; they end soon after it.
    """
    _, keys = {**LAYOUTS, "workers": (2, {"data.num_workers": 1})}[layout]
    told = DIVISIBLE | keys | {"run.max_steps": 100_000}
    begun = [start(f"killed-{rank}", told, nproc=2) for rank in (0, 1)]
    for rank, ranks in enumerate(begun):
        ranks.wait_for(lambda record: record["k"] == "step" and record["i"] == 3)
        ranks.signal(signal.SIGKILL, rank)
    for rank, ranks in enumerate(begun):
        ended = ranks.join()
        assert ended.codes[rank] == -signal.SIGKILL
        assert ended.codes[1 - rank] == Exit.PEER_DIED, ended.output
        assert f"rank {1 - rank}: rank {rank} on {HOST} died" in ended.output
        assert "Traceback" not in ended.output


@pytest.mark.slow
@pytest.mark.usefixtures("built")
def test_a_rank_that_is_killed_in_the_middle_of_a_save_is_named_by_the_others(start):
    """The save fails with it; that is no fault of the disk."""
    told = {"checkpoint.every_steps": 1, "run.max_steps": 100_000}
    script = str(Path(__file__).with_name("killed_at.py"))
    environ = {"KILL_AT": r"open \.draft-step-00000003-\w+/__1_0.*"}
    ended = start("saving", told, nproc=2, script=script, environ=environ).join()
    assert ended.codes == [Exit.PEER_DIED, -signal.SIGKILL], ended.output
    assert f"rank 0: rank 1 on {HOST} died" in ended.output


@pytest.mark.slow
@pytest.mark.usefixtures("built")
def test_ranks_that_hang_are_named_by_those_that_wait(troubled):
    """Stopped, or stuck in the loader, whichever rank: code 81, the rank, where it was. The stuck rank ends itself."""
    stuck = [troubled("hang", rank) for rank in (0, 1)]
    stopped = [troubled("hang", 2, f"stopped-{rank}") for rank in (0, 1)]
    for rank, ranks in enumerate(stopped):
        ranks.wait_for(lambda record: record["k"] == "step" and record["i"] == 3)
        ranks.signal(signal.SIGSTOP, rank)
    for rank, ranks in enumerate(stuck):
        ended = ranks.join()
        assert ended.codes == [Exit.PEER_HUNG] * 2, ended.output
        kept = rf"rank {rank} on {HOST} kept the others waiting for {LIMIT_S} s \(limits.comm_timeout_s\)"
        assert re.search(rf"rank {1 - rank}: {kept}: it is after step 3 in phase input since \d+ s", ended.output)
        assert f"rank {rank}: the other ranks waited for this one in vain" in ended.output
        assert "troubled.py" in ended.output  # the stack says in which line
    for rank, ranks in enumerate(stopped):
        assert ranks.wait(1 - rank) == Exit.PEER_HUNG, ranks.output
        ranks.signal(signal.SIGKILL, rank)
        ended = ranks.join()
        silent = rf"rank {rank} on {HOST} did not answer for {LIMIT_S} s \(limits.comm_timeout_s\)"
        seen = r"it was last seen (at start-up|after step \d+ in phase \w+)"  # it shows itself about once a second
        assert re.search(f"{silent}.*; {seen}", ended.output), ended.output


@pytest.mark.slow
@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("trouble", "code", "text"),
    [
        ("data", Exit.DATA, "there are no rows"),
        ("crash", Exit.CRASHED, "ValueError: what is this?"),
        ("lack", Exit.OUT_OF_MEMORY, "out of memory on rank"),
    ],
)
def test_a_rank_that_fails_by_itself_is_named_with_its_exit_code(troubled, trouble, code, text):
    """It ends with its own code, the others with 80, and all name the same rank."""
    begun = [troubled(trouble, rank) for rank in (0, 1)]
    for rank, ranks in enumerate(begun):
        ended = ranks.join()
        assert ended.codes[rank] == code, ended.output
        assert ended.codes[1 - rank] == Exit.PEER_DIED, ended.output
        assert re.search(rf"rank {rank}: .*{re.escape(text)}", ended.output)
        named = rf"rank {1 - rank}: rank {rank} on \S+ ended with exit code {int(code)} \({code.name.lower()}\)"
        assert re.search(named, ended.output), ended.output


@pytest.mark.slow
def test_memory_that_the_machine_refuses_is_told_with_sizes_and_what_would_help(start):
    """The CPU's own allocator, under a limit of address space: code 77, what was asked, held, predicted, and cures."""
    told = {"batch.global_sequences": 256, "model.d_ff": 2048, "memory.loss_chunks": 1}
    ended = start("limit", told, script=SCRIPT, environ={"TROUBLE": "limit", "TROUBLE_RANK": "0"}).join()
    assert ended.codes == [Exit.OUT_OF_MEMORY], ended.output
    said = ended.output.strip().splitlines()[-1]
    assert re.search(r"out of memory on rank 0 \(cpu\): [\d,]+ MiB more were asked for, [\d,]+ MiB are held", said)
    assert re.search(r"[\d,]+ MiB of [\d,]+ MiB of address space", said)
    assert re.search(r"by the memory model training needs [\d,]+ MiB here, activations [\d,]+ MiB of it", said)
    assert re.search(r"less would do with .*batch.micro_batch=64 \([\d,]+ MiB\)", said)
    assert "Traceback" not in ended.output


@pytest.mark.slow
def test_the_gpus_refusal_is_told_with_what_was_asked_for(start):
    """Raised as a GPU's allocator raises it."""
    ended = start("lack", script=SCRIPT, environ={"TROUBLE": "lack", "TROUBLE_RANK": "0"}).join()
    assert ended.codes == [Exit.OUT_OF_MEMORY], ended.output
    assert "2,560 MiB more were asked for" in ended.output


@pytest.mark.slow
@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_that_is_not_finite_stops_all_ranks_of_any_layout(run, layout):
    """Code 79 on each, said once, and the newest checkpoint is the one before the step."""
    world, keys = LAYOUTS[layout]
    told = DIVISIBLE | keys | {"optim.lr": 1e30, "optim.warmup_steps": 0, "checkpoint.every_steps": 1}
    bad = run(layout, told, nproc=world)
    assert bad.codes == [Exit.NON_FINITE] * world, bad.output
    assert bad.output.count("the step was refused") == 1
    saved = [save["step"] for save in bad.of("save")]
    assert f"the newest checkpoint is of step {saved[-1]}" in bad.output
    assert saved[-1] == len(bad.of("step")) - 1


def test_a_rank_that_never_comes_is_named(start):
    """Two ranks are awaited, one is started: code 81 after the time limit."""
    alone = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    first = start("first", {"limits.comm_timeout_s": 1}, environ=alone | {"MASTER_PORT": "19999"})
    second = start("second", {"limits.comm_timeout_s": 1}, environ=alone | {"RANK": "1", "MASTER_PORT": "19998"})
    missing, lonely = first.join(), second.join()
    assert missing.codes == lonely.codes == [Exit.PEER_HUNG], missing.output + lonely.output
    assert "rank 1 of 2 did not come for 1 s (limits.comm_timeout_s)" in missing.output
    assert "rank 0 was not at 127.0.0.1:19998 for 1 s (limits.comm_timeout_s)" in lonely.output


def test_a_port_that_is_taken_is_named(start):
    """By somebody else who listens where the ranks are to meet."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        told = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ended = start("taken", environ=told).join()
    assert ended.codes == [Exit.CONFIG], ended.output
    assert f"MASTER_PORT {port} cannot be listened to" in ended.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_is_stopped_while_it_waits_for_the_others_leaves_at_once(start, number):
    """There is nothing to save: code 75, and another start goes on."""
    told = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "19997"}
    ranks = start("early", environ=told)
    ranks.wait_for(lambda record: record["k"] == "start", rank=1)
    ranks.signal(number)
    ended = ranks.join()
    assert ended.codes == [Exit.YIELDED], ended.output
    assert "nothing to save" in ended.output


def is_running(pid):
    """Not yet a zombie, which the zygote has still to wait for."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


STOPS = [("ddp", signal.SIGTERM), ("fsdp2", signal.SIGTERM), ("tp", signal.SIGINT), ("pp", signal.SIGTERM)]


@pytest.mark.slow
@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(("layout", "number"), STOPS)
def test_a_signal_to_any_rank_makes_all_save_the_same_step(start, layout, number):
    """In any layout, from any rank, during saves and evaluations too, and however many follow."""
    world, keys = LAYOUTS[layout]
    busy = {"run.max_steps": 100_000, "checkpoint.every_steps": 2, "eval.every_steps": 3, "eval.sequences": 8}
    begun = [start(f"{layout}-{rank}", DIVISIBLE | keys | busy, nproc=world) for rank in range(world)]
    for rank, ranks in enumerate(begun):
        ranks.wait_for(lambda record: record["k"] == "step" and record["i"] == 4)
        ranks.signal(number, rank)
        ranks.signal(signal.SIGTERM, rank)
    for ranks in begun:
        ended = ranks.join()
        assert ended.codes == [Exit.YIELDED] * world, ended.output
        done = {len(ended.of("step", one)) for one in range(world)}
        assert done == {ended.of("save", one)[-1]["step"] for one in range(world)}
        assert len(done) == 1
        assert "Traceback" not in ended.output


@pytest.mark.slow
@pytest.mark.usefixtures("built")
def test_a_signal_at_start_up_is_heard_before_the_next_step(start):
    """Once the ranks have met, they agree before their first step and yield with what they began with."""
    ranks = start("starting", {"run.max_steps": 100_000}, nproc=2)
    while "# semantics" not in ranks.output:  # said when the ranks have met
        assert is_running(ranks.pids[0]), ranks.output
        time.sleep(0.01)
    ranks.signal(signal.SIGTERM, 0)
    ended = ranks.join()
    assert ended.codes == [Exit.YIELDED] * 2, ended.output


@pytest.mark.slow
@pytest.mark.usefixtures("built")
def test_a_person_who_asks_twice_is_obeyed_at_once(troubled):
    """The second SIGINT ends a rank that is stuck, by the code of the signal; the other one names it."""
    ranks = troubled("hang", 1)
    ranks.wait_for(lambda record: record["k"] == "step" and record["i"] == 2)
    while is_running(ranks.pids[1]):  # signals that come too soon after one another are one
        ranks.signal(signal.SIGINT, 1)
        time.sleep(0.1)
    ended = ranks.join()
    assert ended.codes[1] == 128 + signal.SIGINT, ended.output
    assert ended.codes[0] == Exit.PEER_DIED
