"""Batch transforms, resident data sets and prefetching."""
