"""memory/training/config.py: defaults depend on the method, and invalid configurations are refused."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from small_training import small_config

from usertwin.memory.training.config import BETAS, LEARNING_RATES, TRAIN_METHODS, TrainingConfig
from usertwin.memory.training.rewards import RewardWeights
from usertwin.personas import UsageError


@pytest.mark.parametrize("method", TRAIN_METHODS)
def test_the_defaults_of_every_method_are_valid(method: Any) -> None:
    config = TrainingConfig(method=method)
    config.check()
    assert (config.resolved_learning_rate, config.resolved_beta) == (LEARNING_RATES[method], BETAS[method])
    chosen = TrainingConfig(method=method, learning_rate=0.5, beta=0.25)
    assert (chosen.resolved_learning_rate, chosen.resolved_beta) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, '--method: "magic" is unknown; choose from sft, dpo, grpo, e2e'),
        ({"method": "soup"}, '--method: "soup" is unknown'),
        ({"proposal_mode": "search"}, 'not "search"'),
        ({"report_to": "mail"}, '--report-to: "mail" is unknown; choose from none, tensorboard'),
        ({"group_size": 1}, "--group-size is 1; it must be at least 2"),
        ({"method": "grpo", "group_size": 3, "batch_size": 8}, "take a multiple of 3, such as 9"),
        ({"batch_size": 6, "micro_batch_size": 4}, "--batch-size 6 is not a multiple of --micro-batch-size 4"),
        ({"micro_batch_size": 0}, "--micro-batch-size is 0; it must be at least 1"),
        ({"batch_size": 0}, "--batch-size is 0; it must be at least 1"),
        ({"rank": 0}, "--rank is 0; it must be at least 1"),
        ({"save_every": 0}, "--save-every is 0; it must be at least 1"),
        ({"audit_every": -1}, "--audit-every is -1; it must be at least 1"),
        ({"epochs": 0.0}, "--epochs is 0; it must be a number above 0"),
        ({"epochs": math.nan}, "--epochs is nan"),
        ({"token_budget": 1}, "--token-budget is 1; it must be at least --group-size (2)"),
        ({"learning_rate": -1e-4}, "--learning-rate is -0.0001; it must be a finite number, and not negative"),
        ({"learning_rate": math.nan}, "--learning-rate is nan"),
        ({"beta": math.inf}, "--beta is inf"),
        ({"vllm": True}, "--vllm: only grpo and e2e sample with vLLM"),
        ({"weights": RewardWeights(fidelity=0)}, "--weights"),
        ({"weights": RewardWeights(leak=math.nan)}, "--weights"),
    ],
)
def test_an_invalid_configuration_is_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        small_config(**changes).check()
    assert "\n" not in str(caught.value)


def test_an_online_method_needs_a_pair_for_every_group_of_a_step() -> None:
    config = small_config(method="grpo", batch_size=8)
    config.check_pairs(4)
    with pytest.raises(UsageError, match="only 3 pairs to train on, and --batch-size 8 holds 4 groups"):
        config.check_pairs(3)
    small_config(method="dpo", batch_size=8).check_pairs(3)
