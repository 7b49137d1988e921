"""Detections of images, and figures of how good they are."""
