"""Compact, trustworthy medical segmentation from Segment Anything models."""

__version__ = "0.1.0"
