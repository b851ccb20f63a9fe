"""The memory on disk: SQLite rows and a FAISS index."""
