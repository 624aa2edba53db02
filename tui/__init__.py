"""The terminal chat: screens and widgets over the library.

It may import the library's `llm`, `worker`, `models` and `errors`, and none of the rooms behind them.
"""
