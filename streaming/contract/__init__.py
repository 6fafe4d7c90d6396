"""The contract of the Kafka topics: one JSON schema, and what judges a message by it (docs/example.md)."""
