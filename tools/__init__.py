"""What makes the shipped data and the pages; it is not installed."""
