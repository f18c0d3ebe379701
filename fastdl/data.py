"""Batch transforms, resident data sets and prefetching."""

from fastdl.compose import CenterCrop as CenterCrop
from fastdl.compose import Compose as Compose
from fastdl.compose import FiveCrop as FiveCrop
from fastdl.compose import Normalize as Normalize
from fastdl.compose import RandomCrop as RandomCrop
from fastdl.compose import RandomHorizontalFlip as RandomHorizontalFlip
from fastdl.compose import RandomResizedCrop as RandomResizedCrop
from fastdl.compose import TenCrop as TenCrop
from fastdl.compose import ToDtype as ToDtype
from fastdl.prefetch import Prefetcher as Prefetcher
from fastdl.resident import ResidentDataset as ResidentDataset
from fastdl.stats import channel_stats as channel_stats
from fastdl.transform import BatchTransform as BatchTransform
