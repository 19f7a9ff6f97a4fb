"""What every system is asked."""

from __future__ import annotations

from lethe.evaluation.unlearning.collect import SamplingPlan
from lethe.evaluation.unlearning.systems import SYSTEMS


def test_systems_that_penalize_are_sampled_with_more_seeds() -> None:
    plan = SamplingPlan((0, 1, 2), (0, 1, 2, 3, 4), rewordings=5)
    assert plan.seeds_for(SYSTEMS["both"]) == plan.seeds_for(SYSTEMS["penalize"]) == (0, 1, 2, 3, 4)
    assert plan.seeds_for(SYSTEMS["corrupt-decoy-content"]) == plan.seeds_for(SYSTEMS["unguarded"]) == (0, 1, 2)
