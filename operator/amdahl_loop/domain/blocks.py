"""Which blocks may an experiment need, and in which order, from which seeds and offsets do their windows run?

Every block is enumerated from one recorded seed before the first one runs. The same seed gives the same blocks, letter
for letter, which is what makes a cold restart and a replay exact (design, sections 8 and 9).
"""

import hashlib
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from amdahl_loop.domain.constants import Constants
from amdahl_loop.domain.digests import hash_text
from amdahl_loop.domain.values import Frozen


class Stage(StrEnum):
    """What a block is for."""

    PROOF = "proof"
    DISCOVERY = "discovery"
    REFUTE = "refute"
    SOAK = "soak"
    NULL = "null"
    HOLDOUT = "holdout"
    """After the verdict: does the win in force still stand? No part of the plan's blocks, and none of the verdict."""


class BlockSpec(Frozen):
    """One block of the plan: four windows (or the proof's), their arms, and what is the same for both arms.

    `order` holds a letter a window: A or B is the arm that is *run*. `labels` differ from it in null blocks only.
    """

    stage: Stage
    check: int = 0
    index: int
    order: Annotated[str, Field(pattern=r"^[AB]{2,4}$")]
    labels: Annotated[str, Field(pattern=r"^[AB]{2,4}$")]
    seeds: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def name(self) -> str:
        """Short name, unique within the experiment."""
        return (
            f"{self.stage.value[0]}{self.check}-{self.index}"
            if self.stage is Stage.REFUTE
            else f"{self.stage.value[0]}{self.index}"
        )


def enumerate_blocks(seed: int, constants: Constants, skip_discovery: bool = False) -> tuple[BlockSpec, ...]:
    """Every block that the experiment may need, from one seed: coins, seeds and offsets are fixed before anything runs.

    Discovery and checks hold spare blocks for those that are voided. Check i reverses the coin of check i-1, so that a
    majority cannot share one order. Offsets are spread by hashing, so no two windows of a plan share their first page.
    """
    coins = _Coins(seed)
    spare = 1 + constants.spare_share
    discovery = 0 if skip_discovery else round(constants.looks[-1] * spare)
    per_check = constants.blocks_per_check + max(1, round(constants.blocks_per_check * constants.spare_share))
    blocks = [coins.proof_block(0, "AB", same_seed=True), coins.proof_block(1, "ABAB", same_seed=False)]
    blocks += [coins.block(Stage.DISCOVERY, 0, index) for index in range(discovery)]
    for check in range(constants.checks):
        blocks += [
            coins.block(Stage.REFUTE, check, index, reverse=bool((check + index) % 2)) for index in range(per_check)
        ]
    blocks += [coins.block(Stage.SOAK, 0, index) for index in range(constants.soak_blocks)]
    blocks += [coins.null_block(index) for index in range(constants.null_blocks)]
    return tuple(blocks)


def holdout_block(seed: int, index: int) -> BlockSpec:
    """Block `index` that tests an applied win on: from the plan's `seed`, too, but drawn by its own number.

    Nobody knows at the start how many there will be, so they are no part of the plan's blocks.
    """
    return _Coins(int(hash_text(str(seed), "holdout", str(index))[:12], 16)).block(Stage.HOLDOUT, 0, index)


class _Coins:
    """Reproducible draws by hashing a counter: independent of any library's generator and of its version."""

    def __init__(self, seed: int) -> None:
        self._draws = self._stream(seed)
        self._first = next(self._draws) & 1

    @staticmethod
    def _stream(seed: int) -> Iterator[int]:
        counter = 0
        while True:
            yield int.from_bytes(hashlib.sha256(f"{seed}:{counter}".encode()).digest()[:8], "big")
            counter += 1

    def _windows(self, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        seeds = tuple(next(self._draws) % 2**31 for _ in range(count))
        offsets = tuple(next(self._draws) % 2**31 for _ in range(count))
        return seeds, offsets

    def block(self, stage: Stage, check: int, index: int, reverse: bool | None = None) -> BlockSpec:
        """ABBA or BAAB: by a fresh coin, or alternating from the plan's first coin where `reverse` says so."""
        coin = (next(self._draws) & 1) if reverse is None else self._first ^ int(reverse)
        order = "BAAB" if coin else "ABBA"
        seeds, offsets = self._windows(4)
        return BlockSpec(stage=stage, check=check, index=index, order=order, labels=order, seeds=seeds, offsets=offsets)

    def null_block(self, index: int) -> BlockSpec:
        """Both arms run the baseline; only the labels differ, so whatever is found is the harness."""
        block = self.block(Stage.NULL, 0, index)
        return block.model_copy(update={"order": "AAAA"})

    def proof_block(self, index: int, order: str, same_seed: bool) -> BlockSpec:
        """Windows from one start: pairs of A and B share seed and offset 0."""
        first = next(self._draws) % 2**31
        seeds = [first if same_seed else (first + position // 2 + 1) % 2**31 for position in range(len(order))]
        return BlockSpec(
            stage=Stage.PROOF, index=index, order=order, labels=order, seeds=tuple(seeds), offsets=(0,) * len(order)
        )
