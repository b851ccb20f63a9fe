"""Control traces and trained synthesizers: is a trace's score more than leakage?"""
