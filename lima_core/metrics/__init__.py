"""Metrics of segmentation and detection."""
