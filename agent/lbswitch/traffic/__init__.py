"""What balancers tell of real traffic, counted."""
