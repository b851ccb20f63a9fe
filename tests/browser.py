"""A real browser for tests of pages, or the reason for which they are skipped."""

from __future__ import annotations

import pytest

from usertwin.evals.benchmarks.run_view.browser import BROWSER, NO_BROWSER, Browser, open_browser

__all__ = ["Browser", "needs_browser", "open_browser"]

needs_browser = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
