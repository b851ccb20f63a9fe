"""What the product costs and survives: speed, memory, crash safety. Not shipped to users."""
