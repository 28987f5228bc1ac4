"""What is suspicious about annotations, found and worded."""
