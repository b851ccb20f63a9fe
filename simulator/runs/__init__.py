"""Many conversations: jobs, limits, the folder of a run, and where the jobs run."""
