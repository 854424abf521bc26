"""What stands before the API: keys, rates, sizes, and who may connect."""
