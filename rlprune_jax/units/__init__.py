"""Groups of units: scores, numbers of units, descriptors, structured SAP."""
