"""Methods for inventory control."""
