"""Puts published claims to the test: what a claim is, running it, judging it by a fixed rule, the ledger, the picture.

The claims themselves are in `polyrl.claims`, one file a paper. The rule is written down in docs/claims.md.
"""
