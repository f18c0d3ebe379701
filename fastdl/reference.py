"""The published formula of every op in a few lines of torch: float64, any device, no cleverness."""
