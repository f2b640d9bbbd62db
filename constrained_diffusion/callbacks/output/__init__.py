"""What a run leaves behind: results, samples, grids, reports, certificates."""
