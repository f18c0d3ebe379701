"""Counterpart of torch.nn.functional for what fastdl provides."""
