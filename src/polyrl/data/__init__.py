"""Rows that are kept or given beside the fresh batch: replay buffers, transitions of a data set."""
