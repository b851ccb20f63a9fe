"""What the commands share: options, the console, progress bars, recipe files."""
