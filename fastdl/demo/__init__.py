"""The course's story on real data: `python -m fastdl.demo`."""
