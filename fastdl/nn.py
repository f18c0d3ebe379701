"""Counterpart of torch.nn for what fastdl provides."""
