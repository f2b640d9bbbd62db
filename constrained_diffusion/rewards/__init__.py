"""Rewards, one file per domain."""
