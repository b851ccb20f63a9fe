"""The person's own words: token n-grams of their remembered turns, mixed into a model's next-token probabilities."""
