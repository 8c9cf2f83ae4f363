"""From a network, data and budgets to a smaller network."""
