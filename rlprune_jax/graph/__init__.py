"""Groups of coupled units of any traced function; gating and slimming by them."""
