"""Datasets on disk: layouts, classes, splits, images and the checks of all of them."""
