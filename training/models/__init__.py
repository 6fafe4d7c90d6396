"""The models, one module each, on the seam of training/models/model.py."""
