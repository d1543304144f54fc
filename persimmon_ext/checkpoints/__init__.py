"""Checkpoints: reads and writes Hugging Face folders, converts the authors' release, and looks into either."""

from persimmon_ext.checkpoints.converting import convert_adept
from persimmon_ext.checkpoints.errors import CheckpointError
from persimmon_ext.checkpoints.loading import load_pretrained
from persimmon_ext.checkpoints.writing import save_pretrained

__all__ = ["CheckpointError", "convert_adept", "load_pretrained", "save_pretrained"]
