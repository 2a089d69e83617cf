"""A readable Llama-style trainer that accounts for every nanosecond."""
