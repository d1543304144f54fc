"""Checkpoints: reads and writes Hugging Face folders."""

from persimmon_ext.checkpoints.errors import CheckpointError
from persimmon_ext.checkpoints.loading import load_pretrained
from persimmon_ext.checkpoints.writing import save_pretrained

__all__ = ["CheckpointError", "load_pretrained", "save_pretrained"]
