"""Preferences: pairs of which one is preferred, and the merits behind them."""

from constrained_diffusion.domains.polymers.preferences.bradley_terry import Merits, fit_merits, log_likelihood

__all__ = ["Merits", "fit_merits", "log_likelihood"]
