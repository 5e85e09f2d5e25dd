"""`lbswitch doctor`: what would bite in production on this host, each with its mend. Reads, and changes nothing."""
