"""Methods that are no part of Temper."""
