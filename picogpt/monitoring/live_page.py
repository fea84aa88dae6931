"""The page that follows a run: its panel, put together with its report."""

from picogpt.monitoring.status import Status
from picogpt.reports.figures import clock
from picogpt.reports.page import POLICY, SCRIPT, STYLE, csp_hash, render

LIVE_POLICY = f"{POLICY}; script-src {csp_hash(SCRIPT)}; connect-src 'self'"


def live_page(name: str, live: str, report: str, version: int) -> str:
    """The page that follows a run, from its two parts; `version` is the report's."""
    head = {"title": name, "policy": LIVE_POLICY, "style": STYLE, "script": SCRIPT}
    return render("page.html", **head, live=live, report=report, version=version)


def live(status: Status | None, age: float, ended: bool) -> str:
    """The panel of a run that trains. age: seconds since it told; ended: that it will not tell more."""
    return render("live.html", status=status, age=age, ended=ended, clock=clock, eta=_eta(status))


def _eta(status: Status | None) -> str:
    return "" if status is None or status.eta_seconds is None else clock(status.eta_seconds)
