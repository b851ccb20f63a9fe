"""Tests of an agent by simulated conversations: checks, a judge of criteria, rates, summaries, limits, and comparisons."""

from .agent_checks import AgentChecks, as_check, run_checks
from .assertions import CheckFailed, aassert_checks, assert_checks
from .checks import Check
from .compare import RunComparison, compare_runs
from .criteria import ajudge_criteria, ajudge_goal
from .outcomes import Outcome, outcome_of
from .page import write_page
from .rates import PairedDifference, PassPower, Rate
from .read import AgentRun, read_agent_run, summary_of_run
from .ready_made import called_tool, final_state, never_says, only_tools, reaches_goal, replies_within, says
from .summary import Summary, summarize
from .thresholds import Thresholds

__all__ = [
    "AgentChecks",
    "AgentRun",
    "Check",
    "CheckFailed",
    "Outcome",
    "PairedDifference",
    "PassPower",
    "Rate",
    "RunComparison",
    "Summary",
    "Thresholds",
    "aassert_checks",
    "ajudge_criteria",
    "ajudge_goal",
    "as_check",
    "assert_checks",
    "called_tool",
    "compare_runs",
    "final_state",
    "never_says",
    "only_tools",
    "outcome_of",
    "reaches_goal",
    "read_agent_run",
    "replies_within",
    "run_checks",
    "says",
    "summarize",
    "summary_of_run",
    "write_page",
]
