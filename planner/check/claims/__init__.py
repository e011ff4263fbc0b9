"""Claims: what an author says about a plan, judged against the graph of the plan and its price."""

from __future__ import annotations

from planner.check.claims.claim import CLAIMS_SCHEMA, Claim, claims_of, read_claims
from planner.check.claims.judge import judge
from planner.check.claims.judgement import Judgement, claim_findings
from planner.check.claims.subject import Subject

__all__ = ["CLAIMS_SCHEMA", "Claim", "Judgement", "Subject", "claim_findings", "claims_of", "judge", "read_claims"]
