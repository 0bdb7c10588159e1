"""Norms and weighted sums of each sample's gradient over all parameters, for one back-propagation."""
