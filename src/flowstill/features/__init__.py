"""Where a network can be read: taps, sections, pairs, layers."""
