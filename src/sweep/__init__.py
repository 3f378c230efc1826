"""Many subsets, each trained in a child process, exactly once, through any interruption."""
