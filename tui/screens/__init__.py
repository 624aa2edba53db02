"""What lies over the conversation for a while: each screen does one thing, and Esc leaves it."""
