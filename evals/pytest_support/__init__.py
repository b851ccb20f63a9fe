"""Parts of the pytest plugin: its settings, the verdict on a conversation, repeated tests, and the summary."""
