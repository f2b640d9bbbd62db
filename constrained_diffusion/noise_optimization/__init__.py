"""Direct noise optimisation: align samples at inference, weights untouched (D = Tang et al. 2024, DNO and PRNO)."""
