"""A client of servers with the chat completions API, and the store of their answers."""
