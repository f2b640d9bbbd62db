"""What steers penalty coefficients and multipliers."""
