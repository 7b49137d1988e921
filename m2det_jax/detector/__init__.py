"""A model with its anchors, preprocessing, objective and suppression; its use on data sets."""
