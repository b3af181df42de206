"""What is claimed about speed: each script prints ratios, ours against a reference, measured in one run."""
