"""Tables, pages and Markdown made from a run."""
