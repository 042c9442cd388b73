"""Plans in the formats that other libraries read."""
