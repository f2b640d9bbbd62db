"""From a run folder to tables, plots and pages; pure, without Lightning."""
