"""The factory: snapshot → plan → apply. `plan` is a pure function and the whole policy."""
