"""Where the experts of a mixture go under skewed loads: copies and placements with bounds, in load and in time."""
